"""Transactions and announcements go everywhere, once."""

from __future__ import annotations

import msgspec

from sidechain.limits import PATIENCE
from sidechain.protocol import (
    GetData,
    Headers,
    Inv,
    Item,
    NotFound,
    Reject,
    Tx,
)
from sidechain.scores import Scored, ScoreRequest
from tests.sidechain.test_announcements import announcement
from tests.sidechain.wire import LATER, Side, Wire, mine, stranger
from tests.sidechain.world import (
    ALICE,
    BOB,
    COST,
    QUICK,
    add_model,
    commit,
    register,
    reveal,
    rivals,
)


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
