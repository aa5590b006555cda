"""A small SVG writer and the charts of the report.

Every chart is a few kB of text that takes its colours from the page's style sheet, so that it
follows light and dark; whatever it shows also stands in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from compressor.result import Interval

WIDTH, HEIGHT = 460, 268
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 16, 44
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Point:
    """One artifact in the scatter: where it lies, how sure that is, and how big it is."""

    name: str
    role: str  # a CSS class: "shipped", "other" or "twin"
    x: float
    y: float
    x_interval: Interval
    y_interval: Interval
    area: float  # 0–1, of the largest


@dataclass(frozen=True)
class Series:
    """One latency distribution in ms: evenly spaced quantiles, the extremes included."""

    name: str
    role: str
    quantiles: Sequence[float]
    p50: float
    p99: float


@dataclass(frozen=True)
class Part:
    """One segment of a bar; `colour` is the suffix of a CSS class."""

    label: str
    colour: str
    value: float


def svg(title: str, body: Sequence[str]) -> str:
    """A drawing 460 units wide that scales with its column; `title` is read out for it."""
    label = escape(title, quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return head + "".join(body) + "</svg>"


def scatter(
    points: Sequence[Point], limit: float | None, x_label: str, y_label: str, title: str
) -> str:
    """Latency (log axis) against metric drop; marker area is size, bars are intervals."""
    xs = [v for p in points for v in (p.x, *p.x_interval)]
    ys = [v for p in points for v in (p.y, *p.y_interval)] + [0.0]
    ys += [] if limit is None else [limit]
    low, high = min(ys), max(ys)
    pad = (high - low or 1.0) * 0.12
    x = _log_scale(min(xs) * 0.75, max(xs) * 1.4, LEFT, WIDTH - RIGHT)
    y = _linear(low - pad, high + pad, HEIGHT - BOTTOM, TOP)
    body = _x_axis(x, log_ticks(min(xs) * 0.75, max(xs) * 1.4), x_label)
    body += _y_axis(y, linear_ticks(low - pad, high + pad), y_label)
    if limit is not None:
        body.append(_line(LEFT, y(limit), WIDTH - RIGHT, y(limit), "limit"))
        body.append(_text(WIDTH - RIGHT, y(limit) - 5, "allowed", "limit-label", "end"))
    taken: list[tuple[float, float, float, float]] = []
    for p in sorted(points, key=lambda p: -p.area):
        body += _marker(p, x, y)
        taken.append(_around(x(p.x), y(p.y), _radius(p)))
    for p in points:
        body.append(_placed(p, x(p.x), y(p.y), taken))
    return svg(title, body)


def distribution(series: Sequence[Series], budgets: Sequence[tuple[str, float]], title: str) -> str:
    """Latency histograms on a log axis, with median and p99 marked and budgets as lines."""
    # One stalled call can be a hundred times the median: the axis ends a little past p99.
    ends = [v for s in series for v in (s.quantiles[0], min(s.quantiles[-1], s.p99 * 1.25))]
    ends += [limit for _, limit in budgets]
    low, high = min(ends) * 0.94, max(ends) * 1.06
    x = _log_scale(low, high, LEFT, WIDTH - RIGHT)
    body = _x_axis(x, log_ticks(low, high), "ms per call, log scale")
    floor = HEIGHT - BOTTOM
    body += [_histogram(one, low, high, x) for one in series]
    taken: list[float] = []
    # The last series is the report's subject: its labels come first, others where there is room.
    for one in reversed(series):
        body.append(_line(x(one.p99), floor, x(one.p99), floor - 12, f"tick {one.role}"))
        for name, value, height in (("p50", one.p50, TOP + 16), ("p99", one.p99, floor - 17)):
            if all(abs(x(value) - other) > 60 for other in taken):
                body.append(_text(x(value), height, f"{name} {value:.3g}", "small", "middle"))
                taken.append(x(value))
    for label, limit in budgets:
        body.append(_line(x(limit), TOP, x(limit), floor, "limit"))
        at_right = x(limit) > WIDTH * 0.7
        anchor, shift = ("end", -5) if at_right else ("start", 5)
        body.append(_text(x(limit) + shift, TOP + 3, label, "limit-label", anchor))
    return svg(title, body)


def bar(parts: Sequence[Part], full: float) -> str:
    """One stacked bar that stretches to its column; `full` is the value of the whole width.

    Its text stands beside it in the page: a stretched drawing would distort letters.
    """
    body = ['<rect class="track" x="0" y="0" width="1000" height="18"/>']
    left = 0.0
    for part in parts:
        width = 1000 * part.value / full if full else 0.0
        body.append(
            f'<rect class="k-{part.colour}" x="{left:.1f}" y="0" width="{max(width, 0.6):.1f}" '
            f'height="18"><title>{escape(part.label)}</title></rect>'
        )
        left += width
    head = '<svg class="bar" viewBox="0 0 1000 18" preserveAspectRatio="none" aria-hidden="true">'
    return head + "".join(body) + "</svg>"


def gate_bar(
    value: float, interval: Interval | None, limit: float, *, at_most: bool, state: str
) -> str:
    """A gate in one line: the allowed side shaded, the interval as a bar, the value as a dot."""
    low, high = interval or (value, value)
    reach = max(abs(v - limit) for v in (value, low, high)) or abs(limit) or 1.0
    x = _linear(limit - 1.15 * reach, limit + 1.15 * reach, 2, 138)
    left, right = (2.0, x(limit)) if at_most else (x(limit), 138.0)
    return (
        '<svg class="gate-bar" viewBox="0 0 140 20" aria-hidden="true">'
        f'<rect class="allowed" x="{left:.1f}" y="4" width="{right - left:.1f}" height="12"/>'
        + _line(x(limit), 2, x(limit), 18, "limit")
        + f'<line class="whisker {state}" x1="{x(low):.1f}" y1="10" x2="{x(high):.1f}" y2="10"/>'
        f'<circle class="dot {state}" cx="{x(value):.1f}" cy="10" r="3.5"/></svg>'
    )


def log_ticks(low: float, high: float) -> list[float]:
    """1-2-5 steps between `low` and `high` (> 0); finer ones where fewer than three fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in (
        (1.0, 2.0, 5.0),
        (1, 1.5, 2, 3, 4, 5, 6, 8),
        tuple(1 + i / 10 for i in range(90)),
    ):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        inside = [t for t in ticks if low <= t <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 7)]
    return [low, high]


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round values between `low` and `high`."""
    rough = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * s for s in (1, 2, 2.5, 5, 10) if base * s >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    inner = _linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(max(value, low)))


def _x_axis(x: Scale, ticks: Sequence[float], label: str) -> list[str]:
    floor = HEIGHT - BOTTOM
    body = [_line(LEFT, floor, WIDTH - RIGHT, floor, "axis")]
    body += [_text(x(t), floor + 16, f"{t:.3g}", "small", "middle") for t in ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*body, _text(middle, HEIGHT - 8, label, "small", "middle")]


def _y_axis(y: Scale, ticks: Sequence[float], label: str) -> list[str]:
    body: list[str] = []
    for t in ticks:
        body.append(_line(LEFT, y(t), WIDTH - RIGHT, y(t), "grid" if abs(t) > 1e-12 else "axis"))
        body.append(_text(LEFT - 8, y(t) + 4, f"{t + 0.0:.3g}", "small", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    place = f'transform="translate(13 {middle:.0f}) rotate(-90)"'
    turned = f'<text class="small" text-anchor="middle" {place}>'
    return [*body, f"{turned}{escape(label)}</text>"]


def _marker(p: Point, x: Scale, y: Scale) -> list[str]:
    lines = [
        _line(x(p.x_interval[0]), y(p.y), x(p.x_interval[1]), y(p.y), f"whisker {p.role}"),
        _line(x(p.x), y(p.y_interval[0]), x(p.x), y(p.y_interval[1]), f"whisker {p.role}"),
    ]
    return [
        f'<circle class="mark {p.role}" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="{_radius(p):.1f}"/>',
        *lines,
    ]


def _radius(p: Point) -> float:
    return 4 + 18 * math.sqrt(p.area)


def _around(x: float, y: float, r: float) -> tuple[float, float, float, float]:
    # A small core only: labels may cross the rim of a large marker, never its centre.
    r = min(r, 7)
    return x - r, y - r, x + r, y + r


def _placed(p: Point, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """The point's name at the first place around it that is free."""
    width, r = 6.6 * len(p.name) + 4, _radius(p)
    places = [(x + r + 5, y + 4), (x - r - 5 - width, y + 4)]
    places += [(x - width / 2, y + sign * (r + 14 * k) + 4) for k in (1, 2, 3) for sign in (-1, 1)]
    boxes = [(left, base - 11, left + width, base + 3) for left, base in places]
    inside = [
        b for b in boxes if b[0] >= LEFT and b[2] <= WIDTH and b[1] >= 0 and b[3] < HEIGHT - BOTTOM
    ]
    free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
    box = (free or inside or boxes)[0]
    taken.append(box)
    return _text(box[0], box[3] - 3, p.name, f"label {p.role}", "start")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _histogram(one: Series, low: float, high: float, x: Scale, bins: int = 64) -> str:
    width = math.log(high / low) / bins
    heights = [0.0] * bins
    for left, right in zip(one.quantiles, one.quantiles[1:], strict=False):
        # Each step between quantiles holds the same share of calls: spread it over its bins.
        first, last = ((math.log(max(v, low) / low)) / width for v in (left, right))
        for i in range(int(first), min(bins - 1, int(last)) + 1):
            part = min(i + 1, last) - max(i, first)
            heights[i] += part / (last - first) if last > first else 1.0
    peak, floor = max(heights) or 1.0, HEIGHT - BOTTOM
    path = [f"M{LEFT} {floor}"]
    for i, height in enumerate(heights):
        left, right = x(low * math.exp(i * width)), x(low * math.exp((i + 1) * width))
        top = floor - (floor - TOP - 22) * height / peak
        path.append(f"L{left:.1f} {top:.1f}L{right:.1f} {top:.1f}")
    path.append(f"L{WIDTH - RIGHT} {floor}Z")
    return f'<path class="area {one.role}" d="{"".join(path)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
