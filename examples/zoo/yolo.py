"""YOLO-like detector: CSP blocks, SiLU, a feature pyramid, two heads; garments on a canvas.

The output is YOLOv8's: [n, 4 + classes, cells], boxes as centre and size in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.zoo import data, fitting, scenes
from examples.zoo.about import About, Arrays, Roles, splits

ABOUT = About(
    kind="yolo",
    architecture="CSP blocks, SiLU, pyramid by Resize and Concat, heads at strides 8 and 16",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="map50",
    inputs={"image": ["batch", 1, 64, 64]},
    outputs=["boxes"],
)
SIZE, CLASSES = 64, 10
STRIDES = (8, 16)


class Unit(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inside: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), nn.SiLU())


class Csp(nn.Module):
    """Half of the channels through a residual unit, all of them joined by Concat."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.left, self.right = Unit(inside, half, 1), Unit(inside, half, 1)
        self.body = nn.Sequential(Unit(half, half, 1), Unit(half, half))
        self.join = Unit(2 * half, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return self.join(torch.cat([left + self.body(left), self.right(x)], 1))


class Yolo(nn.Module):
    """Backbone to strides 8 and 16, a path back up, a head each."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(Unit(1, width, 3, 2), Unit(width, 2 * width, 3, 2))
        self.stage1 = Csp(2 * width, 2 * width)
        self.down1, self.stage2 = Unit(2 * width, 4 * width, 3, 2), Csp(4 * width, 4 * width)
        self.down2, self.stage3 = Unit(4 * width, 8 * width, 3, 2), Csp(8 * width, 8 * width)
        self.lateral, self.up = Unit(8 * width, 4 * width, 1), nn.Upsample(scale_factor=2)
        self.fuse = Csp(8 * width, 4 * width)
        outs = (4 * width, 8 * width)
        self.heads = nn.ModuleList(
            nn.Sequential(Unit(c, 64), nn.Conv2d(64, 4 + CLASSES, 1)) for c in outs
        )
        for stride in STRIDES:
            cells = torch.arange(SIZE // stride) + 0.5
            grid = torch.stack(torch.meshgrid(cells, cells, indexing="xy")).reshape(1, 2, -1)
            self.register_buffer(f"grid{stride}", grid * stride, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage2(self.down1(self.stage1(self.stem(image))))
        deep = self.stage3(self.down2(x))
        fine = self.fuse(torch.cat([x, self.up(self.lateral(deep))], 1))
        found = []
        for stride, head, level in zip(STRIDES, self.heads, (fine, deep), strict=True):
            raw = head(level).flatten(2)
            centre = getattr(self, f"grid{stride}") + raw[:, :2].tanh() * 2 * stride
            size = raw[:, 2:4].sigmoid() * SIZE
            found.append(torch.cat([centre, size, raw[:, 4:].sigmoid()], 1))
        return torch.cat(found, 2)


def build() -> nn.Module:
    return Yolo()


def arrays() -> Roles:
    def part(name: str, n: int) -> Arrays:
        made = scenes.scenes(name, n, size=SIZE)
        return {"image": made.images[:, None], "labels": made.boxes}

    return data.split(part("train", 12000), part("t10k", 2000))


def _loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cells within a third of a box learn it; of several boxes the smallest."""
    out, boxes = module(batch["image"]), batch["labels"]
    centres = torch.cat([module.grid8, module.grid16], 2)  # [1, 2, cells]
    kind, corner1, corner2 = boxes[:, :, 0], boxes[:, :, 1:3], boxes[:, :, 3:5]
    middle, size = (corner1 + corner2) / 2, corner2 - corner1
    away = (centres[:, None] - middle[..., None]).abs()  # [n, boxes, 2, cells]
    near = (away < size[..., None] / 3 + 2).all(2) & (kind >= 0)[..., None]
    area = torch.where(near, size.prod(2)[..., None].expand_as(near), torch.inf)
    least, which = area.min(1)
    mine = torch.isfinite(least)
    take = which[..., None]
    goal = torch.cat([middle, size], 2).gather(1, take.expand(-1, -1, 4)).transpose(1, 2)
    classes = kind.gather(1, which).clamp(min=0).long()
    wanted = nn.functional.one_hot(classes, CLASSES).transpose(1, 2) * mine[:, None]
    scores = out[:, 4:].clamp(1e-6, 1 - 1e-6)
    error = nn.functional.binary_cross_entropy(scores, wanted.float(), reduction="none")
    focal = (error * (wanted - scores).abs() ** 1.5).sum() / mine.sum().clamp(min=1)
    gap = ((out[:, :4] - goal).abs() * mine[:, None]).sum() / mine.sum().clamp(min=1) / 4
    return focal * 2 + gap * 0.3


training, calibration, selection, evaluation = splits(arrays)


def train(module: nn.Module) -> None:
    fitting.train(module, training(), _loss, epochs=8, lr=3e-3, batch=32, half=True)
