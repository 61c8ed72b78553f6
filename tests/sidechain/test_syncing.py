"""Headers and blocks between nodes: who is asked, who is believed, what comes of lies."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from sidechain import exchange, serving
from sidechain.limits import PATIENCE
from sidechain.primitives import Block
from sidechain.protocol import (
    BlockData,
    GetData,
    GetHeaders,
    Headers,
    Inv,
    Item,
    NotFound,
    Ping,
    Pong,
)
from tests.sidechain.wire import Side, Wire, headers, mine, stranger
from tests.sidechain.world import (
    ALICE,
    BOB,
    QUICK,
    World,
    commit,
    h,
    register,
    sealed_block,
)


def test_a_new_node_catches_up(wire: Wire) -> None:
    one, other = wire.full(), wire.full()
    mine(one.chain_node, 300)
    wire.link(other, one)
    assert other.chain.tip.hash == one.chain.tip.hash


def test_more_headers_than_fit_in_one_message(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (exchange, serving):
        monkeypatch.setattr(module, "MAX_HEADERS", 20)
    one, other = wire.full(), wire.full()
    mine(one.chain_node, 130)
    wire.link(other, one)
    assert other.chain.tip.hash == one.chain.tip.hash
    # What it knows already leads on as well: a fork of the first, from half of its way.
    third = wire.full()
    for record in [*one.chain.tip.chain()][-2::-1][:70]:
        block = one.chain.block(record.hash)
        assert block is not None
        third.chain_node.accept_block(block)
    mine(third.chain_node, 70, extra="fork")
    wire.link(other, third)
    assert other.chain.tip.hash == third.chain.tip.hash
    assert other.chain.tip.height == 140


def test_a_new_block_is_passed_on(wire: Wire) -> None:
    sides = [wire.full() for _ in range(4)]
    for one, other in pairwise(sides):
        wire.link(one, other)
    mine(sides[0].chain_node)
    before = wire.messages
    wire.run()
    assert {side.chain.tip.hash for side in sides} == {sides[0].chain.tip.hash}
    # Headers, GetData and BlockData over each of three links: nobody is told what he said.
    assert wire.messages - before == 9
    mine(sides[0].chain_node, exchange.MAX_TOLD + 1)
    wire.run()
    assert {side.chain.tip.hash for side in sides} == {sides[0].chain.tip.hash}


def test_a_partition_heals(wire: Wire) -> None:
    sides = [wire.full() for _ in range(4)]
    links = [(0, 1), (1, 2), (2, 3)]

    def connect(pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            wire.link(sides[one], sides[other])

    connect(links)
    mine(sides[0].chain_node, 5)
    wire.run()
    wire.cut()
    connect([(0, 1), (2, 3)])
    mine(sides[0].chain_node, 3, register(QUICK, ALICE), extra="left")
    mine(sides[3].chain_node, 4, register(QUICK, BOB), extra="right")
    wire.run()
    assert len({side.chain.tip.hash for side in sides}) == 2
    connect([(1, 2)])
    assert {side.chain.tip.hash for side in sides} == {sides[3].chain.tip.hash}
    # What only the losing side had mined waits to be mined again, also where it was never seen.
    assert all(len(side.chain_node.mempool) == 1 for side in sides[:2])
    mine(sides[0].chain_node)
    wire.run()
    assert all(side.chain.state.payee(ALICE.key) is not None for side in sides)


def test_a_private_fork_of_100_blocks(wire: Wire) -> None:
    honest, victim, attacker = wire.full(), wire.full(), wire.full()
    wire.link(honest, victim)
    mine(honest.chain_node, 100)
    wire.run()
    mine(attacker.chain_node, 100, extra="private")
    wire.link(attacker, victim)
    assert victim.chain.tip.hash == honest.chain.tip.hash  # as much work, but it came later
    mine(attacker.chain_node, extra="private")
    wire.run()
    assert victim.chain.tip.hash == honest.chain.tip.hash == attacker.chain.tip.hash
    mine(honest.chain_node, 1)
    wire.run()
    assert attacker.chain.tip.hash == honest.chain.tip.hash


def test_forged_headers(side: Side) -> None:
    tip = mine(side.chain_node)[0].header
    forged = msgspec.structs.replace(tip, prev=tip.hash, time=tip.time + 1, bits=0x1D00FFFF)
    peer = stranger(side)
    assert peer.says(Headers((forged.encode(),))) is not None
    assert peer.seen.over == "bad-diffbits" and peer.seen.misbehaved
    unworked = msgspec.structs.replace(tip, prev=tip.hash, time=tip.time + 1)
    while int.from_bytes(unworked.hash, "little") >> 255 == 0:
        unworked = msgspec.structs.replace(unworked, nonce=unworked.nonce + 1)
    peer = stranger(side)
    peer.says(Headers((unworked.encode(),)))
    assert peer.seen.over == "high-hash" and peer.seen.misbehaved
    assert side.chain.headers.best is side.chain.tip


def test_headers_that_hang_in_the_air_lead_to_a_question(side: Side) -> None:
    far = World()
    far.wait(5)
    peer = stranger(side)
    peer.says(Headers(()))  # the answer to the first question
    peer.was_told(GetHeaders)
    tip = far.chain.tip.header
    peer.says(Headers((tip.encode(),)))
    assert len(peer.was_told(GetHeaders)) == 1
    peer.says(Inv(Item.BLOCK, (tip.hash,)))
    assert peer.was_told(GetHeaders) == []  # one question at a time
    assert peer.seen.points == 0


def test_work_without_bodies_holds_nobody_up(wire: Wire) -> None:
    """The peer with the most work in headers sends no bodies; the other chain is followed."""
    victim, honest, liar = wire.full(), wire.full(), wire.full()
    mine(honest.chain_node, 40)
    blocks = mine(liar.chain_node, 60, extra="withheld")
    peer = stranger(victim)
    peer.says(headers(blocks))
    assert victim.chain.headers.best.height == 60
    assert len(peer.was_told(GetData)) == 1
    wire.link(victim, honest)
    assert victim.chain.tip.hash == honest.chain.tip.hash
    for _ in range(100):
        wire.wait(1)
        peer.says(*(Pong(ping.nonce) for ping in peer.was_told(Ping) if isinstance(ping, Ping)))
    assert peer.seen.over == "peer-stalling" and not peer.seen.misbehaved
    # It did not lie either: whoever has the bodies makes it true.
    wire.link(victim, liar)
    assert victim.chain.tip.hash == liar.chain.tip.hash


def test_a_slow_peer_is_helped_out(wire: Wire) -> None:
    """What one peer was asked for and does not send is asked of another that is idle."""
    victim, honest = wire.full(), wire.full()
    blocks = mine(honest.chain_node, 12)
    slow = stranger(victim)
    slow.says(headers(blocks))
    (asked,) = slow.was_told(GetData)
    assert isinstance(asked, GetData) and len(asked.hashes) == 12
    wire.link(victim, honest)
    assert victim.chain.tip.height == 0
    wire.wait(PATIENCE.steal + 0.5)
    assert victim.chain.tip.height == 12
    # It comes too late and is no crime.
    assert slow.says(*(BlockData(block.encode()) for block in blocks)) is None
    assert slow.seen.points == 0


def test_bodies_come_from_several_peers_at_a_time(wire: Wire) -> None:
    victim, source = wire.full(), wire.full()
    blocks = mine(source.chain_node, 48)
    peers = [stranger(victim, f"10.{i}.0.1") for i in range(3)]
    for peer in peers:
        peer.says(headers(blocks))
    asked = [peer.was_told(GetData) for peer in peers]
    wanted = [each for (data,) in asked if isinstance(data, GetData) for each in data.hashes]
    assert sorted(wanted) == sorted(block.hash for block in blocks)
    by_hash = {block.hash: block for block in blocks}
    for peer, (data,) in reversed([*zip(peers, asked, strict=True)]):
        assert isinstance(data, GetData)
        peer.says(*(BlockData(by_hash[each].encode()) for each in data.hashes))
    assert victim.chain.tip.hash == blocks[-1].hash


def test_a_peer_that_left_its_chain_is_asked_for_the_new_one(wire: Wire) -> None:
    victim, source = wire.full(), wire.full()
    blocks = mine(source.chain_node, 12)
    peer = stranger(victim)
    peer.says(headers(blocks))
    peer.was_told(GetHeaders)
    peer.says(*(NotFound(Item.BLOCK, (block.hash,)) for block in blocks))
    assert len(peer.was_told(GetHeaders)) == 1
    assert peer.seen.points == 0 and peer.seen.over is None
    wire.link(victim, source)
    assert victim.chain.tip.hash == source.chain.tip.hash


def test_a_body_that_is_not_the_headers_is_asked_for_again(wire: Wire) -> None:
    victim, source = wire.full(), wire.full()
    blocks = mine(source.chain_node, 2, commit(QUICK, h("m"), ALICE, "w"))
    peer = stranger(victim)
    peer.says(headers(blocks))
    false = Block(blocks[0].header, (blocks[0].transactions[0],))
    peer.says(BlockData(false.encode()))
    assert peer.seen.over == "bad-txnmrklroot" and peer.seen.misbehaved
    peer.leaves()
    wire.link(victim, source)
    assert victim.chain.tip.hash == source.chain.tip.hash


def test_an_invalid_block_is_held_against_who_sent_it(wire: Wire) -> None:
    victim = wire.full()
    world = World()
    block = sealed_block(world.build(commit(QUICK, h("m"), ALICE, "w"), honest=False))
    peer, other = stranger(victim), stranger(victim)
    peer.says(headers([block]))
    peer.says(BlockData(block.encode()))
    assert peer.seen.over == "bad-state-root" and peer.seen.misbehaved
    assert other.seen.points == 0
    other.says(headers([block]))
    assert other.seen.points == 20  # it may not know yet


def test_only_what_was_checked_is_given_away(side: Side) -> None:
    """A pending block is neither announced nor served, and is both once it is scored."""
    world = World()
    model = world.model()
    for record in [*world.chain.tip.chain()][-2::-1]:
        block = world.chain.block(record.hash)
        assert block is not None
        side.chain_node.accept_block(block)
    assert side.chain.tip.height == 0 and side.chain.pending()
    peer = stranger(side)
    peer.was_told(GetHeaders)
    tip = world.chain.tip.hash
    peer.says(GetHeaders((bytes(32),), bytes(32)), GetData(Item.BLOCK, (tip,)))
    assert peer.was_told(Headers) == [Headers(())]
    assert peer.was_told(NotFound) == [NotFound(Item.BLOCK, (tip,))]
    for requests in side.chain.pending().values():
        for request in requests:
            side.chain_node.scored(request, world.truth.scores.public[request])  # type: ignore[index] # a ScoreRequest
    side.exchange.flush(side.wire.now)
    assert side.chain.state.model(model) is not None
    assert peer.was_told(Headers) + peer.was_told(Inv)
    peer.says(GetData(Item.BLOCK, (tip,)))
    assert len(peer.was_told(BlockData)) == 1
