"""What we remember of a provider, and what it is worth. PURE.

Only what happened to ourselves counts: nobody's word is asked, so nobody can lie about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from client.judge import FaultKind

BEST: Final = 1000
WEIGHTS: Final[Mapping[FaultKind, int]] = {
    FaultKind.STALL: 2,
    FaultKind.EMPTY: 2,
    FaultKind.REPETITION: 1,
    FaultKind.MALFORMED: 2,
    # These are no accidents.
    FaultKind.WRONG_MODEL: 20,
    FaultKind.OVERCHARGE: 20,
    FaultKind.FALSE_RECEIPT: 20,
    FaultKind.UNPAID_SHARES: 10,
}
"""How many good answers make up for one fault."""

START: Final = 4
"""Good answers that a stranger is credited with: one accident is no verdict."""
POOR: Final = 300
"""Below this a provider is asked only by name."""


@dataclass(frozen=True, slots=True)
class Record:
    """answers: good ones; latency_ms: until the first token, smoothed; None before the first."""

    answers: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    latency_ms: int | None = None

    @property
    def score(self) -> int:
        """0 … 1000"""
        bad = sum(WEIGHTS[FaultKind(kind)] * count for kind, count in self.faults.items())
        good = self.answers + START
        return BEST * good // (good + bad)

    @property
    def is_poor(self) -> bool:
        return self.score < POOR


def good_answer(record: Record, latency_ms: int) -> Record:
    smooth = latency_ms if record.latency_ms is None else (3 * record.latency_ms + latency_ms) // 4
    return replace(record, answers=record.answers + 1, latency_ms=smooth)


def fault(record: Record, kind: FaultKind) -> Record:
    return replace(record, faults={**record.faults, kind: record.faults.get(kind, 0) + 1})


def forgiven(record: Record, kind: FaultKind) -> Record:
    """One fault of a kind is taken back: it was made good."""
    left = record.faults.get(kind, 0) - 1
    faults = {name: count for name, count in record.faults.items() if name != kind}
    return replace(record, faults=faults | ({kind: left} if left > 0 else {}))


def ranked_price(price_msat: int, score: int) -> int:
    """A price as it compares: half the reputation is worth twice the price."""
    return price_msat * BEST // max(1, score)
