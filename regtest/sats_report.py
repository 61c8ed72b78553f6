"""What everybody gained and lost while the demo ran: the part of its report about sats. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from channels.units import Msat
from regtest.record import Balance, Record, gains, parties
from sidechain.pages.markup import Child, Row, el, said, table
from sidechain.pages.plot import Axis, Rule, Series, in_unit, lines
from sidechain.pages.values import distinct, sats, swatch, tone

SMALL: Final = 150
"""Height of one party's plot."""
APART: Final = 0.025
"""Of the width: words closer than this would stand on each other."""


def sats_over_time(record: Record) -> list[Element]:
    found = {party: gains(record, party) for party in parties(record)}
    known = {party: runs for party, runs in found.items() if runs}
    if not known:
        return [el("p", "Nobody was asked what they hold.", class_="empty")]
    series = {
        party: Series(party, colour(record, party), _points(runs), stepped=True)
        for party, runs in known.items()
    }
    across = Axis(0.0, max(record.seconds, 1e-3), says=in_unit(" s"))
    label = "Sats gained and lost over time, by party"
    together = lines(series.values(), across, _up(series.values()), label, rules=_rules(record))
    legend = el(
        "p",
        [el("span", swatch(each.colour), said(party, 40)) for party, each in series.items()],
        el("span", "A line breaks off while a node is down. Dashes are the steps."),
        class_="legend",
    )
    small = [
        el(
            "figure",
            el("figcaption", swatch(each.colour), el("b", said(party, 40)), _gained(known[party])),
            lines(
                [each],
                across,
                _up([each]),
                f"Sats of {party} over time",
                rules=_rules(record, labels=False),
                height=SMALL,
            ),
        )
        for party, each in series.items()
    ]
    return [together, legend, _holdings(record), el("div", small, class_="multiples")]


def _gained(runs: Sequence[Sequence[tuple[float, Msat]]]) -> str:
    amount = runs[-1][-1][1]
    return f" {'+' if amount > 0 else ''}{sats(amount)} sat"


def _points(runs: Iterable[Sequence[tuple[float, Msat]]]) -> list[list[tuple[float, float]]]:
    """In sats, for the eye alone."""
    return [[(at, amount / 1000) for at, amount in run] for run in runs]


def _up(series: Iterable[Series]) -> Axis:
    values = [y for each in series for run in each.runs for _, y in run]
    room = (max(values) - min(values)) * 0.08 or 1.0
    return Axis(min(values) - room, max(values) + room, says=_minus)


def _minus(values: Sequence[float]) -> list[str]:
    return [each.replace("-", "\N{MINUS SIGN}") for each in distinct(values)]


def _rules(record: Record, *, labels: bool = True) -> list[Rule]:
    rules: list[Rule] = []
    free = 0.0
    for each in record.steps:
        part = each.at / max(record.seconds, 1e-9)
        label = str(each.number) if labels and part >= free else ""
        if label:
            free = part + APART
        rules.append(Rule(each.at, label, f"{each.number}. {each.text}"))
    return rules


def colour(record: Record, party: str) -> str:
    known = parties(record)
    return tone(known.index(party) if party in known else len(known))


def _holdings(record: Record) -> Element:
    """What each was given and has in the end; what is missing went to the miners."""
    last: dict[str, Balance] = {each.party: each for each in record.balances}
    rows, all_given, all_held = [], 0, 0
    is_known = all(each.msat is not None for each in last.values())
    for party in parties(record):
        given = sum(gift.msat for gift in record.gifts if gift.party == party)
        has = last[party].msat
        all_given += given
        all_held += has or 0
        shown: tuple[Child, ...] = ("unknown", "unknown")
        if has is not None:
            shown = (sats(has), _signed(has - given))
        name = [swatch(colour(record, party)), said(party, 40)]
        rows.append(Row(party, (name, sats(given), *shown)))
    fees = _signed(all_given - all_held) if is_known else "unknown"
    rows.append(Row("miners", ("miners, for transactions", "–", "–", fees)))
    return table(("Party", "#Given", "#Has in the end", "#Gained, sat"), rows, "")


def _signed(amount: int) -> str:
    return f"{'+' if amount > 0 else ''}{sats(amount)}"
