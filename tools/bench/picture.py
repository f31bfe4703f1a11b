"""Pareto fronts as a picture: panels with logarithmic axes, labelled points and a line, as SVG.

Owns: how they are drawn. Pure; knows no packer. Colours are middle ones and the ground is left
out, so that it can be read on white and on black.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from .report import front

WIDTH, PANEL_HEIGHT, HEAD = 880, 330, 34
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 44  # of a panel, around the plot
FONT_PX, LETTER_PX = 10, 5.8
TEXT, LINE = "#768390", "#768390"
COLOURS = {"lmfs": "#d9622b", "seek": "#3f88c5", "whole": "#8d8d99"}

_Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    label: str
    kind: str  # a key of COLOURS
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """More y is better, and more x unless `less_is_better`. All values are positive."""

    title: str
    x_title: str
    y_title: str
    points: Sequence[Point]
    x_unit: Callable[[float], str]
    less_is_better: bool = False

    def front(self) -> list[Point]:
        sign = -1 if self.less_is_better else 1
        return [self.points[i] for i in front([(sign * p.x, p.y) for p in self.points])]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in between: the fewest kinds that give three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [round(step * 10.0**power, 9) for power in powers for step in steps]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) >= 3:
            break
    return inside


def svg(panels: Sequence[Panel], kinds: dict[str, str], caption: str) -> str:
    """Panels in two columns under a legend.

    kinds: what each kind of point is called in the legend
    """
    height = HEAD + PANEL_HEIGHT * math.ceil(len(panels) / 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label={quoteattr(caption)} font-size="{FONT_PX}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif">',
        f"<title>{escape(caption)}</title>",
        *_legend(kinds),
    ]
    for number, panel in enumerate(panels):
        left, top = number % 2 * WIDTH / 2, HEAD + number // 2 * PANEL_HEIGHT
        lines.append(f'<g transform="translate({left:g} {top:g})">')
        lines += _Plot(panel).draw()
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend(kinds: dict[str, str]) -> Iterator[str]:
    at = float(LEFT)
    for kind, name in kinds.items():
        yield _marker(kind, at, 14)
        yield _text(at + 9, 14 + FONT_PX * 0.35, name, size=11)
        at += 9 + len(name) * 6 + 26
    yield f'<path d="M{at} 14h22" stroke="{LINE}" stroke-dasharray="4 3"/>'
    yield _text(at + 28, 14 + FONT_PX * 0.35, "nothing is better in both", size=11)


def _marker(kind: str, x: float, y: float, title: str = "") -> str:
    colour = COLOURS[kind]
    inside = f"<title>{escape(title)}</title>" if title else ""
    if kind == "lmfs":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{inside}</circle>'
    if kind == "seek":
        at = f'x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"'
        return f'<rect {at} fill="{colour}">{inside}</rect>'
    path = f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6">{inside}</path>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = TEXT, size: int = FONT_PX
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        f'font-size="{size}">{escape(text)}</text>'
    )


class _Plot:
    """One panel, its upper left corner at 0, 0."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._right, self._bottom = WIDTH / 2 - RIGHT, PANEL_HEIGHT - BOTTOM
        self._x = _range([p.x for p in panel.points])
        self._y = _range([p.y for p in panel.points])

    def draw(self) -> list[str]:
        panel = self._panel
        lines = [_text(LEFT, TOP - 12, panel.title, size=12)]
        lines += self._axes()
        corners = self._corners()
        if corners:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
            lines.append(f'<path d="{path}" fill="none" stroke="{LINE}" stroke-dasharray="4 3"/>')
        for point in panel.points:
            title = f"{point.label}: {point.y:.3g}, {panel.x_unit(point.x)}"
            lines.append(_marker(point.kind, *self._place(point), title))
        return [*lines, *self._labels()]

    def _place(self, point: Point) -> tuple[float, float]:
        return (
            LEFT + _share(point.x, self._x) * (self._right - LEFT),
            self._bottom - _share(point.y, self._y) * (self._bottom - TOP),
        )

    def _corners(self) -> list[tuple[float, float]]:
        """The line of the front, which falls first and then goes on to the next point."""
        places = [self._place(p) for p in self._panel.front()]
        turns = [(before[0], after[1]) for before, after in itertools.pairwise(places)]
        alternating = itertools.chain.from_iterable(itertools.zip_longest(places, turns))
        return [corner for corner in alternating if corner is not None]

    def _axes(self) -> Iterator[str]:
        panel = self._panel
        for tick in ticks(*self._x):
            at = LEFT + _share(tick, self._x) * (self._right - LEFT)
            path = f"M{at:.1f} {TOP}V{self._bottom}"
            yield f'<path d="{path}" stroke="{LINE}" stroke-opacity=".2"/>'
            yield _text(at, self._bottom + 14, panel.x_unit(tick), anchor="middle")
        for tick in ticks(*self._y):
            at = self._bottom - _share(tick, self._y) * (self._bottom - TOP)
            path = f"M{LEFT} {at:.1f}H{self._right}"
            yield f'<path d="{path}" stroke="{LINE}" stroke-opacity=".2"/>'
            yield _text(LEFT - 5, at + 3.5, f"{tick:g}", anchor="end")
        frame = f"M{LEFT} {TOP}V{self._bottom}H{self._right}"
        yield f'<path d="{frame}" fill="none" stroke="{LINE}"/>'
        yield _text((LEFT + self._right) / 2, self._bottom + 30, panel.x_title, anchor="middle")
        middle = (TOP + self._bottom) / 2
        title = _text(12, middle, panel.y_title, anchor="middle")
        yield f'<g transform="rotate(-90 12 {middle:.1f})">{title}</g>'

    def _labels(self) -> Iterator[str]:
        """Each at the nearest free place around its point; those of the front choose first."""
        best = self._panel.front()
        rank = sorted(self._panel.points, key=lambda p: (p not in best, p.kind != "lmfs"))
        avoided = [_around(*self._place(p), 5, 5) for p in rank]
        for (x, y), (to_x, to_y) in itertools.pairwise(self._corners()):
            avoided.append((min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1))
        taken: list[_Box] = []
        for point in rank:
            x, y = self._place(point)
            width, height = len(point.label) * LETTER_PX, FONT_PX
            candidates = list(_candidates(x, y, width, height))
            box = min(candidates, key=lambda b: self._cost(b, [*avoided, *taken]))
            taken.append(box)
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if math.dist(middle, (x, y)) > width / 2 + 14:
                edge = max(box[0], min(x, box[2])), max(box[1], min(y, box[3]))
                path = f"M{x:.1f} {y:.1f}L{edge[0]:.1f} {edge[1]:.1f}"
                yield f'<path d="{path}" stroke="{COLOURS[point.kind]}" stroke-opacity=".5"/>'
            yield _text(box[0], box[3] - 1.5, point.label, colour=COLOURS[point.kind])

    def _cost(self, box: _Box, taken: Sequence[_Box]) -> float:
        """Square pixels that it would cover, or lie outside of the panel."""
        whole = (box[2] - box[0]) * (box[3] - box[1])
        outside = whole - _overlap(box, (LEFT, TOP - 8, self._right + RIGHT, self._bottom))
        return 4 * outside + sum(_overlap(box, other) for other in taken)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values take, on a logarithmic axis."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    margin = max(1.08, (high / low) ** 0.08)
    return low / margin, high * margin


def _share(value: float, span: tuple[float, float]) -> float:
    return math.log(value / span[0]) / math.log(span[1] / span[0])


def _around(x: float, y: float, dx: float, dy: float) -> _Box:
    return x - dx, y - dy, x + dx, y + dy


def _candidates(x: float, y: float, width: float, height: float) -> Iterator[_Box]:
    """Places for a label, the best first; `min` takes the first of equals."""
    for far in (7.0, 14.0, 24.0, 36.0, 50.0):
        sides = (x + far, x - far - width, x - width / 2)
        heights = (y - height / 2, y - far - height / 2, y + far - height / 2)
        for top in heights:
            for left in sides:
                if left == sides[2] and top == heights[0]:
                    continue  # on the point itself
                yield left, top, left + width, top + height


def _overlap(one: _Box, other: _Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
