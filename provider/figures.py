"""What the ledger comes to: sums and lists for the dashboard, in msat. Reads, never writes."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from channels.units import Msat
from provider.ledger import Ledger
from provider.share_ledger import ShareLedger
from provider.shares import Period
from sidechain.fees import split

SHOWN: Final = 50
"""Rows of a list; sums are over all."""

OWED_BACK: Final = ("pending", "unknown", "failed")
"""Refunds that are not at their end."""


class Day(Struct, frozen=True):
    """In UTC. spent = provider + trainer + producers. refunds are counted on the day on which
    their session was last used."""

    day: str
    spent_msat: int = 0
    provider_msat: int = 0
    trainer_msat: int = 0
    producers_msat: int = 0
    refunds_msat: int = 0


class LiveSession(Struct, frozen=True):
    """id: the first 4 bytes of it. credited = spent + held + rest + what was moved or refunded."""

    id: str
    kind: str
    model: str
    phase: str
    credited_msat: int
    spent_msat: int
    held_msat: int
    rest_msat: int
    last_active: int


class LiveSessions(Struct, frozen=True):
    """Those that are not closed; `newest` are the last 50 that were used."""

    count: int
    spent_msat: int
    held_msat: int
    rest_msat: int
    newest: tuple[LiveSession, ...]


class OpenRefund(Struct, frozen=True):
    """status: "pending", "unknown" (it may have been paid) or "failed" (it certainly was not)."""

    id: str
    status: str
    amount_msat: int
    attempts: int
    next: int


class OpenRefunds(Struct, frozen=True):
    """By status: how many, and how much. list: the first 50."""

    count: dict[str, int]
    amount_msat: dict[str, int]
    list: tuple[OpenRefund, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What answers of one period spent on one day."""

    day: str
    session: bytes
    period: int | None
    amount: int


_REST: Final = "credited - spent - held - moved - refund"
_OWED: Final = f"(CASE refund_status WHEN 'failed' THEN {_REST} ELSE refund END)"


class Figures:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def sessions(self) -> LiveSessions:
        where = "FROM sessions WHERE kind = 'session' AND phase != 'closed'"
        count, spent, held, rest = self._ledger.read(
            "SELECT count(*), COALESCE(SUM(spent), 0), COALESCE(SUM(held), 0), "
            f"COALESCE(SUM({_REST}), 0) {where}"
        )[0]
        rows = self._ledger.read(
            "SELECT id, kind, json_extract(CAST(terms AS TEXT), '$.model'), phase, credited, "
            f"spent, held, {_REST}, last_active {where} ORDER BY last_active DESC LIMIT {SHOWN}"
        )
        newest = tuple(LiveSession(*_named(row)) for row in rows)
        return LiveSessions(count, spent, held, rest, newest)

    def refunds(self) -> OpenRefunds:
        marks = ", ".join("?" * len(OWED_BACK))
        where = f"FROM sessions WHERE refund_status IN ({marks}) AND {_OWED} > 0"
        sums = self._ledger.read(
            f"SELECT refund_status, count(*), SUM({_OWED}) {where} GROUP BY refund_status",
            OWED_BACK,
        )
        rows = self._ledger.read(
            f"SELECT id, refund_status, {_OWED}, refund_attempts, refund_next {where} "
            f"ORDER BY last_active DESC LIMIT {SHOWN}",
            OWED_BACK,
        )
        nothing = dict.fromkeys(OWED_BACK, 0)
        return OpenRefunds(
            nothing | {row[0]: row[1] for row in sums},
            nothing | {row[0]: row[2] for row in sums},
            tuple(OpenRefund(*_named(row)) for row in rows),
        )

    def days(self) -> tuple[Day, ...]:
        """The oldest first. Reads all answers that there ever were."""
        rows = self._ledger.read(
            "SELECT date(created, 'unixepoch') AS day, session, period, SUM(spent) AS amount "
            "FROM answers GROUP BY session, period, day ORDER BY session, period, day"
        )
        spent = [Spent(row["day"], row["session"], row["period"], row["amount"]) for row in rows]
        refunds = self._ledger.read(
            "SELECT date(last_active, 'unixepoch') AS day, SUM(refund) AS amount FROM sessions "
            "WHERE refund_status = 'complete' GROUP BY day"
        )
        periods = ShareLedger(self._ledger).all_periods()
        return by_day(spent, periods, {row["day"]: row["amount"] for row in refunds})


def by_day(
    spent: Iterable[Spent], periods: Mapping[tuple[bytes, int], Period], refunds: Mapping[str, int]
) -> tuple[Day, ...]:
    """What each party got of each day's answers; together what was spent, to the msat.

    spent: each period's days in their order. A period is split as a whole, because shares are
    rounded; of a later day is what its answers added.
    """
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    before: dict[tuple[bytes, int], int] = {}
    for each in spent:
        parts = (each.amount, 0, 0)
        period = None if each.period is None else periods.get((each.session, each.period))
        if period is not None:
            key = (period.session, each.period or 0)
            start = before.get(key, 0)
            before[key] = start + each.amount
            pairs = zip(_parts(period, before[key]), _parts(period, start), strict=True)
            provider, trainer, producers = (now - then for now, then in pairs)
            parts = provider, trainer, producers
        for index, amount in enumerate((each.amount, *parts)):
            sums[each.day][index] += amount
    for day in refunds:
        sums[day]  # a day of refunds alone is one too
    return tuple(Day(day, *[*sums[day], refunds.get(day, 0)]) for day in sorted(sums))


def _named(row: sqlite3.Row) -> list[Any]:
    """A row whose first value is a session's id, of which people need the beginning."""
    identity, *values = row
    return [identity[:4].hex(), *values]


def _parts(period: Period, amount: int) -> Sequence[int]:
    """Provider's, trainer's and producers'."""
    shares = split(Msat(amount), period.beneficiaries, period.terms)
    return shares.provider, shares.trainer, shares.last_producer + shares.accepting_producer


def csv(days: Iterable[Day]) -> str:
    """RFC 4180, one line for each day; integers in msat."""
    names = Day.__struct_fields__
    lines = [",".join(names)]
    lines += [",".join(str(getattr(each, name)) for name in names) for each in days]
    return "\r\n".join(lines) + "\r\n"
