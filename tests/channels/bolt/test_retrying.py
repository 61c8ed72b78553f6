"""When a payment is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt.onion import Failure, FailureCode
from channels.bolt.retrying import FIRST_WAIT, LONGEST_WAIT, Patience, may_pass


@given(
    start=st.floats(0, 1e6),
    within=st.floats(0, 300),
    rounds=st.lists(st.floats(0, 3), min_size=80, max_size=80),
)
def test_each_wait_is_longer_and_the_last_ends_at_the_deadline(
    start: float, within: float, rounds: list[float]
) -> None:
    """`rounds` are the seconds that each attempt takes to fail."""
    patience, now, waits = Patience(start + within), start, []
    for taken in rounds:
        seconds = patience.wait(now)
        if seconds is None:
            assert now >= start + within
            break
        assert 0 < seconds <= LONGEST_WAIT
        now += seconds
        assert now <= start + within + 1e-6
        waits.append(seconds)
        now += taken
    else:
        raise AssertionError("it never ends")
    assert waits[:-1] == [min(FIRST_WAIT * 2**n, LONGEST_WAIT) for n in range(len(waits) - 1)]


@pytest.mark.parametrize("code", list(FailureCode))
def test_only_what_may_pass_is_waited_for(code: FailureCode) -> None:
    passing = {"TEMPORARY_CHANNEL_FAILURE", "TEMPORARY_NODE_FAILURE", "UNKNOWN_NEXT_PEER"}
    assert may_pass(Failure(code)) == (code.name in passing)


def test_an_error_that_nobody_can_read_does_not_pass() -> None:
    assert not may_pass(None)
    assert not may_pass(Failure(0x0FFF))
