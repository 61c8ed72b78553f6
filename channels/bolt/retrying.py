"""When a payment that has no way left is tried once more: what failed it may pass (BOLT 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from channels.bolt.onion_failures import Failure, FailureCode

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds. A peer that was restarted is back after a few; each look costs every hop an HTLC."""

_PASSING: Final = frozenset(
    {
        FailureCode.TEMPORARY_CHANNEL_FAILURE,
        FailureCode.TEMPORARY_NODE_FAILURE,
        # Permanent by its number (PERM), but some nodes say it of a peer that is away.
        FailureCode.UNKNOWN_NEXT_PEER,
    }
)


def may_pass(failure: Failure | None) -> bool:
    """Whether the hop that said so may forward the same HTLC a moment later."""
    return failure is not None and failure.code in _PASSING


@dataclass(slots=True)
class Patience:
    """How long to wait from one look to the next, until `deadline` (seconds, of any clock)."""

    deadline: float
    _next: float = FIRST_WAIT

    def wait(self, now: float) -> float | None:
        """Seconds until the next look, twice as many each time; None when the time is over.

        The last look is at the deadline itself.
        """
        left = self.deadline - now
        if left <= 0:
            return None
        seconds, self._next = min(self._next, left), min(2 * self._next, LONGEST_WAIT)
        return seconds
