"""What strangers send too much of costs them, not the node."""

from __future__ import annotations

import msgspec
import pytest

from sidechain import conversation, exchange, relay
from sidechain.protocol import (
    MAX_INVENTORY,
    Addr,
    Announce,
    BlockData,
    GetAddr,
    GetData,
    GetHeaders,
    Headers,
    Inv,
    Item,
    Message,
    Ping,
    Pong,
    Proofs,
    Reject,
    Tx,
)
from tests.sidechain.test_announcements import announcement
from tests.sidechain.wire import LATER, Side, Stranger, Wire, headers, mine, stranger
from tests.sidechain.world import (
    ALICE,
    QUICK,
    World,
    h,
    register,
    solved,
)


def test_data_that_nobody_asked_for(side: Side) -> None:
    """Each is refused unread, and five of them end the conversation."""
    world = World()
    block = world.mine()
    unasked: list[Message] = [
        BlockData(block.encode()),
        Tx(register(QUICK, ALICE).encode()),
        Announce(announcement(ALICE, expires=LATER + 1000).encode()),
        Addr(()),
        Pong(1),
        Proofs(()),
    ]
    for message in unasked:
        peer = stranger(side)
        assert peer.says(Headers(())) is None
        for number in range(5):
            refusal = peer.says(message)
            assert refusal is not None and refusal.reason == "not-requested"
            assert (peer.seen.over is not None) == (number == 4)
        assert peer.seen.misbehaved
    assert side.chain.tip.height == 0 and len(side.chain_node.mempool) == 0
    assert len(side.node.announcements) == 0


def test_a_flood_of_offers_is_read_slowly_and_kept_in_bounds(side: Side) -> None:
    peer = stranger(side)
    peer.says(Headers(()))
    for number in range(400):
        offered = tuple(h(f"{number} {i}") for i in range(MAX_INVENTORY))
        peer.says(Inv(Item.TX, offered))
    assert peer.seen.pause(side.wire.now) > 5
    assert len(peer.seen.known) == conversation.MAX_KNOWN
    asked = [each for each in peer.was_told(GetData) if isinstance(each, GetData)]
    assert sum(len(each.hashes) for each in asked) == relay.IN_FLIGHT
    assert peer.seen.over is None and peer.seen.points == 0
    # The debt is paid by waiting, and concerns nobody else.
    side.wire.now += peer.seen.pause(side.wire.now)
    assert peer.seen.pause(side.wire.now) == 0
    assert stranger(side).seen.pause(side.wire.now) == 0


def test_a_flood_of_pings_is_read_slowly(side: Side) -> None:
    peer = stranger(side)
    for number in range(int(conversation.MESSAGES_AT_ONCE) + 200):
        peer.says(Ping(number))
    assert 0.5 < peer.seen.pause(side.wire.now) < 2


def test_what_was_asked_for_is_free(wire: Wire) -> None:
    one, other = wire.full(), wire.full()
    mine(one.chain_node, 300)
    there, _ = wire.link(other, one)
    assert there.pause(wire.now) == 0
    assert there._messages.wait(wire.now) == 0
    assert there._messages._tokens > conversation.MESSAGES_AT_ONCE - 20


def test_a_peer_that_does_not_read_is_left(side: Side) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1").greets()
    for number in range(conversation.MAX_OUTBOX + 1):
        side.exchange.received(peer.seen, Ping(number).encode(), side.wire.now)
    assert peer.seen.over == "peer-not-reading" and not peer.seen.misbehaved


def test_answers_wait_for_the_peer_to_read(side: Side) -> None:
    """A question costs a short entry until the answer can be sent, and there is an end to them."""
    mine(side.chain_node, 20)
    peer = stranger(side)
    peer.hears()
    for _ in range(conversation.MAX_REQUESTS):
        side.exchange.received(
            peer.seen, GetHeaders((bytes(32),), bytes(32)).encode(), side.wire.now
        )
    assert len(peer.seen.outbox) == 0 and peer.seen.points == 0
    peer.sends(GetHeaders((bytes(32),), bytes(32)).encode())
    assert peer.seen.points == 20
    assert peer.was_told(Reject) == [Reject("too-many-requests", bytes(32))]


def test_answers_are_given_at_a_bounded_rate(side: Side) -> None:
    (block,) = mine(side.chain_node)
    peer = stranger(side)
    wanted = GetData(Item.BLOCK, (block.hash,) * MAX_INVENTORY)
    for _ in range(200):
        peer.says(wanted)
        if peer.seen.serving_pause(side.wire.now):
            break
    else:
        raise AssertionError("there is no end to it")
    assert len(peer.was_told(BlockData)) <= conversation.SERVED_AT_ONCE // 1024 + 1
    assert peer.seen.serving_pause(side.wire.now) < 1


def test_addresses_are_asked_for_and_given_once(wire: Wire) -> None:
    one, other = wire.full(), wire.full()
    there, here = wire.link(one, other)
    assert here.addresses_given and not there.addresses_given
    peer = stranger(one)
    assert peer.says(GetAddr()) is None
    assert peer.was_told(Addr) == [Addr(())]
    peer.says(GetAddr())
    assert peer.seen.points == 20


def test_lesser_headers_are_read_slowly(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers with little work cost little to make and are kept for ever: not too many at once."""
    monkeypatch.setattr(conversation, "LESSER_HEADERS_AT_ONCE", 100.0)
    mine(side.chain_node, 10)
    peer = stranger(side)
    header = side.chain.headers.genesis.header
    for i in range(1, 202):
        fork = msgspec.structs.replace(
            header, prev=header.hash, merkle_root=i.to_bytes(32, "big"), time=header.time + 1
        )
        peer.says(Headers((solved(fork).encode(),)))
    assert peer.seen.pause(side.wire.now) == pytest.approx(
        101 / conversation.LESSER_HEADERS_PER_SECOND
    )
    assert peer.seen.points == 0


def test_repeated_headers_lead_nowhere(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_HEADERS", 10)
    blocks = mine(side.chain_node, 20)
    peer = stranger(side)
    peer.says(headers(blocks[:10]))
    assert len(peer.was_told(GetHeaders)) == 2  # at first, and for what comes after
    peer.says(headers(blocks[10:]))
    assert len(peer.was_told(GetHeaders)) == 1
    for _ in range(5):
        peer.says(headers(blocks[:10]))
    assert peer.was_told(GetHeaders) == []
