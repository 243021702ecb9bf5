"""Curves and comparisons as inline SVG: no script, colours from the style sheet. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ldmkit.evaluation.report.record import Curve
from ldmkit.evaluation.results import Figure

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
MOST_POINTS = 300
COLOURS = 6


@dataclass
class Band:
    """A curve and its 95 % interval (x, low, high) where there is one."""

    curve: Curve
    bounds: list[tuple[float, float, float]]


def line_chart(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str = "step",
    log: bool | None = None,
    bounds: Sequence[tuple[float, float, float]] = (),
) -> str:
    """A figure with one line a curve. `log` None chooses: a logarithmic axis for positive values over a wide range.

    `bounds` (x, low, high) are drawn as bars: the intervals of the first curve.
    """
    drawn = {name: curve for name, curve in curves.items() if curve}
    if not drawn:
        return ""
    values = [y for curve in drawn.values() for _, y in curve]
    if log is None:
        log = min(values) > 0 and max(values) / min(values) > 20
    values += [end for _, low, high in bounds for end in (low, high)]
    plane = _Plane([x for curve in drawn.values() for x, _ in curve], values, log=log and min(values) > 0)
    lines = "".join(_bar(bound, plane) for bound in bounds) + "".join(
        _line(curve, plane, index % COLOURS) for index, curve in enumerate(drawn.values())
    )
    legend = "".join(
        f'<span class="key k{index % COLOURS}">{escape(name) if len(drawn) > 1 else "last"} <b>{short(curve[-1][1])}</b></span>'
        for index, (name, curve) in enumerate(drawn.items())
    )
    return (
        f'<figure class="chart"><figcaption><strong>{escape(title)}</strong> {legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by {escape(x_label)}">'
        f"{plane.axes(x_label)}{lines}</svg></figure>"
    )


class _Plane:
    """Values to places in the drawing."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, log: bool) -> None:
        self.log = log
        self.x0, self.x1 = min(xs), max(xs)
        scaled = sorted(math.log10(y) if log else y for y in ys)
        low, high = scaled[0], scaled[-1]
        if not log and len(scaled) >= 40:  # the first steps of a loss would press all others flat
            high = min(high, scaled[int(0.99 * (len(scaled) - 1))] * 1.1 if scaled[-1] > 0 else high)
        margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
        self.y0, self.y1 = low - margin, high + margin

    def place(self, x: float, y: float) -> tuple[float, float]:
        value = math.log10(y) if self.log else y
        across = (x - self.x0) / ((self.x1 - self.x0) or 1)
        up = min(max((value - self.y0) / (self.y1 - self.y0), 0.0), 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> str:
        parts = []
        for value in self._y_ticks():
            _, y = self.place(self.x0, value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{short(value)}</text>')
        for value in ticks(self.x0, self.x1, 6):
            x, _ = self.place(value, 1.0)
            parts.append(f'<text class="tick mid" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}">{short(value)}</text>')
        parts.append(f'<text class="tick end" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
        return "".join(parts)

    def _y_ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.y0, self.y1, 5)
        steps = (1.0,) if self.y1 - self.y0 > 2.5 else (1.0, 2.0, 5.0)
        powers = range(math.floor(self.y0), math.ceil(self.y1) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        return [value for value in found if self.y0 <= math.log10(value) <= self.y1]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for a tick or a legend: 1.5k, 0.021, 3e-05."""
    size = abs(value)
    if size == 0:
        return "0"  # and never -0
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}"


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most `most` points, each the mean of its neighbours."""
    size = -(-len(curve) // most)
    if size <= 1:
        return curve
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def averaged(curve: Curve, reach: int) -> Curve:
    """Each value as the mean of up to `reach` neighbours on either side, as many on both: it neither lags nor leads."""
    out: Curve = []
    for index, (x, _) in enumerate(curve):
        near = min(reach, index, len(curve) - 1 - index)
        window = curve[index - near : index + near + 1]
        out.append((x, sum(y for _, y in window) / len(window)))
    return out


def _bar(bound: tuple[float, float, float], plane: _Plane) -> str:
    x, low, high = bound
    (left, bottom), (_, top) = plane.place(x, low), plane.place(x, high)
    return f'<line class="interval" x1="{left:.1f}" x2="{left:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>'


def _line(curve: Curve, plane: _Plane, colour: int) -> str:
    points = thinned(curve)
    if len(points) == 1:
        x, y = plane.place(*points[0])
        return f'<circle class="c{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if len(points) < 60:
        return f'<path class="c{colour}" d="{_path(points, plane)}"/>'
    smooth = averaged(points, len(points) // 30)
    return (
        f'<path class="c{colour} raw" d="{_path(points, plane)}"/><path class="c{colour}" d="{_path(smooth, plane)}"/>'
    )


def _path(points: Curve, plane: _Plane) -> str:
    places = (plane.place(x, y) for x, y in points)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def comparison(figure: Figure) -> str:
    """The figure and what stands beside it, as dots on one axis, the interval as a bar."""
    rows = [("this model", figure.value, "own"), *((name, value, "other") for name, value in figure.beside.items())]
    numbers = [value for _, value, _ in rows if math.isfinite(value)] + list(figure.interval or ())
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if figure.unit == "fraction":
        low, high = min(low, 0.0), max(high, 1.0) if figure.name != "conditioning-gain" else high
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def across(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.1f}%"

    out = []
    for name, value, kind in rows:
        bar = ""
        if kind == "own" and figure.interval:
            start, end = figure.interval
            bar = f'<line class="interval" x1="{across(start)}" x2="{across(end)}" y1="9" y2="9"/>'
        dot = f'<circle class="{kind}" cx="{across(value)}" cy="9" r="5"/>' if math.isfinite(value) else ""
        out.append(
            f'<div class="{kind}"><span>{escape(name)}</span><svg height="18" aria-hidden="true">'
            f'<line class="track" x1="0" x2="100%" y1="9" y2="9"/>{bar}{dot}</svg>'
            f"<b>{escape(figure.show(value))}</b></div>"
        )
    return f'<div class="comparison">{"".join(out)}</div>'
