"""Who is blamed for shares that were not paid, and when."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.units import Msat, UnixTime
from client.checks import (
    DAY,
    GIVE_UP,
    NEVER,
    Check,
    CheckState,
    Held,
    Look,
    NoReceipt,
    NotKnown,
    Refuted,
    blame,
    fault_of,
    looked,
)
from client.judge import FaultKind

CLOSED = UnixTime(1_800_000_000)
GRACE = 1200
NEW = Check(1, CLOSED, CLOSED)
TRAINER, PRODUCER = "aa" * 32, "bb" * 32
GOOD = Held({}, frozenset())
OWED = Held({TRAINER: Msat(5000)}, frozenset({TRAINER}))
LITTLE = Held({TRAINER: Msat(999)}, frozenset({TRAINER}))
AWAY = Held({TRAINER: Msat(5000)}, frozenset())
GONE = NotKnown("provider-unreachable", "It is not there.")
NOTHING = NoReceipt("It gives none.")
LIE = Refuted("overcharge", "It does not hold.")


def after(*looks: tuple[int, Look], check: Check = NEW) -> Check:
    """looks: seconds after the close, and what was found."""
    for seconds, look in looks:
        now = UnixTime(CLOSED + seconds)
        check = looked(check, look, now, GRACE)
        for changed in blame([check], now, GRACE):
            check = changed
    return check


@pytest.mark.parametrize(
    ("looks", "state"),
    [
        ([(0, GOOD)], CheckState.PAID),
        ([(0, OWED)], CheckState.CARRIED),
        ([(0, OWED), (GRACE - 1, OWED)], CheckState.CARRIED),
        ([(0, OWED), (GRACE, OWED)], CheckState.UNPAID),
        ([(0, OWED), (GRACE, GOOD)], CheckState.PAID),
        ([(0, OWED), (GRACE, OWED), (DAY, GOOD)], CheckState.PAID),
        # Seen for the first time long after the close: the provider gets its time all the same.
        ([(DAY, OWED)], CheckState.CARRIED),
        ([(DAY, OWED), (DAY + GRACE, OWED)], CheckState.UNPAID),
        # A payee that can't be reached is nobody's fault, and time begins anew when it is back.
        ([(0, AWAY), (GRACE, AWAY), (20 * DAY, AWAY)], CheckState.CARRIED),
        ([(0, OWED), (GRACE, AWAY), (2 * GRACE, OWED)], CheckState.CARRIED),
        ([(0, AWAY), (GRACE, OWED), (2 * GRACE, OWED)], CheckState.UNPAID),
        ([(0, NOTHING)], CheckState.UNCHECKED),
        ([(0, NOTHING), (GRACE, NOTHING)], CheckState.UNPAID),
        ([(GRACE, NOTHING), (2 * GRACE, OWED)], CheckState.CARRIED),
        ([(0, GONE), (20 * DAY, GONE)], CheckState.UNCHECKED),
        ([(0, OWED), (GRACE, GONE)], CheckState.CARRIED),
        # What is left when the rest was paid is too little to pay.
        ([(0, OWED), (GRACE, OWED), (DAY, LITTLE)], CheckState.CARRIED),
        ([(0, OWED), (GRACE, OWED), (DAY, GONE)], CheckState.UNPAID),
        ([(0, LIE)], CheckState.FALSE),
        # What was shown is settled.
        ([(0, LIE), (GRACE, GOOD)], CheckState.FALSE),
        ([(0, GOOD), (GRACE, LIE)], CheckState.PAID),
    ],
)
def test_what_a_look_makes_of_it(looks: list[tuple[int, Look]], state: CheckState) -> None:
    assert after(*looks).state is state


def test_what_is_owed_in_whole_satoshis_counts_over_all_sessions() -> None:
    small = Held({TRAINER: Msat(600)}, frozenset({TRAINER}))
    first = after((0, small), (GRACE, small))
    assert first.state is CheckState.CARRIED
    second = replace(first, session=2)
    now = UnixTime(CLOSED + GRACE)
    changed = blame([first, second], now, GRACE)
    assert [(each.session, each.state) for each in changed] == [
        (1, CheckState.UNPAID),
        (2, CheckState.UNPAID),
    ]
    # What was seen at an earlier look may have been paid since.
    stale = {TRAINER: msgspec.structs.replace(first.owing[TRAINER], seen=now - 1)}
    assert blame([first, replace(second, owing=stale)], now, GRACE) == []
    # Another key's does not add up with it.
    other = replace(second, owing={PRODUCER: first.owing[TRAINER]})
    assert blame([first, other], now, GRACE) == []


def test_what_is_bad_is_told_once() -> None:
    unpaid = after((0, OWED), (GRACE, OWED))
    assert not unpaid.told
    told = replace(unpaid, told=True)
    assert after((2 * GRACE, OWED), check=told).told
    assert after((2 * GRACE, GOOD), check=unpaid).told
    assert not after((2 * GRACE, LIE), check=told).told


def test_what_a_provider_is_remembered_for() -> None:
    def kind(reason: str) -> FaultKind | None:
        return fault_of(after((0, Refuted(reason, ""))))

    assert kind("overcharge") is kind("truncated") is FaultKind.OVERCHARGE
    assert kind("wrong-model") is FaultKind.WRONG_MODEL
    assert kind("batch-twice") is kind("wrong-payee") is FaultKind.FALSE_RECEIPT
    assert fault_of(after((0, OWED), (GRACE, OWED))) is FaultKind.UNPAID_SHARES
    assert fault_of(after((0, OWED))) is fault_of(NEW) is None


LOOKS = st.sampled_from([GOOD, OWED, AWAY, GONE, NOTHING, LIE])


@given(st.lists(st.tuples(st.integers(0, DAY), LOOKS), max_size=40))
def test_every_look_is_followed_by_a_later_one_or_by_none(looks: list[tuple[int, Look]]) -> None:
    seconds, check = 0, NEW
    for wait, look in looks:
        seconds += wait
        before = check
        check = after((seconds, look), check=check)
        if before.state in (CheckState.PAID, CheckState.FALSE):
            assert check == before
            continue
        now = CLOSED + seconds
        assert now < check.next <= now + DAY or check.next == NEVER
        is_final = check.state in (CheckState.PAID, CheckState.FALSE)
        assert (check.next == NEVER) == (is_final or seconds > GIVE_UP)
        assert check.state is not CheckState.UNPAID or seconds >= GRACE
