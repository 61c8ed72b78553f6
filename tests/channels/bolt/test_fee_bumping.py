"""Feerates of claims: patient without a deadline, and everything there is at the last moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt.fee_bumping import Feerates, wanted, worth_replacing
from channels.units import BlockHeight, FeeratePerKw

RATES = Feerates([(2, FeeratePerKw(4000)), (6, FeeratePerKw(2000)), (100, FeeratePerKw(300))])


def at(height: int, deadline: int | None, highest: int = 50_000) -> int:
    return wanted(
        RATES,
        begin=BlockHeight(100),
        height=BlockHeight(height),
        deadline=None if deadline is None else BlockHeight(deadline),
        highest=FeeratePerKw(highest),
    )


@pytest.mark.parametrize(
    ("height", "deadline", "feerate"),
    [
        (100, None, 300),
        (100, 220, 300),
        (100, 110, 2000),
        (100, 102, 4000),
        (105, 110, 4000 + (50_000 - 4000) // 4),
        (110, 110, 50_000),
        (500, 110, 50_000),
        (100, 100, 4000),
    ],
)
def test_feerates(height: int, deadline: int | None, feerate: int) -> None:
    assert at(height, deadline) == feerate


@given(
    height=st.integers(100, 300), deadline=st.none() | st.integers(90, 300), highest=st.integers(0)
)
def test_never_more_than_it_is_worth(height: int, deadline: int | None, highest: int) -> None:
    assert 0 <= at(height, deadline, highest) <= highest


@given(st.integers(253, 100_000))
def test_a_replacement_pays_for_its_relay(paid: int) -> None:
    """BIP 125, rule 4, for any weight: the fee rises by at least 1 sat per virtual byte."""
    least = next(
        now
        for now in range(paid, 2 * paid + 1000)
        if worth_replacing(FeeratePerKw(paid), FeeratePerKw(now))
    )
    assert least - paid >= 250
