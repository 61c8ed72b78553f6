"""A model's score over the heights, as SVG. Pure.

Lengths across are percentages and those down are pixels, so that the plot fills any width and its
letters stay as large as the page's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from sidechain.pages.markup import el
from sidechain.pages.values import colour, distinct, number

HEIGHT: Final = 260
TOP: Final = 14
BOTTOM: Final = 30
AXIS: Final = 64


@dataclass(frozen=True, slots=True)
class Point:
    """state: confirmed, provisional or withdrawn. who: the trainer's key."""

    height: int
    score: int
    state: str
    who: str
    says: str
    href: str


def plot(points: Sequence[Point], tip: int) -> Element:
    """points: by height, the first confirmed. The line is the score that counted at a height."""
    scale = _Scale(points, tip)
    scores = ticks(scale.low, scale.high)
    grid, labels = [], []
    for score, says in zip(scores, distinct(scores), strict=True):
        y = scale.y(score)
        grid.append(el("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid"))
        labels.append(el("text", says, x=AXIS - 10, y=y, dy="0.32em", text_anchor="end"))
    below = []
    for height in ticks(scale.first, scale.last, whole=True):
        at = scale.part(height)
        anchor = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
        x = scale.x(height)
        below.append(el("text", number(int(height)), x=x, y=HEIGHT - 8, text_anchor=anchor))
    drawn = el(
        "svg",
        grid,
        _line(points, tip, scale),
        [_mark(each, scale) for each in points],
        below,
        class_="plot",
        height=HEIGHT,
        role="img",
        aria_label="Score over height; lower is better",
    )
    axis = el("svg", labels, class_="axis", width=AXIS, height=HEIGHT, aria_hidden="true")
    return el("div", axis, drawn, class_="plotted")


class _Scale:
    def __init__(self, points: Sequence[Point], tip: int) -> None:
        self.first, self.last = points[0].height, max(tip, points[-1].height)
        scores = [each.score for each in points]
        room = max(1.0, (max(scores) - min(scores)) * 0.08)
        self.low, self.high = max(0.0, min(scores) - room), max(scores) + room

    def part(self, height: float) -> float:
        return (height - self.first) / max(1, self.last - self.first)

    def x(self, height: float) -> str:
        return f"{100 * self.part(height):.3f}%"

    def y(self, score: float) -> str:
        part = (self.high - score) / (self.high - self.low)
        return f"{TOP + part * (HEIGHT - TOP - BOTTOM):.1f}"


def _line(points: Sequence[Point], tip: int, scale: _Scale) -> list[Element]:
    """Level from one confirmed version to the next, and down there."""
    steps = [each for each in points if each.state != "withdrawn"]
    drawn = []
    for here, following in zip(steps, [*steps[1:], None], strict=True):
        kind = f"step {here.state}"
        ends = scale.last if following is None else following.height
        y, x = scale.y(here.score), scale.x(ends)
        drawn.append(el("line", x1=scale.x(here.height), x2=x, y1=y, y2=y, class_=kind))
        if following is not None:
            kind = f"step {following.state}"
            drawn.append(el("line", x1=x, x2=x, y1=y, y2=scale.y(following.score), class_=kind))
    return drawn


def _mark(point: Point, scale: _Scale) -> Element:
    fill = colour(point.who) if point.state == "confirmed" else None
    place = {"cx": scale.x(point.height), "cy": scale.y(point.score)}
    return el(
        "a",
        el("title", point.says),
        el("circle", r=14, class_="touch", **place),
        el("circle", r=5, class_=f"mark {point.state}", fill=fill, **place),
        href=point.href,
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """At most six round numbers between two."""
    span = max(high - low, 1e-9)
    step = 10.0 ** len(str(int(span))) / 1000
    sizes = [step * factor * 10**power for power in range(4) for factor in (1, 2, 5)]
    for size in sizes:
        if span / size > 5 or (whole and size < 1):
            continue
        start = -(-low // size)
        found = [(start + i) * size for i in range(7)]
        return [each for each in found if each <= high]
    return []
