"""Small plots as inline SVG: distributions, ratios with intervals, a timeline, a trend, a Pareto front.

Pure: numbers in, markup out.

Colours come from the page's style sheet by class, so that one picture serves light and dark.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as unmarked

from ..on_host.bench.stats import percentile
from ..printable import printable
from ..text import duration, three_digits

WIDTH = 340  # user units: about one phone's width, so that text keeps its size there
LEFT, RIGHT = 52, 12
ROW = 54
AXIS = 26
POINTS = 72
MOST_RUGS = 80
PARETO = 230  # height of a Pareto plot
TREND = (150, 30)  # width and height of a trend
LEAST_SPAN = 0.2  # of the highest value: a trend's axis covers at least that, so that noise stays small
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
TICKS = 4


def escape(text: object) -> str:
    """Text in the markup, as the page shows it anywhere else."""
    return unmarked(printable(text))


@dataclass(frozen=True)
class Scale:
    """A linear map from values to the plot's width."""

    low: float
    high: float
    left: float = LEFT
    right: float = WIDTH - RIGHT

    def __call__(self, value: float) -> float:
        """The place of a value; values beyond the ends stay at the ends."""
        span = self.high - self.low or 1.0
        share = min(1.0, max(0.0, (value - self.low) / span))
        return self.left + share * (self.right - self.left)


@dataclass(frozen=True)
class Interval:
    """One metric's ratio after / before with its confidence interval, its limit and its verdict."""

    label: str
    ratio: float
    low: float
    high: float
    limit: float
    verdict: str


@dataclass(frozen=True)
class Span:
    """One step of a timeline, in seconds since its beginning."""

    label: str
    began_s: float
    took_s: float
    state: str


@dataclass(frozen=True)
class Place:
    """One configuration of a Pareto plot.

    + kind: `on` the front, `behind` it, `missed` a limit, or the `current` one
    """

    label: str
    across: float
    up: float
    kind: str
    words: str


@dataclass(frozen=True)
class Point:
    """One night of a trend: days since the first one, its value, that in words, and whether it went badly."""

    day: int
    value: float
    words: str
    bad: bool


def ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, about TICKS of them."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def density(values: Sequence[float], low: float, high: float, points: int = POINTS) -> list[float]:
    """A Gaussian kernel density at `points` places from `low` to `high`, scaled to a peak of 1.

    Bandwidth by Silverman's rule of thumb (1986, eq. 3.31), and never less than a hundredth of the picture.
    """
    ordered = sorted(values)
    floor = (high - low) / 100 or 1.0
    width = floor
    if len(ordered) > 1:
        quartiles = percentile(ordered, 0.75) - percentile(ordered, 0.25)
        spread = min(statistics.stdev(ordered), quartiles / 1.34) or statistics.stdev(ordered)
        width = max(floor, 0.9 * spread * len(ordered) ** -0.2)
    places = [low + (high - low) * number / (points - 1) for number in range(points)]
    heights = [sum(math.exp(-0.5 * ((place - value) / width) ** 2) for value in ordered) for place in places]
    peak = max(heights) or 1.0
    return [height / peak for height in heights]


def span_of(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The range of the picture: all but the slowest fiftieth of either side, which would squeeze the rest."""
    both = [*before, *after]
    low = min(both)
    high = max(percentile(side, 0.98) for side in (before, after) if side)
    margin = (high - low) * 0.14 or abs(high) * 0.05 or 1.0
    return max(0.0, low - margin) if low >= 0 else low - margin, high + margin


def distribution(title: str, unit: str, before: Sequence[float], after: Sequence[float]) -> str:
    """Both sides over one axis: shape, each value as a tick below it, median line with its number."""
    if not before and not after:
        return ""
    low, high = span_of(before, after)
    scale = Scale(low, high)
    sides = [("before", before), ("after", after)]
    parts = [_side(scale, name, values, 14 + ROW * number) for number, (name, values) in enumerate(sides)]
    height = 14 + ROW * 2 + AXIS
    label = f"{title}: {_medians(before, after, unit)}"
    return _svg(height, label, [*_axis(scale, 14 + ROW * 2, unit), *parts])


def _side(scale: Scale, name: str, values: Sequence[float], top: float) -> str:
    base = top + ROW - 14
    text = f'<text class="name" x="{LEFT - 8}" y="{base - 4}" text-anchor="end">{name}</text>'
    if not values:
        return text + f'<text class="none" x="{LEFT}" y="{base - 4}">not measured</text>'
    heights = density(values, scale.low, scale.high)
    step = (scale.right - scale.left) / (len(heights) - 1)
    outline = " ".join(
        f"{scale.left + step * number:.1f},{base - 34 * height:.1f}" for number, height in enumerate(heights)
    )
    shape = f'<polygon class="shape {name}" points="{scale.left},{base} {outline} {scale.right},{base}"/>'
    middle = scale(statistics.median(values))
    anchor = "end" if middle > (scale.left + scale.right) / 2 else "start"
    shift = -4 if anchor == "end" else 4
    number = three_digits(statistics.median(values))
    median = (
        f'<line class="median {name}" x1="{middle:.1f}" x2="{middle:.1f}" y1="{base - 38}" y2="{base}"/>'
        f'<text class="value" x="{middle + shift:.1f}" y="{base - 30}" text-anchor="{anchor}">{number}</text>'
    )
    return text + shape + _rugs(scale, name, values, base) + median + _beyond(scale, values, base)


def _rugs(scale: Scale, name: str, values: Sequence[float], base: float) -> str:
    """Each value as a tick; of very many, evenly chosen ones."""
    ordered = sorted(values)
    stride = max(1, math.ceil(len(ordered) / MOST_RUGS))
    path = "".join(f"M{scale(value):.1f} {base + 2}v5" for value in ordered[::stride] if value <= scale.high)
    return f'<path class="rug {name}" d="{path}"/>'


def _beyond(scale: Scale, values: Sequence[float], base: float) -> str:
    count = sum(value > scale.high for value in values)
    if not count:
        return ""
    return f'<text class="none" x="{scale.right}" y="{base - 36}" text-anchor="end">+{count} slower →</text>'


def _axis(scale: Scale, top: float, unit: str) -> list[str]:
    parts = [f'<line class="axis" x1="{scale.left}" x2="{scale.right}" y1="{top}" y2="{top}"/>']
    for value in ticks(scale.low, scale.high):
        place = scale(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="10" y2="{top}"/>')
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{top + 13}" text-anchor="middle">'
            f"{three_digits(value)}</text>"
        )
    if unit:
        words = f'text-anchor="end">{escape(unit)}</text>'
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{top + 13}" {words}')
    return parts


def _medians(before: Sequence[float], after: Sequence[float], unit: str) -> str:
    told = [
        f"median {three_digits(statistics.median(side))} {unit} {name}"
        for name, side in (("before", before), ("after", after))
        if side
    ]
    return ", ".join(told)


def intervals(rows: Sequence[Interval]) -> str:
    """Each ratio as a dot on its interval, and its limit as a mark."""
    if not rows:
        return ""
    values = [value for row in rows for value in (row.ratio, row.low, row.high, row.limit)]
    low, high = min([0.9, *values]), min(max([1.1, *values]), 3.0)
    margin = (high - low) * 0.04
    scale = Scale(max(0.0, low - margin), high + margin, left=128)
    bottom = 8 + 22 * len(rows)
    parts = _axis(scale, bottom, "")
    one = scale(1.0)
    parts.append(f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="6" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        parts.append(_interval(scale, row, 20 + 22 * number))
    label = "; ".join(f"{row.label} {row.ratio:.3f}, {row.verdict}" for row in rows)
    return _svg(bottom + AXIS - 6, f"Ratio after / before with interval: {label}", parts)


def _interval(scale: Scale, row: Interval, y: float) -> str:
    limit = scale(row.limit)
    return (
        f'<g class="v-{escape(row.verdict)}"><text class="name" x="120" y="{y + 4}" text-anchor="end">'
        f"{escape(row.label)}</text>"
        f'<line class="bar" x1="{scale(row.low):.1f}" x2="{scale(row.high):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="dot" cx="{scale(row.ratio):.1f}" cy="{y}" r="4"/></g>'
        f'<path class="limit" d="M{limit:.1f} {y - 8}v16"/>'
    )


def timeline(spans: Sequence[Span]) -> str:
    """One line for each step, where it began and how long it took."""
    if not spans:
        return ""
    whole = max(span.began_s + span.took_s for span in spans) or 1.0
    scale = Scale(0.0, whole, left=148, right=WIDTH - 44)
    bottom = 8 + 18 * len(spans)
    parts = _axis(scale, bottom, "seconds")
    for number, span in enumerate(spans):
        y = 8 + 18 * number
        start, end = scale(span.began_s), scale(span.began_s + span.took_s)
        width = max(2.0, end - start)
        parts.append(
            f'<g class="s-{escape(span.state)}"><text class="name" x="140" y="{y + 12}" text-anchor="end">'
            f'{escape(span.label)}</text><rect class="step" x="{start:.1f}" y="{y + 3}" width="{width:.1f}"'
            f' height="11" rx="2"/><text class="tick" x="{start + width + 4:.1f}" y="{y + 12}">'
            f"{duration(span.took_s)}</text></g>"
        )
    label = ", ".join(f"{span.label} {duration(span.took_s)}" for span in spans)
    return _svg(bottom + AXIS - 6, f"Timeline: {label}", parts)


def trend(title: str, points: Sequence[Point], days: int, *, bars: bool = False) -> str:
    """One value a night from the first to `days` later: a line with dots, or bars from 0."""
    if not points:
        return ""
    values = [point.value for point in points]
    low, high = (0.0 if bars else min(values)), max(values)
    if not bars:
        missing = max(0.0, LEAST_SPAN * high - (high - low)) / 2
        low, high = low - missing, high + missing
    across, up = Scale(0.0, days, 6, TREND[0] - 6), Scale(low, high, TREND[1] - 6, 6)
    places = [(f"{across(point.day):.1f}", f"{up(point.value):.1f}") for point in points]
    parts = []
    if not bars:
        parts.append(f'<polyline class="line" points="{" ".join(map(",".join, places))}"/>')
    for point, (x, y) in zip(points, places, strict=True):
        kind = "bad" if point.bad else "good"
        shape = f'<path class="{kind}" d="M{x} {TREND[1] - 4}V{y}"/>' if bars else ""
        shape = shape or f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>'
        parts.append(f"<g><title>{escape(point.words)}</title>{shape}</g>")
    return _svg(TREND[1], f"{title}: {'; '.join(point.words for point in points)}", parts, TREND[0], "trend")


def pareto(across: str, up: str, points: Sequence[Place], most: float | None = None) -> str:
    """Each configuration by two respects: less is better across, more is better up.

    + across, up: what the axes show, with the unit
    + most: what may be across at most, as a line; None: no limit
    """
    if not points:
        return ""
    high_x = max([*(point.across for point in points), most or 0.0])
    low_y, high_y = min(point.up for point in points), max(point.up for point in points)
    margin = (high_y - low_y) * 0.12 or high_y * 0.05 or 1.0
    x = Scale(0.0, high_x * 1.08 or 1.0)
    y = Scale(max(0.0, low_y - margin), high_y + margin, PARETO - AXIS, 14)
    bottom = PARETO - AXIS
    parts = _axis(x, bottom, "")
    for value in ticks(y.low, y.high):
        place = y(value)
        parts.append(f'<line class="grid" x1="{x.left}" x2="{x.right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.left - 6}" y="{place + 3:.1f}" text-anchor="end">'
            f"{three_digits(value)}</text>"
        )
    parts.append(
        f'<text class="tick" x="{x.right}" y="{PARETO - 2}" text-anchor="end">{escape(across)}</text>'
    )
    parts.append(f'<text class="tick" x="{x.left}" y="9">{escape(up)}</text>')
    if most is not None:
        parts.append(f'<path class="limit" d="M{x(most):.1f} 14V{bottom}"/>')
    parts += [_place(x, y, point) for point in points]
    label = "; ".join(point.words for point in points)
    return _svg(PARETO + 4, f"{up} against {across}: {label}", parts)


def _place(x: Scale, y: Scale, point: Place) -> str:
    """A dot with its name, on the side that has room."""
    left, top = x(point.across), y(point.up)
    anchor, shift = ("end", -7) if left > (x.left + x.right) / 2 else ("start", 7)
    return (
        f'<g class="p-{escape(point.kind)}"><title>{escape(point.words)}</title>'
        f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="4"/>'
        f'<text class="tick" x="{left + shift:.1f}" y="{top + 3:.1f}" text-anchor="{anchor}">'
        f"{escape(point.label)}</text></g>"
    )


def _svg(height: float, label: str, parts: Sequence[str], width: float = WIDTH, name: str = "plot") -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
