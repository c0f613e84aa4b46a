"""Line charts as SVG, with nothing but the standard library; deploy/benchmark uses this file as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 76, 150, 34, 48
COLOURS = ("#1f5fa8", "#c8501e", "#3c8a3c", "#7b4aa0", "#8a6d1f", "#4a8f9c", "#a83c6c", "#555555")
TICKS_MAX = 8


@dataclass(frozen=True)
class Series:
    """One line: points in the order in which they are joined."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart. A logarithmic axis leaves out what is not above zero. ``x_names`` replaces the ticks of x."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    x_names: Sequence[tuple[float, str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Axis:
    """Maps values from ``low`` to ``high`` onto pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within the axis, at most ``TICKS_MAX`` or so."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > TICKS_MAX // 2 else (1, 2, 5)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / TICKS_MAX
            power = 10 ** math.floor(math.log10(rough))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
            values = [step * number for number in range(math.ceil(self.low / step), int(self.high / step) + 1)]
        return [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


def axis(values: Sequence[float], start: float, end: float, log: bool) -> Axis:
    """An axis that holds the values: from zero if linear, with some room above."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if log:
        return Axis(low / 1.15, high * 1.15, start, end, True)
    return Axis(min(low, 0.0), high * 1.05 if high > 0 else 1.0, start, end, False)


def number(value: float) -> str:
    """As a tick shows it: 1.5M, 20k, 0.2."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def svg(panels: Sequence[Panel]) -> str:
    """The panels below each other, as one SVG document."""
    height = HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number_, panel in enumerate(panels):
        parts.append(f'<g transform="translate(0 {number_ * HEIGHT})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _visible(panel: Panel, series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in series.points if (x > 0 or not panel.x_log) and (y > 0 or not panel.y_log)]


def _panel(panel: Panel) -> list[str]:
    drawn = [(series, _visible(panel, series)) for series in panel.series]
    points = [point for _, visible in drawn for point in visible]
    across = axis([x for x, _ in points] + [x for x, _ in panel.x_names], LEFT, WIDTH - RIGHT, panel.x_log)
    up = axis([y for _, y in points], HEIGHT - BOTTOM, TOP, panel.y_log)
    parts = [_text(LEFT, 20, panel.title, size=13, weight="bold")]
    for value, label in panel.x_names or [(value, number(value)) for value in across.ticks()]:
        x = across.at(value)
        parts.append(_line(x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 15, label, anchor="middle"))
    for value in up.ticks():
        y = up.at(value)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 6, y + 4, number(value), anchor="end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, panel.x_label, anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(16 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(panel.y_label)}</text>'
    )
    for index, (series, visible) in enumerate(drawn):
        colour = COLOURS[index % len(COLOURS)]
        where = [(across.at(x), up.at(y)) for x, y in visible]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in where]
        parts.append(_text(WIDTH - RIGHT + 10, TOP + 10 + 16 * index, series.name, colour=colour))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, weight: str = "", colour: str = "#222"
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{bold}>'
        f"{escape(text)}</text>"
    )
