from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from channels.errors import UserError
from sidechain.announcements import LIFETIME
from sidechain.chain import Status
from sidechain.node import (
    AnnouncementAdded,
    BlockPending,
    BlockRejected,
    ChainNode,
    Event,
    HeadersAdded,
    Refusal,
    ScoreAdded,
    TipChanged,
    TransactionAdded,
)
from sidechain.params import Params
from sidechain.primitives import RegisterPayee
from sidechain.reasons import Rejection
from sidechain.scores import PairedSums, Request, Scored, ScoreRequest, Unusable
from sidechain.state import Definition
from sidechain.store import SqliteStore
from tests.sidechain.test_announcements import NOW, announcement
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    MINER,
    QUICK,
    World,
    add_model,
    commit,
    h,
    register,
    reveal,
    sealed_block,
)


class AskedFor:
    """A scorer that only writes down what is wanted of it."""

    def __init__(self) -> None:
        self.wanted: dict[Request, Definition] = {}

    def want(self, wanted: Mapping[Request, Definition]) -> None:
        self.wanted = dict(wanted)


class Bench:
    """A node on a disk, everything it told, and a world that makes blocks for it."""

    def __init__(self, path: Path, params: Params = QUICK) -> None:
        self.path = path
        self.world = World(params)
        self.scorer = AskedFor()
        self.start()

    def start(self) -> None:
        store = SqliteStore(self.path)
        params = self.world.params
        self.node = ChainNode(params, store, now=lambda: self.world.now, scorer=self.scorer)
        self.events: list[Event] = []
        self.node.listen(self.events.append)

    def restart(self) -> None:
        self.node.store.close()
        self.start()

    def told(self, kind: type[Event]) -> list[Event]:
        found = [event for event in self.events if isinstance(event, kind)]
        self.events.clear()
        return found

    def feed(self) -> None:
        """All that the world's chain has and the node has not."""
        with self.node.turn():
            for record in list(self.world.chain.tip.chain())[-2::-1]:
                block = self.world.chain.block(record.hash)
                assert block is not None
                self.node.accept_block(block)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "chain.sqlite")
    yield bench
    bench.node.store.close()


def test_blocks_of_a_turn_are_one_step(bench: Bench) -> None:
    bench.world.mine(register(QUICK, ALICE))
    bench.world.wait(5)
    bench.feed()
    headers, moved = bench.events
    assert isinstance(headers, HeadersAdded) and headers.best is bench.node.chain.tip
    assert isinstance(moved, TipChanged) and len(moved.advance.connected) == 6
    assert bench.node.chain.state == bench.world.state
    bench.feed()
    assert len(bench.events) == 2
    bench.restart()
    assert bench.node.chain.tip.hash == bench.world.chain.tip.hash
    assert bench.node.chain.state == bench.world.state


def test_a_pending_block_waits_for_its_score(bench: Bench) -> None:
    model = bench.world.model()
    bench.feed()
    (request,) = bench.scorer.wanted
    assert bench.scorer.wanted[request] == bench.world.state.definition(model)
    assert bench.told(BlockPending) == [BlockPending(bench.world.chain.tip.hash, (request,))]
    bench.restart()
    assert bench.scorer.wanted.keys() == {request}
    bench.events.clear()
    answer = Scored(10_000, COST)
    bench.node.scored(request, answer)
    added, moved = bench.events
    assert added == ScoreAdded(request, answer) and isinstance(moved, TipChanged)
    assert bench.scorer.wanted == {}
    # Nothing is scored twice, not even after a restart.
    bench.restart()
    assert bench.scorer.wanted == {} and bench.node.chain.tip.height == 1
    assert bench.node.answer(request) == answer


def test_a_turn_is_told_once_it_is_on_disk(bench: Bench) -> None:
    """Inside of it, and on a disk that can't be written, nobody hears a thing."""
    node = bench.node
    bench.world.wait(2)
    blocks = [bench.world.chain.block(each.hash) for each in bench.world.chain.tip.chain()][-2::-1]
    with node.turn():
        with node.turn():
            for block in blocks:
                assert block is not None
                node.accept_block(block)
        node.accept_transaction(register(QUICK, ALICE))
        assert bench.events == [] and node.chain.tip.height == 0
    assert [type(each) for each in bench.events] == [TransactionAdded, HeadersAdded, TipChanged]
    bench.events.clear()
    full = sqlite3.OperationalError("database or disk is full")
    with patch.object(SqliteStore, "commit", side_effect=full), pytest.raises(sqlite3.Error):
        node.accept_transaction(register(QUICK, BOB))
    assert bench.events == []
    with pytest.raises(UserError) as caught:
        node.accept_transaction(register(QUICK, BOB))
    assert caught.value.reason == "node-stopped"
    bench.restart()
    assert [tx.txid for tx in bench.node.mempool] == [register(QUICK, ALICE).txid]


def test_what_breaks_in_the_middle_of_a_call_keeps_nothing_of_its_turn(bench: Bench) -> None:
    bench.world.wait(2)
    interrupted = patch.object(SqliteStore, "connect", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        bench.feed()
    assert bench.events == []
    bench.restart()
    assert len(bench.node.chain.headers.records) == 1
    bench.feed()
    assert bench.node.chain.tip.height == 2


def test_a_refusal_leaves_what_came_before_it_in_the_turn(bench: Bench) -> None:
    world, node = bench.world, bench.node
    good = [world.mine().header, world.mine().header]
    bad = msgspec.structs.replace(good[1], bits=0x1D00FFFF, prev=good[1].hash)
    with pytest.raises(Rejection) as caught:
        node.accept_headers([*good, bad])
    assert caught.value.reason == "bad-diffbits"
    assert bench.told(HeadersAdded) == [HeadersAdded(node.chain.headers.records[good[1].hash])]
    assert list(node.rejections) == [Refusal(world.now, "header", bad.hash, "bad-diffbits")]
    with pytest.raises(ValueError):
        node.accept_headers([])
    orphan = msgspec.structs.replace(good[1], prev=h("nowhere"))
    with pytest.raises(Rejection):
        node.accept_headers([orphan])
    assert len(node.rejections) == 1  # that is no offence, and everyday
    bench.restart()
    assert bench.node.chain.headers.best.hash == good[1].hash


def test_a_block_that_lies_is_refused_when_its_score_comes(bench: Bench) -> None:
    world, node = bench.world, bench.node
    tx = add_model(QUICK, score=10_000)
    world.truth.score(tx.txid, "first", 10_000)
    lie = world.build(tx)
    node.accept_block(lie)
    (request,) = bench.scorer.wanted
    bench.events.clear()
    node.scored(request, Scored(9_999, COST))
    assert bench.events == [
        ScoreAdded(request, Scored(9_999, COST)),
        BlockRejected(lie.hash, "bad-score"),
    ]
    assert [(each.what, each.hash, each.reason) for each in node.rejections] == [
        ("block", lie.hash, "bad-score")
    ]
    assert node.chain.status(lie.hash) is Status.INVALID and bench.scorer.wanted == {}
    bench.restart()
    with pytest.raises(Rejection) as caught:
        bench.node.accept_block(lie)
    assert caught.value.reason == "duplicate-invalid"
    # The same in a transaction is known at once.
    with pytest.raises(Rejection) as caught:
        bench.node.accept_transaction(tx)
    assert caught.value.reason == "bad-score"


def test_false_transactions_leave_the_mempool(bench: Bench) -> None:
    node = bench.node
    tx, junk = add_model(QUICK), add_model(QUICK, BOB, weights="junk")
    for each in (tx, junk):
        node.accept_transaction(each)
    assert [request.model for request in bench.scorer.wanted] in (
        [tx.txid, junk.txid],
        [junk.txid, tx.txid],
    )
    assert {*bench.scorer.wanted.values()} == {Definition.of(tx), Definition.of(junk)}
    assert len(node.template(MINER.key).transactions) == 1
    for request in list(bench.scorer.wanted):
        false = request.model == junk.txid
        node.scored(request, Unusable("bad-weights") if false else Scored(tx.score, COST))
    assert list(node.mempool) == [tx] and bench.scorer.wanted == {}
    assert [(each.hash, each.reason) for each in node.rejections] == [(junk.txid, "bad-weights")]
    block = sealed_block(node.template(MINER.key, b"hi"))
    assert block.transactions[1:] == (tx,)
    node.accept_block(block)
    assert node.chain.tip.hash == block.hash and len(node.mempool) == 0
    bench.restart()
    assert len(bench.node.mempool) == 0


def test_a_reorg_brings_transactions_back_and_a_restart_keeps_them(bench: Bench) -> None:
    world, node = bench.world, bench.node
    rival = World(QUICK)
    waiting = commit(QUICK, h("m"), BOB, "x")
    world.mine(register(QUICK, ALICE), commit(QUICK, h("m"), BOB, "w"))
    bench.feed()
    node.accept_transaction(waiting)
    with pytest.raises(Rejection):
        node.accept_transaction(waiting)
    assert list(node.rejections) == []
    lost = [*world.chain.block(world.chain.tip.hash).transactions[1:]]  # type: ignore[union-attr] # it was just mined
    with node.turn():
        for _ in range(2):
            node.accept_block(rival.mine(extra=b"rival"))
    assert node.chain.tip.hash == rival.chain.tip.hash
    assert {tx.txid for tx in node.mempool} == {tx.txid for tx in (*lost, waiting)}
    bench.restart()
    assert {tx.txid for tx in bench.node.mempool} == {tx.txid for tx in (*lost, waiting)}
    # What was mined while it waited is not offered again.
    block = sealed_block(bench.node.template(MINER.key))
    bench.node.accept_block(block)
    assert len(block.transactions) == 4 and len(bench.node.mempool) == 0


def test_listeners_hear_things_in_their_order(bench: Bench) -> None:
    """Also when one of them makes the next thing happen."""
    node = bench.node
    heard: list[Event] = []

    def answer(event: Event) -> None:
        if isinstance(event, TransactionAdded) and len(heard) == 0:
            node.accept_transaction(register(QUICK, BOB))

    first = node.listen(answer)
    last = node.listen(heard.append)
    node.accept_transaction(register(QUICK, ALICE))
    txs = [event.tx for event in heard if isinstance(event, TransactionAdded)]
    keys = [tx.key for tx in txs if isinstance(tx, RegisterPayee)]
    assert keys == [ALICE.key, BOB.key]
    for unlisten in (first, last, last):
        unlisten()
    node.accept_transaction(register(QUICK, CAROL))
    assert len(heard) == 2 and len(bench.events) == 3


def test_models_that_only_a_pending_branch_knows_can_be_scored(bench: Bench) -> None:
    """The branch is behind by one block, so its model is neither in the state nor waiting."""
    world = bench.world
    model = world.model()
    world.committed(model, BOB, "second")
    world.truth.score(model, "second", 9_000)
    world.mine(reveal(QUICK, model, BOB, "second", 9_000))
    rival = World(QUICK)
    bench.node.accept_block(rival.mine(extra=b"rival"))
    bench.feed()
    definition = world.state.definition(model)
    for root in ("first", "second"):
        ((request, found),) = bench.scorer.wanted.items()
        assert isinstance(request, ScoreRequest) and request.weights_root == h(root)
        assert found == definition
        if root == "first":
            assert bench.node.chain.tip.hash == rival.chain.tip.hash
        bench.node.scored(request, world.truth.public[request])
    assert bench.node.chain.tip.hash == world.chain.tip.hash and bench.scorer.wanted == {}


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "chain.sqlite", replace(QUICK, assume_scored_depth=5))
    yield bench
    bench.node.store.close()


def test_nothing_is_mined_on_a_tip_that_rests_on_trust(trusting: Bench) -> None:
    model = trusting.world.model()
    trusting.world.wait(6)
    trusting.feed()
    node = trusting.node
    assert node.chain.tip.height == 7
    ((request, definition),) = trusting.scorer.wanted.items()
    assert definition == node.chain.state.definition(model)
    with pytest.raises(UserError) as caught:
        node.template(MINER.key)
    assert caught.value.reason == "tip-unverified"
    node.scored(request, trusting.world.truth.public[request])  # type: ignore[index] # a ScoreRequest
    assert node.template(MINER.key).header.prev == node.chain.tip.hash
    trusting.restart()
    assert trusting.scorer.wanted == {}
    assert trusting.node.template(MINER.key).header.prev == node.chain.tip.hash


def test_a_lie_that_was_trusted_is_left_when_it_shows(trusting: Bench) -> None:
    trusting.world.model()
    trusting.world.wait(6)
    trusting.feed()
    (request,) = trusting.scorer.wanted
    liar = trusting.world.chain.active(1)
    assert liar is not None
    trusting.events.clear()
    trusting.node.scored(request, Scored(9_999, COST))
    added, rejected, moved = trusting.events
    assert isinstance(added, ScoreAdded) and rejected == BlockRejected(liar.hash, "bad-score")
    assert isinstance(moved, TipChanged) and len(moved.advance.disconnected) == 7
    assert trusting.node.chain.tip.height == 0


def test_more_headers_can_bury_a_pending_block(trusting: Bench) -> None:
    world, node = trusting.world, trusting.node
    world.model()
    trusting.feed()
    assert node.chain.tip.height == 0 and len(trusting.scorer.wanted) == 1
    world.wait(6)
    records = list(world.chain.tip.chain())[-2::-1]
    node.accept_headers([each.header for each in records])
    assert node.chain.tip.height == 1


def test_a_deep_reorg_waits_for_the_operator(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "chain.sqlite", replace(QUICK, max_reorg=2))
    rival = World(QUICK)
    bench.world.wait(5)
    with bench.node.turn():
        for _ in range(3):
            bench.node.accept_block(rival.mine(extra=b"rival"))
    assert not bench.node.held
    bench.feed()
    held = bench.node.held
    assert held == (bench.world.chain.tip.hash,)
    assert bench.node.chain.tip.hash == rival.chain.tip.hash
    bench.node.allow_reorg(bench.world.chain.tip.hash)
    assert bench.node.chain.tip.hash == bench.world.chain.tip.hash and not bench.node.held
    bench.node.store.close()


def test_blocks_ahead_of_the_clock_are_not_mined(bench: Bench) -> None:
    bench.world.wait(12)
    bench.feed()
    bench.world.now -= 6 * QUICK.spacing + QUICK.future_limit
    with pytest.raises(UserError) as caught:
        bench.node.template(MINER.key)
    assert caught.value.reason == "chain-ahead"


def test_announcements_are_told_and_expire(bench: Bench) -> None:
    bench.world.now = NOW
    bench.node.accept_announcement(announcement(ALICE))
    assert bench.told(AnnouncementAdded) == [AnnouncementAdded(announcement(ALICE))]
    with pytest.raises(Rejection):
        bench.node.accept_announcement(announcement(ALICE))
    assert bench.node.rejections[-1] == Refusal(NOW, "announcement", ALICE.key, "stale-seq")
    bench.world.now = NOW + LIFETIME
    bench.node.accept_announcement(announcement(BOB, expires=NOW + 2 * LIFETIME))
    assert [each.key for each in bench.node.announcements] == [BOB.key]


def test_answers_must_be_of_the_questions_kind(bench: Bench) -> None:
    with pytest.raises(ValueError):
        bench.node.scored(ScoreRequest(h("m"), h("w"), h("i")), PairedSums(0, 0, 0))
    bench.world.wait(1)
    bench.feed()
    assert bench.node.chain.tip.height == 1
