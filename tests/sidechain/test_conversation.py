"""What one node says to strangers, and what strangers can do to it: no sockets, virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidechain import conversation, exchange, relay, serving
from sidechain.light import PROVABLE
from sidechain.limits import PATIENCE, Known, TokenBucket
from sidechain.primitives import Block, sha256d
from sidechain.protocol import (
    BAN,
    MAX_INVENTORY,
    Addr,
    Announce,
    AnyMessage,
    BlockData,
    GetAddr,
    GetData,
    GetHeaders,
    GetProofs,
    Headers,
    Inv,
    Item,
    Message,
    NotFound,
    Ping,
    Pong,
    Proofs,
    Reject,
    Tx,
    Verack,
    Version,
)
from sidechain.scores import Scored, ScoreRequest
from sidechain.state import TIP_KEY, payee_key
from tests.sidechain.test_announcements import announcement
from tests.sidechain.test_protocol import messages
from tests.sidechain.wire import LATER, Side, Stranger, Wire, mine, version
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    QUICK,
    World,
    add_model,
    commit,
    h,
    register,
    reveal,
    rivals,
    sealed_block,
    solved,
)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


@pytest.fixture
def side(wire: Wire) -> Side:
    return wire.full()


def stranger(side: Side, host: str = "10.1.0.1") -> Stranger:
    return Stranger(side.wire, side, host).greets()


def headers(blocks: list[Block]) -> Headers:
    return Headers(tuple(block.header.encode() for block in blocks))


# --- handshake -----------------------------------------------------------------------------------


def test_both_sides_greet(wire: Wire) -> None:
    one, other = wire.full(), wire.full()
    there, here = wire.link(one, other)
    assert there.ready and here.ready
    assert there.version is not None and there.version.swarm_port == 2002
    assert here.version is not None and here.version.agent == "node 1"
    assert (there.port, here.port) == (1, 1001)


def test_who_is_dialled_speaks_second(side: Side) -> None:
    inbound = Stranger(side.wire, side, "10.1.0.1")
    inbound.hears()
    assert inbound.told == []
    inbound.says(version())
    assert [type(each) for each in inbound.told] == [Version, Verack]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network_id": 7}, "wrong-network"),
        ({"genesis": h("other")}, "wrong-network"),
        ({"protocol": 0}, "version-too-old"),
        ({"nonce": 1}, "self-connect"),
    ],
)
def test_who_can_not_be_spoken_with_is_left_and_not_banned(
    side: Side, change: dict[str, object], reason: str
) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1")
    refusal = peer.says(msgspec.structs.replace(version(), **change))
    assert refusal is not None and refusal.reason == peer.seen.over == reason
    assert not peer.seen.misbehaved


@pytest.mark.parametrize("message", [Verack(), Ping(1), GetHeaders((bytes(32),), bytes(32))])
def test_nothing_before_the_handshake(side: Side, message: Message) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1")
    peer.says(message)
    assert peer.seen.over == "bad-handshake" and peer.seen.misbehaved
    assert peer.told == []


def test_outbound_slots_are_for_nodes_with_blocks(side: Side) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1", inbound=False)
    peer.says(version(services=0))
    assert peer.seen.over == "peer-not-full" and not peer.seen.misbehaved


def test_silence_ends_a_handshake(side: Side) -> None:
    mute, slow = (Stranger(side.wire, side, "10.1.0.1") for _ in range(2))
    slow.says(version())
    side.wire.wait(PATIENCE.handshake)
    assert mute.seen.over == slow.seen.over == "peer-silent"


def test_pings(side: Side) -> None:
    answers, mute = stranger(side), stranger(side)
    answers.says(Headers(()), Ping(5))
    mute.says(Headers(()))
    assert answers.was_told(Pong) == [Pong(5)]
    side.wire.wait(PATIENCE.ping)
    (ping,) = answers.was_told(Ping)
    assert isinstance(ping, Ping)
    answers.says(Pong(ping.nonce))
    side.wire.wait(PATIENCE.pong)
    assert answers.seen.ready and answers.seen.latency == 0.0
    assert mute.seen.over == "peer-silent" and not mute.seen.misbehaved


# --- anything at all -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def any_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    wire = Wire(tmp_path_factory.mktemp("any"))
    side = wire.full()
    mine(side.chain_node, 3, register(QUICK, ALICE))
    yield side
    wire.close()


EVERYTHING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@EVERYTHING
@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans())
def test_any_bytes_give_messages_or_a_rejection(
    any_side: Side, data: list[bytes], greeted: bool
) -> None:
    peer = Stranger(any_side.wire, any_side, "10.1.0.1")
    if greeted:
        peer.greets()
    for each in data:
        refusal = peer.sends(each)
        assert refusal is not None or peer.seen.over is not None
    peer.leaves()


@EVERYTHING
@given(st.lists(messages, max_size=10))
def test_any_messages_give_messages_or_a_rejection(any_side: Side, said: list[AnyMessage]) -> None:
    peer = stranger(any_side)
    tip = any_side.chain.tip
    for message in said:
        points = peer.seen.points
        refusal = peer.says(message)
        assert refusal is not None or peer.seen.points == points
    any_side.exchange.tick(any_side.wire.now)
    peer.leaves()
    assert any_side.chain.tip is tip
    assert any_side.exchange.peers == []


# --- headers and blocks --------------------------------------------------------------------------


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


# --- transactions and announcements --------------------------------------------------------------


def test_a_transaction_goes_everywhere_once(wire: Wire) -> None:
    sides = [wire.full() for _ in range(4)]
    for one in range(4):
        for other in range(one):
            wire.link(sides[one], sides[other])
    tx = register(QUICK, ALICE)
    sides[0].chain_node.accept_transaction(tx)
    wire.run()
    assert all(tx.txid in side.chain_node.mempool for side in sides)
    late = wire.full()
    wire.link(late, sides[2])
    assert tx.txid in late.chain_node.mempool
    before = wire.messages
    wire.run()
    assert wire.messages == before


def test_an_announcement_goes_everywhere_also_to_light_nodes(wire: Wire) -> None:
    one, two, light, late = wire.full(), wire.full(), wire.light(), wire.full()
    wire.link(two, one)
    wire.link(light, two)
    made = announcement(ALICE, expires=LATER + 1000)
    one.node.accept_announcement(made)
    wire.run()
    assert [*two.node.announcements] == [*light.node.announcements] == [made]
    newer = announcement(ALICE, seq=2, expires=LATER + 1000)
    one.node.accept_announcement(newer)
    wire.run()
    wire.link(late, two)
    assert [*two.node.announcements] == [*light.node.announcements] == [newer]
    assert [*late.node.announcements] == [newer]


def test_who_offers_and_does_not_send_is_passed_over(side: Side) -> None:
    tx = register(QUICK, ALICE)
    first, second, third = (stranger(side, f"10.{i}.0.1") for i in range(3))
    for peer in (first, second, third):
        peer.says(Headers(()), Inv(Item.TX, (tx.txid,)))
    asked = GetData(Item.TX, (tx.txid,))
    assert first.was_told(GetData) == [asked]
    assert second.was_told(GetData) == []
    side.wire.wait(PATIENCE.item)
    assert second.was_told(GetData) == [asked]
    second.says(NotFound(Item.TX, (tx.txid,)))
    assert third.was_told(GetData) == [asked]
    assert third.says(Tx(tx.encode())) is None
    assert tx.txid in side.chain_node.mempool
    assert first.says(Tx(tx.encode())) is not None  # late, and known by now: no points
    assert first.seen.points == second.seen.points == third.seen.points == 0


def test_who_leaves_is_passed_over(side: Side) -> None:
    tx = register(QUICK, ALICE)
    first, second = stranger(side), stranger(side)
    for peer in (first, second):
        peer.says(Inv(Item.TX, (tx.txid,)))
    first.leaves()
    side.exchange.flush(side.wire.now)
    assert second.was_told(GetData) == [GetData(Item.TX, (tx.txid,))]


def test_what_was_refused_is_not_asked_for_until_the_tip_moves(side: Side) -> None:
    mine(side.chain_node, 1, register(QUICK, ALICE, seq=5))
    stale = register(QUICK, ALICE, seq=4)
    peer, other = stranger(side), stranger(side)
    peer.says(Inv(Item.TX, (stale.txid,)))
    assert len(peer.was_told(GetData)) == 1
    peer.says(Tx(stale.encode()))
    assert peer.was_told(Reject) == [Reject("stale-seq", bytes(32))]
    assert peer.seen.points == 0
    other.says(Inv(Item.TX, (stale.txid,)))
    assert other.was_told(GetData) == []
    mine(side.chain_node)
    other.says(Inv(Item.TX, (stale.txid,)))
    assert len(other.was_told(GetData)) == 1


def test_what_was_mined_is_not_asked_for(side: Side) -> None:
    tx = register(QUICK, ALICE)
    mine(side.chain_node, 1, tx)
    peer = stranger(side)
    peer.says(Inv(Item.TX, (tx.txid,)))
    assert peer.was_told(GetData) == []


def test_what_a_reorg_undid_is_asked_for_again(side: Side) -> None:
    """Though it did not come back by itself: a Reveal does not, if its Commit is undone too."""
    model, blind = add_model(QUICK), commit(QUICK, add_model(QUICK).txid, BOB, "w")
    shown = reveal(QUICK, model.txid, BOB, "w", 9_000)
    for tx, score in ((model, model.score), (shown, shown.score)):
        side.chain_node.scored(
            ScoreRequest(model.txid, tx.weights_root, tx.infohash), Scored(score, COST)
        )
    mine(side.chain_node, QUICK.tenure, model)
    height = side.chain.tip.height
    mine(side.chain_node, QUICK.reveal_delay, blind)
    mine(side.chain_node, 1, shown)
    peer = stranger(side)
    peer.says(Inv(Item.TX, (shown.txid,)))
    assert peer.was_told(GetData) == []
    for block in rivals(side.chain, height):
        side.chain_node.accept_block(block)
    assert side.chain.state.root_of(shown.weights_root) is None
    assert [*side.chain_node.mempool] == [blind]
    peer.says(Inv(Item.TX, (shown.txid,)))
    assert peer.was_told(GetData) == [GetData(Item.TX, (shown.txid,))]


def test_an_owner_offers_again_what_was_refused_before(side: Side) -> None:
    tx = register(QUICK, ALICE)
    peer = stranger(side)
    peer.says(Headers(()))
    side.chain_node.accept_transaction(tx)
    side.exchange.flush(side.wire.now)
    peer.hears()
    assert peer.was_told(Inv) == [Inv(Item.TX, (tx.txid,))]
    side.exchange.flush(side.wire.now)
    peer.hears()
    assert peer.was_told(Inv) == []
    side.exchange.offer_again(tx.txid)
    side.exchange.flush(side.wire.now)
    peer.hears()
    assert peer.was_told(Inv) == [Inv(Item.TX, (tx.txid,))]


def test_a_false_transaction_costs_its_sender(side: Side) -> None:
    good = register(QUICK, ALICE)
    false = msgspec.structs.replace(good, sig=bytes(64))
    peer = stranger(side)
    peer.says(Inv(Item.TX, (false.txid,)), Tx(false.encode()))
    assert peer.seen.over == "bad-signature" and peer.seen.misbehaved


# --- floods --------------------------------------------------------------------------------------


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


# --- proofs --------------------------------------------------------------------------------------


def test_proofs_are_given_of_recent_blocks(side: Side) -> None:
    blocks = mine(side.chain_node, serving.PROOF_DEPTH + 5, register(QUICK, BOB))
    peer = stranger(side)
    keys = (TIP_KEY, payee_key(BOB.key), payee_key(CAROL.key))
    peer.says(GetProofs(blocks[-3].hash, keys))
    (answer,) = peer.was_told(Proofs)
    assert isinstance(answer, Proofs) and len(answer.proofs) == 3
    for gone in (blocks[3].hash, h("nobody's")):
        peer.says(GetProofs(gone, keys))
        assert peer.was_told(NotFound) == [NotFound(Item.BLOCK, (gone,))]
    assert peer.seen.points == 0
    peer.says(GetProofs(blocks[-1].hash, (b"E" + bytes(4),)))
    assert peer.seen.over == "bad-proof" and b"E" not in PROVABLE


# --- small things --------------------------------------------------------------------------------


def test_token_buckets() -> None:
    bucket = TokenBucket(10, 50, 0.0)
    bucket.take(50, 0.0)
    assert bucket.wait(0.0) == 0
    bucket.take(20, 0.0)
    assert bucket.wait(0.0) == 2 and bucket.wait(1.5) == 0.5
    bucket.take(0, 1000.0)
    bucket.take(51, 1000.0)
    assert bucket.wait(1000.0) == pytest.approx(0.1)  # no more than 50 were saved up


def test_known_hashes_are_forgotten_in_their_order() -> None:
    known = Known(3)
    assert [known.add(bytes([i])) for i in (1, 2, 3, 2, 4)] == [True, True, True, False, True]
    assert bytes([1]) not in known and bytes([2]) in known and len(known) == 3
    known.discard(bytes([2]))
    assert known.add(bytes([2]))
    known.clear()
    assert len(known) == 0


def test_points_add_up_to_a_ban(side: Side) -> None:
    peer = stranger(side)
    peer.seen.refused("bad-score", 20)
    assert peer.seen.over is None
    peer.seen.refused("bad-score", BAN - 20)
    assert peer.seen.over == "bad-score" and peer.seen.misbehaved


def test_a_flood_of_known_headers_costs_little(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = mine(side.chain_node, 100)
    hashed = []

    def counted(data: bytes) -> bytes:
        hashed.append(data)
        return sha256d(data)

    monkeypatch.setattr(exchange, "sha256d", counted)
    peer = stranger(side)
    assert peer.says(headers(blocks)) is None
    assert peer.seen.best is side.chain.tip
    assert len(hashed) < 10
