"""Train `resnet.safetensors`, the weights this example starts from.

    python train.py                # about ten minutes on two free cores; also writes train.json
    python train.py --evaluate     # only score the weights that are there on the 10,000 test images

You need not run this to try the example: its result lies beside it. The epoch is chosen on the
5,000 images of `fashion_data.selection`; the test images are scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from fashion_data import Arrays, evaluation, selection, training
from fashion_resnet import build
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent


def augment(images: Tensor, shift: int = 2, erased: float = 0.25, hole: int = 8) -> Tensor:
    """Mirror half of the images, move each by up to `shift` pixels, blank a square in some."""
    n, _, height, width = images.shape
    mirrored = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images.flip(3), images)
    padded = functional.pad(mirrored, (shift,) * 4)
    rows = torch.arange(height) + torch.randint(0, 2 * shift + 1, (n, 1))
    columns = torch.arange(width) + torch.randint(0, 2 * shift + 1, (n, 1))
    moved = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    y = torch.arange(height) - torch.randint(0, height - hole, (n, 1))
    x = torch.arange(width) - torch.randint(0, width - hole, (n, 1))
    inside = ((y >= 0) & (y < hole))[:, :, None] & ((x >= 0) & (x < hole))[:, None, :]
    inside &= torch.rand(n, 1, 1) < erased
    return moved.masked_fill(inside, 0.0)[:, None]


def accuracy(model: nn.Module, data: Arrays) -> float:
    """Top-1 in 0-1, in float32."""
    model.eval()
    images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    with torch.inference_mode():
        found = [model(batch).argmax(1) for batch in images.split(500)]
    return float((torch.cat(found) == labels).double().mean())


def train(model: nn.Module, epochs: int, peak: float = 0.2, size: int = 256) -> list[float]:
    """Train `model` in place, keep its best epoch, return each epoch's accuracy on `selection`."""
    data, held_out = training(), selection()
    images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    steps = len(images) // size
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * steps)
    scores: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(epochs):
        model.train()
        start, total = time.monotonic(), 0.0
        for chosen in torch.randperm(len(images))[: steps * size].split(size):
            batch = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        scores.append(accuracy(model, held_out))
        if scores[-1] == max(scores):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        seconds = time.monotonic() - start
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  "
            f"selection {scores[-1]:.4f}  {seconds:.0f} s",
            flush=True,
        )
    model.load_state_dict(best)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST residual CNN.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "resnet.safetensors")
    parser.add_argument("--evaluate", action="store_true", help="only score the weights")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.evaluate:
        model = build()
        model.load_state_dict(load_file(flags.out))
        print(f"top-1 on the 10,000 test images: {accuracy(model, evaluation()):.4f}")
        return
    torch.manual_seed(flags.seed)
    start = time.monotonic()
    model = build()
    scores = train(model, flags.epochs)
    minutes = (time.monotonic() - start) / 60
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, flags.out)
    facts = {
        "seed": flags.seed,
        "epochs": flags.epochs,
        "chosen_epoch": len(scores) - scores[::-1].index(max(scores)),
        "selection_top1": max(scores),
        "test_top1": accuracy(model, evaluation()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(minutes, 1),
        "threads": flags.threads,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    flags.out.with_name("train.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
