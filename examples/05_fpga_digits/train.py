"""Train the float model (half a minute on one core) and write what the recipe reads.

python train.py            # digits.safetensors, train.json
"""

import json
from pathlib import Path

import torch
from digits_data import evaluation, selection, training
from digits_model import build
from safetensors.torch import save_file
from torch.nn import functional

HERE = Path(__file__).parent
STEPS, BATCH, SEED = 4000, 64, 0


def accuracy(model: torch.nn.Module, data) -> float:
    arrays = data()
    with torch.no_grad():
        found = model(torch.from_numpy(arrays["pixels"])).argmax(1).numpy()
    return float((found == arrays["labels"]).mean())


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = build()
    arrays = training()
    pixels, labels = torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["labels"])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(0, len(pixels), (BATCH,))
        loss = functional.cross_entropy(model(pixels[rows]), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    save_file(model.state_dict(), HERE / "digits.safetensors")
    found = {"steps": STEPS, "batch": BATCH, "seed": SEED, "torch": torch.__version__}
    found["selection_accuracy"] = accuracy(model, selection)
    found["test_accuracy"] = accuracy(model, evaluation)
    (HERE / "train.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
