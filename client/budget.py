"""What the user allows to be spent, over all sessions. PURE.

Every cap is looked at before a deposit is paid, in the transaction that stores it: several
programs at once can't pass one together (store.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from channels.units import Msat, UnixTime

CAPS: Final = frozenset(
    {
        "request-cap-reached",
        "session-cap-reached",
        "hour-cap-reached",
        "day-cap-reached",
        "total-cap-reached",
    }
)
"""The reasons of errors that say so; nothing was paid then that would pass the cap."""

HOUR: Final = 3600
DAY: Final = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Cap:
    """most: what may be paid since then, less what came back. sentence: what to do about it."""

    reason: str
    since: UnixTime
    most: Msat
    sentence: str


@dataclass(frozen=True, slots=True)
class Budget:
    """max_request: one answer; max_hour: any 60 minutes; max_day: a day, UTC.

    max_total: since `started`; None: no such cap.
    """

    max_request: Msat
    max_hour: Msat
    max_day: Msat
    max_total: Msat | None = None
    started: UnixTime = UnixTime(0)

    def caps(self, now: UnixTime) -> tuple[Cap, ...]:
        caps = (
            Cap(
                "hour-cap-reached",
                UnixTime(now - HOUR),
                self.max_hour,
                "per hour: raise client.max_hour_sat, or wait",
            ),
            Cap(
                "day-cap-reached",
                midnight(now),
                self.max_day,
                "per day: raise client.max_day_sat, or go on tomorrow",
            ),
        )
        if self.max_total is None:
            return caps
        total = Cap(
            "total-cap-reached",
            self.started,
            self.max_total,
            "in all: raise gateway.max_total_sat, and start again",
        )
        return (*caps, total)


def midnight(now: UnixTime) -> UnixTime:
    return UnixTime(now - now % DAY)
