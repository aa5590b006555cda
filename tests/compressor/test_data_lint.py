"""What is said of suspicious calibration data, and that good data is left in peace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compressor.data import DataSet
from compressor.opening import open_data_sets
from compressor.schema import Problems
from runtimes.types import TensorSpec

Arrays = Mapping[str, np.ndarray]
FREE = (TensorSpec("image", "float32", ("batch", "channels", "height", "width")),)
RNG = np.random.default_rng(0)


def pictures(count: int = 120, seed: int = 0, classes: int = 10, channels: int = 3) -> Arrays:
    """Pictures with a black border, as Fashion-MNIST has, and labels drawn at random."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, channels, 8, 8), np.float32)
    images[:, :, 2:-2, 2:-2] = rng.random((count, channels, 4, 4))
    return {"image": images, "labels": rng.integers(0, classes, count)}


def opened(calibration: Arrays, other: Arrays | None = None, role: str = "evaluation") -> DataSet:
    given = {"calibration": calibration} | ({role: other} if other is not None else {})
    made: dict[str, DataSet] = open_data_sets(given, FREE, Path())  # type: ignore[assignment]
    return made["calibration"]


def said(calibration: Arrays, other: Arrays | None = None, role: str = "evaluation") -> list[str]:
    return opened(calibration, other, role).warnings


def changed(images: np.ndarray, **more: np.ndarray) -> Arrays:
    return {**pictures(), "image": images, **more}


@pytest.mark.parametrize("role", ["evaluation", "selection"])
@pytest.mark.parametrize("channels", [1, 3])
def test_good_data_is_left_in_peace(role: str, channels: int) -> None:
    for seed in range(20):
        a, b = (pictures(n, s, channels=channels) for n, s in ((120, seed), (400, seed + 100)))
        assert said(a, b, role) == []


def test_a_thousand_classes_in_a_hundred_samples_are_no_fault() -> None:
    assert said(pictures(classes=1000), pictures(5000, 1, classes=1000)) == []


def without_a_plane() -> Arrays:
    images = pictures()["image"].copy()
    images[:, 1] = 0.5
    return changed(images)


def with_zeros() -> Arrays:
    images = pictures()["image"].copy()
    images[3:5] = 0
    return changed(images)


CASES: list[tuple[Arrays, str]] = [
    (pictures(20), "only 20 samples: ranges from fewer than 100 are unreliable; hand in about 300"),
    (without_a_plane(), "image: channel 1 is 0.5 in all 120 samples; values that differ were"),
    (pictures(1), "only 1 sample: ranges from fewer than 100"),
    (with_zeros(), "2 samples hold nothing but zeros; real ones were expected: drop them"),
    (changed(np.tile(pictures(60)["image"], (2, 1, 1, 1))), "60 of 120 samples are copies of"),
]


@pytest.mark.parametrize(("arrays", "text"), CASES, ids=[text[:24] for _, text in CASES])
def test_what_is_suspicious_by_itself(arrays: Arrays, text: str) -> None:
    found = said(arrays)
    assert any(sentence.startswith(text) for sentence in found), found


@pytest.mark.parametrize("value", [0, 0.5])
def test_one_value_throughout_is_no_calibration_data(value: float) -> None:
    with pytest.raises(Problems, match=f"image is {value:g} throughout") as caught:
        opened(changed(np.full((120, 3, 8, 8), value, np.float32)))
    assert "data.calibration" in str(caught.value)


@pytest.mark.parametrize("role", ["evaluation", "selection"])
@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        (
            changed(pictures()["image"] * 255),
            ["image lies in 0–25", "in the", "scaled or normalised differently?"],
        ),
        (
            changed(pictures()["image"] - 0.5),
            ["image lies in -0.5–", "normalised differently?"],
        ),
        (
            changed(pictures()["image"].transpose(0, 2, 3, 1).copy()),
            ["image: samples are [8, 8, 3] here and [3, 8, 8] in the", "transpose one of them"],
        ),
        (
            changed(pictures()["image"], labels=np.arange(120) % 8),
            ["no sample of class 8, 9, which the", "draw the samples at random"],
        ),
    ],
)
def test_what_does_not_fit_the_data_that_judges(role: str, arrays: Arrays, fragments: list[str]):
    found = [text for text in said(arrays, pictures(400, 1), role) if fragments[0] in text]
    assert len(found) == 1
    for fragment in [*fragments, f"{role} data"]:
        assert fragment in found[0]


def test_opening_again_says_nothing_twice() -> None:
    data = opened(changed(pictures()["image"] * 255), pictures(400, 1))
    before = list(data.warnings)
    open_data_sets({"calibration": data, "evaluation": pictures(400, 1)}, FREE, Path())
    assert data.warnings == before


def test_token_ids_may_repeat_and_be_zero() -> None:
    inputs = (TensorSpec("ids", "int64", ("batch", "time")),)
    arrays = {"ids": np.zeros((120, 4), np.int64)}
    assert open_data_sets({"calibration": arrays}, inputs, Path())["calibration"].warnings == []


def test_feature_maps_with_dead_channels_are_no_pictures() -> None:
    maps = RNG.random((120, 64, 8, 8)).astype(np.float32)
    maps[:, 5] = 0
    assert said({"image": maps}) == []


TABLE = (TensorSpec("x", "float32", ("batch", "features")),)
SEQUENCE = (TensorSpec("x", "float32", ("batch", "time", "features")),)


def table(count: int, seed: int, features: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def one_hot(count: int, seed: int, classes: int = 40, scaled: bool = False) -> np.ndarray:
    """Columns for classes that get rarer and rarer, as they are or with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    share = 0.8 ** np.arange(classes)
    share /= share.sum()
    made = np.eye(classes)[rng.choice(classes, count, p=share)]
    if scaled:
        made = (made - share) / np.sqrt(share * (1 - share))
    return np.concatenate([made, rng.normal(size=(count, 3))], 1).astype(np.float32)


def padded(count: int, seed: int, fill: float = 0.0) -> np.ndarray:
    """Sequences of 10 to 30 steps of 40, the rest filled up."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(count, 40, 8)).astype(np.float32)
    for sample, steps in zip(made, rng.integers(10, 31, count), strict=True):
        sample[steps:] = fill
    return made


def linted(inputs: tuple[TensorSpec, ...], x: np.ndarray, other: np.ndarray) -> list[str]:
    given = {"calibration": {"x": x}, "evaluation": {"x": other}}
    return open_data_sets(given, inputs, Path())["calibration"].warnings


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_good_tables_and_sequences_are_left_in_peace(count: int) -> None:
    for seed in range(10):
        sizes = ((count, seed), (2000, seed + 100))
        pixels = [np.where(np.arange(784) % 28 < 4, -0.42, table(*s, 784)) for s in sizes]
        assert linted(TABLE, *(table(*s) for s in sizes)) == []
        assert linted(TABLE, *(one_hot(*s) for s in sizes)) == []
        assert linted(TABLE, *(one_hot(*s, classes=16, scaled=True) for s in sizes)) == []
        assert linted(TABLE, *(p.astype(np.float32) for p in pixels)) == []
        assert linted(SEQUENCE, *(padded(*s) for s in sizes)) == []
        assert linted(SEQUENCE, *(padded(*s, fill=-11.5) for s in sizes)) == []


def test_features_that_vary_only_in_the_data_that_judges_are_listed() -> None:
    x = table(300, 0)
    x[:, [3, 17]] = 0
    (said,) = linted(TABLE, x, table(2000, 1))
    assert said == (
        "x: features 3, 17 constant in all 300 samples here, and not in the evaluation data: "
        "prepare both alike, and draw the samples at random"
    )
    x = padded(300, 0)
    x[:, :, 5] = 0
    (said,) = linted(SEQUENCE, x, padded(2000, 1))
    assert said.startswith("x: feature 5 on axis 2 constant in all 300 samples here, and not in")


def test_features_stuck_at_a_value_are_listed_by_themselves() -> None:
    x, other = table(300, 0), table(2000, 1)
    x[:, 3], x[:, 4:12] = 1.5, 2
    assert any("and not in the evaluation data" in text for text in linted(TABLE, x, other))
    other[:, 3:12] = x[0, 3:12]
    (said,) = linted(TABLE, x, other)
    assert said == (
        "x: features 3, 4, 5, 6, 7 and 4 more constant in all 300 samples; values that differ "
        "were expected: are columns missing, or filled in?"
    )
    assert linted(TABLE, x[:120], other) == []  # few samples: no proof


def test_labels_of_another_kind_are_not_compared() -> None:
    names = np.asarray([f"class {i}" for i in pictures()["labels"]])
    assert said({**pictures(), "labels": names}, pictures(400, 1)) == []


def test_fashion_mnist_of_the_example_is_good_data() -> None:
    import sys

    folder = Path(__file__).parents[2] / "examples" / "01_image_classifier"
    sys.path.insert(0, str(folder))
    try:
        import fashion_data

        roles = ("calibration", "selection", "evaluation")
        arrays = {role: getattr(fashion_data, role)() for role in roles}
    except (ImportError, OSError, RuntimeError, SystemExit) as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")
    finally:
        sys.path.remove(str(folder))
    inputs = (TensorSpec("image", "float32", ("batch", 1, 28, 28)),)
    for samples in open_data_sets(arrays, inputs, folder).values():
        assert samples.warnings == []
