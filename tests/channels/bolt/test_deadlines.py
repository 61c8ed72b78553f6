"""When a channel must go on chain for an HTLC (BOLT 2), and when it is forgotten."""

from __future__ import annotations

import pytest

from channels.bolt.channel import State
from channels.bolt.deadlines import FORGET_UNFUNDED, GRACE
from channels.bolt.effects import ChannelFailed
from channels.units import BlockHeight, Msat
from tests.channels.bolt.pair import POLICY, Pair, Side, preimage_of

EXPIRY = 400


def offered() -> Pair:
    pair = Pair().confirm()
    pair.offer(pair.alice, 1, Msat(5_000_000), EXPIRY)
    pair.exchange()
    return pair


def failure(side: Side, height: int) -> str | None:
    effects = side.machine.new_height(BlockHeight(height))
    return next((e.reason for e in effects if isinstance(e, ChannelFailed)), None)


def test_an_offered_htlc_that_is_not_given_back_in_time() -> None:
    pair = offered()
    assert failure(pair.alice, EXPIRY + GRACE - 1) is None
    assert failure(pair.alice, EXPIRY + GRACE) == "htlc-timed-out"
    assert pair.alice.machine.state.state is State.FAILED
    assert failure(pair.alice, EXPIRY + GRACE + 1) is None, "once is enough"


def test_a_peer_that_is_there_and_never_revokes() -> None:
    pair = Pair().confirm()
    pair.offer(pair.alice, 1, Msat(5_000_000), EXPIRY + 100)
    pair.alice.commit()
    # Bob does not answer, so this one waits for its turn.
    pair.offer(pair.alice, 2, Msat(1_000_000), EXPIRY)
    pair.alice.commit()
    assert failure(pair.alice, EXPIRY + GRACE - 1) is None
    assert failure(pair.alice, EXPIRY + GRACE) == "htlc-timed-out"
    assert not pair.alice.failed, "what becomes of the HTLCs is for the chain to say"


def test_a_fulfilled_htlc_that_is_not_settled_in_time() -> None:
    pair = offered()
    deadline = EXPIRY - POLICY.fulfillment_deadline
    assert failure(pair.bob, EXPIRY) is None, "without the preimage there is nothing to lose"
    pair.bob.carry_out(pair.bob.machine.fulfill_htlc(0, preimage_of(1)))
    assert failure(pair.bob, deadline - 1) is None
    assert failure(pair.bob, deadline) == "htlc-not-settled"


def test_a_settled_htlc_has_no_deadline() -> None:
    pair = offered()
    pair.bob.carry_out(pair.bob.machine.fulfill_htlc(0, preimage_of(1)))
    pair.exchange()
    for side in (pair.alice, pair.bob):
        assert failure(side, EXPIRY + 1000) is None


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_channel_without_funding_is_forgotten_by_who_did_not_open_it(name: str) -> None:
    pair = Pair()
    side = getattr(pair, name)
    machine = side.machine
    machine.new_height(BlockHeight(100))
    assert machine.state.opened_height == 100
    machine.new_height(BlockHeight(100 + FORGET_UNFUNDED - 1))
    assert machine.state.state is State.AWAITING_LOCKIN
    machine.new_height(BlockHeight(100 + FORGET_UNFUNDED))
    assert machine.state.state is (State.CLOSED if name == "bob" else State.AWAITING_LOCKIN)
