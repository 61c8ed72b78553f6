"""How soon answers came: the part of the demo's report about latency. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from regtest.record import COMPLETE, LEFT, Answer, Record
from sidechain.pages.markup import Child, Row, badge, el, said, table
from sidechain.pages.plot import Axis, Mark, Series, in_unit, integers, lines
from sidechain.pages.values import number, sats, swatch, tone

LEAST: Final = 0.1
"""Milliseconds: what is sooner came together."""
HEIGHT: Final = 220
SMALL: Final = 150

Heard = Sequence[tuple[int, Answer]]
"""With each its number in the table, from 0: those of which something came."""


def answers(record: Record) -> list[Element]:
    heard = [(index, each) for index, each in enumerate(record.answers) if each.arrived]
    plots = [_progress(heard), _gaps(heard), _legend(heard)] if heard else []
    return [*(part for each in plots for part in each), _table(record.answers)]


def _legend(heard: Heard) -> tuple[Element, ...]:
    named = [el("span", swatch(tone(index)), f"answer {index + 1}") for index, _ in heard]
    return (el("p", named, class_="legend"),)


def _progress(heard: Heard) -> tuple[Element, ...]:
    """Tokens over seconds: where a line begins is the first token, how steep it is the speed."""
    plots = [
        el("figure", el("figcaption", _caption(index, each)), _line(index, each))
        for index, each in heard
    ]
    says = "Tokens over the seconds since the question, from the first token on. Filled dots are "
    about = el("p", says, "top-ups, hollow ones broken connections.", class_="told")
    return about, el("div", plots, class_="multiples")


def _caption(index: int, answer: Answer) -> list[Child]:
    first = "" if answer.first is None else f": first token after {1000 * answer.first:.0f} ms"
    return [swatch(tone(index)), el("b", f"answer {index + 1}"), first]


def _line(index: int, answer: Answer) -> Element:
    ends = max(answer.arrived[-1][0], 1e-3)
    marks = [
        Mark(after, _tokens(answer, after), f"mark {kind}", f"{says}, after {after:.2f} s")
        for kind, after, says in _happened(answer)
        if after <= ends
    ]
    label = f"Tokens of answer {index + 1} that had come, over the seconds since its question"
    drawn = Series(f"answer {index + 1}", tone(index), [answer.arrived])
    across = Axis(0.0, ends, says=in_unit(" s"))
    up = Axis(0.0, max(1, answer.arrived[-1][1]), whole=True, says=integers)
    return lines([drawn], across, up, label, marks=marks, height=SMALL)


def _happened(answer: Answer) -> list[tuple[str, float, str]]:
    paid = [("topup", each.after, f"{sats(each.msat)} sat topped up") for each in answer.topups]
    return paid + [("broken", after, "The connection broke") for after in answer.interrupted]


def _tokens(answer: Answer, after: float) -> int:
    return max((tokens for at, tokens in answer.arrived if at <= after), default=0)


def _gaps(heard: Heard) -> tuple[Element, ...]:
    """Which part of the pieces of text came how soon after the one before."""
    series = []
    for index, each in heard:
        gaps = sorted(max(LEAST, 1000 * gap) for gap in each.gaps)
        run = [(100 * (place + 0.5) / len(gaps), gap) for place, gap in enumerate(gaps)]
        series.append(Series(f"answer {index + 1}", tone(index), [run]))
    values = [gap for each in series for run in each.runs for _, gap in run]
    if not values:
        return ()
    up = Axis(min(values) / 1.2, max(values) * 1.2, log=True, says=_waits)
    label = "Time from one piece of text to the next: part of them within so many milliseconds"
    drawn = lines(series, Axis(0.0, 100.0, says=in_unit("%")), up, label, height=HEIGHT)
    says = "How many pieces of text came how soon after the one before: the middle of a line is "
    return el("p", says, "the median, its right end the longest wait.", class_="told"), drawn


def _table(found: Sequence[Answer]) -> Element:
    rows = []
    for index, each in enumerate(found):
        gaps = sorted(1000 * gap for gap in each.gaps)
        cells: tuple[Child, ...] = (
            [swatch(tone(index)), number(index + 1)],
            said(each.question, 120),
            [said(each.model, 60), _weights(each)],
            "–" if each.first is None else f"{1000 * each.first:.0f} ms",
            number(each.output_tokens),
            _speed(each),
            f"{_part(gaps, 0.5)} / {_part(gaps, 0.99)}",
            number(len(each.topups)),
            sats(each.spent_msat),
            _ended(each.ended),
        )
        rows.append(Row(str(index), cells))
    columns = (
        *("#Answer", "Question", "~Model", "#First token", "#Tokens", "#Tokens/s"),
        *("#Median / 99 % ms", "#Top-ups", "#Sat", "Ended"),
    )
    return table(columns, rows, "Nothing was asked.")


def _weights(answer: Answer) -> Element | None:
    if answer.weights is None:
        return None
    return el("small", " ", el("span", said(answer.weights, 8), class_="hash"))


def _speed(answer: Answer) -> str:
    """Tokens a second from the first on, waits for a provider that was killed included."""
    if len(answer.arrived) < 2:
        return "–"
    (begins, first), (ends, last) = answer.arrived[0], answer.arrived[-1]
    return f"{(last - first) / (ends - begins):.0f}" if ends > begins else "–"


def _waits(milliseconds: Sequence[float]) -> list[str]:
    return [f"{each:g} ms" if each < 1000 else f"{each / 1000:g} s" for each in milliseconds]


def _part(gaps: Sequence[float], part: float) -> str:
    return f"{gaps[min(len(gaps) - 1, int(part * len(gaps)))]:.1f}" if gaps else "–"


def _ended(how: str) -> Element:
    kinds = {COMPLETE: badge("confirmed", COMPLETE), LEFT: badge("provisional", "left by the user")}
    return kinds[how] if how in kinds else el("code", said(how, 60), class_="bad")
