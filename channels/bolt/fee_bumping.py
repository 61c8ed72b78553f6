"""Which feerate a claim should pay now, and when it is worth replacing (BIP 125)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from channels.units import BlockHeight, FeeratePerKw

MIN_STEP = FeeratePerKw(250)
"""A replacement pays for its own relay too (BIP 125, rule 4): 1 sat per virtual byte."""


@dataclass(frozen=True, slots=True)
class Feerates:
    """Estimates by the number of blocks in which a transaction should confirm, fewest first."""

    estimates: Sequence[tuple[int, FeeratePerKw]]

    def within(self, blocks: int) -> FeeratePerKw:
        """The estimate for the longest wait that is not longer than `blocks`."""
        fitting = [rate for target, rate in self.estimates if target <= blocks]
        return fitting[-1] if fitting else self.estimates[0][1]

    @property
    def patient(self) -> FeeratePerKw:
        """For what nobody else can take."""
        return self.estimates[-1][1]


def wanted(
    feerates: Feerates,
    *,
    begin: BlockHeight,
    height: BlockHeight,
    deadline: BlockHeight | None,
    highest: FeeratePerKw,
) -> FeeratePerKw:
    """The feerate of a claim that could first be made at `begin`: at most `highest`.

    Without a deadline it is the estimate for the long run. With one it is the estimate for the
    blocks that are left, and rises with the square of the time gone to `highest` at the deadline:
    slowly as long as there is time.
    """
    if deadline is None:
        return min(feerates.patient, highest)
    estimate = min(feerates.within(max(1, deadline - height)), highest)
    window, gone = max(1, deadline - begin), max(0, height - begin)
    gone = min(gone, window)
    risen = estimate + (highest - estimate) * gone * gone // (window * window)
    return FeeratePerKw(max(estimate, min(highest, risen)))


def worth_replacing(paid: FeeratePerKw, now: FeeratePerKw) -> bool:
    """Whether a claim that pays `paid` should be replaced by one that pays `now`."""
    return now >= paid + max(MIN_STEP, paid // 4)
