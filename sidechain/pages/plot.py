"""Plots as SVG: a model's score over the heights, and lines over whatever runs. Pure.

Lengths across are percentages and those down are pixels, so that a plot fills any width and its
letters stay as large as the page's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from sidechain.pages.markup import el
from sidechain.pages.values import distinct, number

HEIGHT: Final = 260
TOP: Final = 14
BOTTOM: Final = 30
AXIS: Final = 64
WIDTH: Final = 1000
"""Of the drawing inside, which is stretched to what the page gives."""


def integers(values: Sequence[float]) -> list[str]:
    return [number(int(each)) for each in values]


def in_unit(unit: str) -> Callable[[Sequence[float]], list[str]]:
    return lambda values: [f"{each:g}{unit}" for each in values]


@dataclass(frozen=True, slots=True)
class Axis:
    """From low to high. whole: only whole numbers are named. log: each ten times is as long as
    the next; low is above 0 then. says: what stands beside the ticks."""

    low: float
    high: float
    whole: bool = False
    log: bool = False
    says: Callable[[Sequence[float]], list[str]] = distinct

    def part(self, value: float) -> float:
        """0 at its low end, 1 at its high one."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return (value - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = (1, 2, 5) if len(powers) <= 3 else (1,)
            found = [factor * 10.0**power for power in powers for factor in few]
            return [each for each in found if self.low <= each <= self.high]
        return ticks(self.low, self.high, whole=self.whole)


@dataclass(frozen=True, slots=True)
class Point:
    """state: confirmed, provisional or withdrawn. fill: the colour of who made it."""

    height: int
    score: float
    state: str
    fill: str
    says: str
    href: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line. runs: its pieces, where it is known, each by x. stepped: level up to the next."""

    name: str
    colour: str
    runs: Sequence[Sequence[tuple[float, float]]]
    stepped: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that says something. kind: its class."""

    x: float
    y: float
    kind: str
    says: str
    fill: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A line down at x, with a word at its top."""

    x: float
    label: str
    says: str


def plot(points: Sequence[Point], tip: int) -> Element:
    """points: by height, the first confirmed. The line is the score that counted at a height."""
    scores = [each.score for each in points]
    room = (max(scores) - min(scores)) * 0.08 or max(scores) * 0.01 or 1.0
    last = max(tip, points[-1].height)
    across = Axis(points[0].height, last, whole=True, says=integers)
    frame = _Frame(across, Axis(max(0.0, min(scores) - room), max(scores) + room), HEIGHT)
    drawn = [*_steps(points, frame), *(_point(each, frame) for each in points)]
    return frame.around(drawn, "Score over height; lower is better")


def lines(
    series: Iterable[Series],
    across: Axis,
    up: Axis,
    label: str,
    *,
    rules: Iterable[Rule] = (),
    marks: Iterable[Mark] = (),
    height: int = HEIGHT,
) -> Element:
    """label: what is shown, for those who do not see it."""
    frame = _Frame(across, up, height)
    drawn = [
        *(_rule(each, frame) for each in rules),
        _drawing([_path(each, frame) for each in series], height),
        *(_mark(each, frame) for each in marks),
    ]
    return frame.around(drawn, label)


@dataclass(frozen=True, slots=True)
class _Frame:
    across: Axis
    up: Axis
    height: int

    def x(self, value: float) -> str:
        return f"{100 * self.across.part(value):.3f}%"

    def y(self, value: float) -> str:
        return f"{TOP + (1 - self.up.part(value)) * (self.height - TOP - BOTTOM):.1f}"

    def around(self, drawn: Sequence[Element], label: str) -> Element:
        """What is drawn, with a grid behind it and the axes beside and below."""
        grid, labels, below = [], [], []
        values = self.up.ticks()
        for value, says in zip(values, self.up.says(values), strict=True):
            y = self.y(value)
            grid.append(el("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid"))
            labels.append(el("text", says, x=AXIS - 10, y=y, dy="0.32em", text_anchor="end"))
        values = self.across.ticks()
        for value, says in zip(values, self.across.says(values), strict=True):
            at = self.across.part(value)
            anchor = "start" if at < 0.04 else "end" if at > 0.96 else "middle"
            y = str(self.height - 8)
            below.append(el("text", says, x=self.x(value), y=y, text_anchor=anchor))
        shown = el(
            "svg",
            [*grid, *drawn, *below],
            class_="plot",
            height=self.height,
            role="img",
            aria_label=label,
        )
        axis = el("svg", labels, class_="axis", width=AXIS, height=self.height, aria_hidden="true")
        return el("div", axis, shown, class_="plotted")


def _steps(points: Sequence[Point], frame: _Frame) -> list[Element]:
    """Level from one confirmed version to the next, and down there."""
    steps = [each for each in points if each.state != "withdrawn"]
    drawn = []
    for index, here in enumerate(steps):
        following = steps[index + 1] if index + 1 < len(steps) else None
        kind = f"step {here.state}"
        ends = frame.across.high if following is None else following.height
        y, x = frame.y(here.score), frame.x(ends)
        drawn.append(el("line", x1=frame.x(here.height), x2=x, y1=y, y2=y, class_=kind))
        if following is not None:
            kind = f"step {following.state}"
            drawn.append(el("line", x1=x, x2=x, y1=y, y2=frame.y(following.score), class_=kind))
    return drawn


def _point(point: Point, frame: _Frame) -> Element:
    fill = point.fill if point.state == "confirmed" else None
    mark = Mark(point.height, point.score, f"mark {point.state}", point.says, fill)
    return el("a", *_mark(mark, frame), href=point.href)


def _mark(mark: Mark, frame: _Frame) -> Element:
    place = {"cx": frame.x(mark.x), "cy": frame.y(mark.y)}
    return el(
        "g",
        el("title", mark.says),
        el("circle", r=14, class_="touch", **place),
        el("circle", r=5, class_=mark.kind, fill=mark.fill, **place),
    )


def _rule(rule: Rule, frame: _Frame) -> Element:
    x = frame.x(rule.x)
    return el(
        "g",
        el("title", rule.says),
        el("line", x1=x, x2=x, y1=TOP, y2=frame.height - BOTTOM, class_="rule"),
        el("text", rule.label, x=x, y=TOP - 3, text_anchor="middle"),
    )


def _drawing(paths: Sequence[Element], height: int) -> Element:
    box = f"0 0 {WIDTH} {height}"
    return el("svg", paths, viewBox=box, preserveAspectRatio="none", width="100%", height=height)


def _path(series: Series, frame: _Frame) -> Element:
    pieces = []
    for run in series.runs:
        for index, (x, y) in enumerate(run):
            across, up = f"{WIDTH * frame.across.part(x):.1f}", frame.y(y)
            if index == 0:
                pieces.append(f"M{across} {up}")
            else:
                pieces.append(f"H{across}V{up}" if series.stepped else f"L{across} {up}")
    drawn = "".join(pieces)
    return el("path", el("title", series.name), d=drawn, class_="series", stroke=series.colour)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """At most seven round numbers between two."""
    span = max(high - low, 1.0 if whole else 1e-9)
    step = 10.0 ** (math.floor(math.log10(span)) - 2)
    sizes = [step * factor * 10**power for power in range(5) for factor in (1, 2, 5)]
    for size in sizes:
        if span / size > 5 or (whole and size < 1):
            continue
        start = -(-low // size)
        found = [(start + i) * size for i in range(7)]
        return [each for each in found if each <= high]
    return []
