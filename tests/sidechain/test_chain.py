from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidechain.chain import Chain, Status
from sidechain.headers import HeaderRecord
from sidechain.primitives import AnyTransaction, Block
from sidechain.scores import (
    PairedRequest,
    PairedSums,
    Scored,
    ScoreRequest,
    Scores,
    Unusable,
)
from sidechain.state import ChainState
from sidechain.validation import state_transition
from tests.sidechain.world import (
    ALICE,
    BAD,
    BOB,
    CAROL,
    GOOD,
    QUICK,
    World,
    add_model,
    commit,
    h,
    open_shard,
    register,
    reveal,
)


def copy_of(world: World) -> World:
    """Another node with the same chain and the same scores."""
    other = World(world.params)
    other.truth = world.truth
    feed(other, world)
    return other


def feed(to: World, source: World) -> None:
    """All blocks of the source's chain, without advancing after each."""
    to.now = max(to.now, source.now)
    for record in list(source.chain.tip.chain())[-2::-1]:
        block = source.chain.block(record.hash)
        assert block is not None
        to.chain.accept_block(block, to.now)
    to.chain.advance(to.truth.scores)


def test_a_reorg_undoes_cleanly() -> None:
    world = World()
    world.mine(register(QUICK, ALICE))
    other = copy_of(world)
    world.mine(commit(QUICK, h("m"), BOB, "w"), register(QUICK, ALICE, 2))
    world.wait(2)
    before = other.state
    for _ in range(4):
        other.mine(extra=b"fork")
    feed(world, other)
    assert world.chain.tip is world.chain.headers.best
    assert world.chain.tip.hash == other.chain.tip.hash
    assert world.state == other.state
    assert other.chain.state_at(4) == before
    payee = world.state.payee(ALICE.key)
    assert payee is not None and payee.seq == 1


def test_advance_reports_what_it_undid() -> None:
    world = World()
    world.mine()
    other = copy_of(world)
    lost = [world.mine(commit(QUICK, h("m"), BOB, name)) for name in "abc"]
    won = [other.mine(extra=b"fork") for _ in range(4)]
    for block in won:
        world.chain.accept_block(block, other.now)
    done = world.chain.advance()
    assert done.disconnected == lost[::-1] and done.connected == won and done.moved
    assert not world.chain.advance().moved
    assert [world.chain.status(block.hash) for block in (lost[0], won[0])] == [
        Status.STALE,
        Status.ACTIVE,
    ]


def test_equal_work_does_not_move_the_tip() -> None:
    world = World()
    other = copy_of(world)
    mine, theirs = world.mine(extra=b"a"), other.mine(extra=b"b")
    feed(world, other)
    assert world.chain.tip.hash == mine.hash
    assert world.chain.status(theirs.hash) is Status.STALE


def test_missing_weights_are_never_a_verdict() -> None:
    """A block whose weights nobody has is pending, is not built on, and is taken up when they
    come."""
    world = World()
    model = world.model()
    world.committed(model, BOB, "w")
    other = copy_of(world)
    other.truth = type(world.truth)(dict(world.truth.public), dict(world.truth.paired))
    world.truth.score(model, "w", 9_000)
    pending = world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    child = world.mine()
    feed(other, world)
    assert other.chain.tip.height == world.height - 2
    assert other.chain.status(pending.hash) is Status.PENDING
    assert other.chain.status(child.hash) is Status.BODY
    ((request,),) = other.chain.pending().values()
    assert isinstance(request, ScoreRequest) and request.infohash == h("infohash w")
    # Others go on meanwhile, and the pending chain is still there when the weights arrive.
    rival = other.mine(extra=b"rival")
    assert other.chain.tip.hash == rival.hash
    assert [each.hash for each in other.chain.pending()] == [pending.hash]
    other.truth.score(model, "w", 9_000)
    done = other.chain.advance(other.truth.scores)
    assert other.chain.tip.hash == child.hash and done.disconnected == [rival]
    assert other.chain.pending() == {}


def test_what_is_built_on_a_pending_block_costs_one_look() -> None:
    """Blocks come faster than scores: hundreds of them must not be tried one by one."""
    world = World()
    model = world.model()
    world.committed(model, BOB, "w")
    other = copy_of(world)
    other.truth = type(world.truth)(dict(world.truth.public), dict(world.truth.paired))
    world.truth.score(model, "w", 9_000)
    pending = world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    world.wait(400)
    feed(other, world)
    assert other.chain.tip.hash == pending.header.prev
    other.mine(extra=b"rival")
    with patch("sidechain.chain.state_transition", wraps=state_transition) as looked:
        other.chain.advance(other.truth.scores)
    assert looked.call_count == 1
    other.truth.score(model, "w", 9_000)
    other.chain.advance(other.truth.scores)
    assert other.chain.tip.hash == world.chain.tip.hash


def test_pending_blocks_wait_out_a_longer_chain_without_them() -> None:
    world = World()
    model = world.model()
    world.committed(model, BOB, "w")
    block = world.build()
    world.truth.score(model, "w", 9_000)
    hidden = world.build(reveal(QUICK, model, BOB, "w", 9_000))
    world.truth.public.clear()
    world.submit(hidden)
    assert world.chain.tip.height == world.chain.headers.best.height - 1
    world.submit(block)
    world.wait(3)
    assert world.chain.status(hidden.hash) is Status.PENDING
    assert hidden.hash not in [record.hash for record in world.chain.tip.chain()]


def test_blocks_may_come_in_any_order() -> None:
    world = World()
    blocks = [world.mine(extra=bytes([i])) for i in range(8)]
    other = World()
    for block in blocks:
        other.chain.accept_header(block.header, world.now)
    assert [each.height for each in other.chain.wanted(most=3)] == [1, 2, 3]
    assert other.chain.status(blocks[0].hash) is Status.HEADER
    assert other.chain.status(h("x")) is Status.UNKNOWN
    for block in [*blocks[4:], *blocks[:4][::-1]]:
        other.chain.accept_block(block, world.now)
        other.chain.accept_block(block, world.now)
        other.chain.advance()
    assert other.chain.tip.hash == world.chain.tip.hash
    assert other.chain.wanted() == []


def test_an_invalid_block_in_the_middle_ends_the_way_there() -> None:
    world = World()
    world.mine()
    other = copy_of(world)
    # The other node believes a score that is false, and builds on it.
    tx = add_model(QUICK)
    other.truth = type(world.truth)()
    other.truth.score(tx.txid, "first", tx.score)
    world.truth.score(tx.txid, "first", tx.score + 1)
    good = other.mine()
    bad = other.mine(tx)
    other.wait(3)
    feed(world, other)
    assert world.chain.tip.hash == good.hash
    assert world.chain.status(bad.hash) is Status.INVALID
    assert world.chain.status(other.chain.tip.hash) is Status.INVALID
    assert world.chain.headers.best is world.chain.tip
    world.mine()


def test_a_body_that_is_not_the_headers_says_nothing_of_the_block() -> None:
    world = World()
    block = world.build(commit(QUICK, h("m"), BOB, "w"))
    false = Block(block.header, block.transactions[:1])
    with pytest.raises(Exception, match="not those the header names"):
        world.submit(false)
    world.submit(block)
    assert world.chain.tip.hash == block.hash


def test_deep_reorgs_need_the_operators_word() -> None:
    params = replace(QUICK, max_reorg=3)
    world = World(params)
    world.mine()
    other = copy_of(world)
    world.wait(4)
    for _ in range(6):
        other.mine(extra=b"private")
    tip = world.chain.tip
    for record in list(other.chain.tip.chain())[-2::-1]:
        block = other.chain.block(record.hash)
        assert block is not None
        world.chain.accept_block(block, other.now)
    done = world.chain.advance()
    assert world.chain.tip is tip and done.held == [other.chain.tip.hash]
    world.chain.allow_reorg(other.chain.tip.hash)
    world.chain.advance()
    assert world.chain.tip.hash == other.chain.tip.hash


def test_a_restart_changes_nothing() -> None:
    world = World()
    model = world.model(shards=("a",), openers=(CAROL,))
    world.committed(model, BOB, "w")
    other = copy_of(world)
    world.wait(1)
    for _ in range(2):
        other.mine(extra=b"fork")
    feed(world, other)
    bad = world.build(add_model(QUICK, weights="junk"), honest=False)
    world.truth.score(bad.transactions[1].txid, "junk", 1)
    world.submit(bad)
    again = Chain(QUICK, world.store)
    assert again.tip.hash == world.chain.tip.hash and again.state == world.state
    assert again.status(bad.hash) is Status.INVALID
    assert again.headers.best.hash == again.tip.hash
    assert [r.hash for r in again.headers.records.values()] == [
        r.hash for r in world.chain.headers.records.values()
    ]
    reopened = World(QUICK, world.store)
    reopened.truth = world.truth
    reopened.wait(2)


def test_a_restart_finds_pending_blocks_again() -> None:
    world = World()
    model = world.model()
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_000)
    block = world.build(reveal(QUICK, model, BOB, "w", 9_000))
    found = world.truth.public.popitem()
    world.submit(block)
    again = World(QUICK, world.store)
    again.chain.advance(world.truth.scores)
    assert again.chain.status(block.hash) is Status.PENDING
    world.truth.public[found[0]] = found[1]
    again.chain.advance(world.truth.scores)
    assert again.chain.tip.hash == block.hash


# --- deep blocks ---------------------------------------------------------------------------------


def deep_world(sums: PairedSums = GOOD) -> tuple[World, bytes]:
    """A chain whose reveals and openings lie deep, on a network that trusts depth."""
    world = World(replace(QUICK, assume_scored_depth=5))
    model = world.model(shards=("a", "b"), openers=(CAROL,))
    world.update(model, BOB, "second", 9_000)
    world.truth.pair(model, 0, "a", "first", "second", sums)
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    world.wait(6)
    return world, model


@pytest.mark.parametrize(("sums", "current"), [(GOOD, "second"), (BAD, "first")])
def test_deep_blocks_follow_work_alone(sums: PairedSums, current: str) -> None:
    """Without one weight, a new node finds the same state: outcomes follow from the state roots."""
    world, _ = deep_world(sums)
    fresh = World(world.params)
    feed(fresh, world)
    assert fresh.chain.tip.hash == world.chain.tip.hash and fresh.state == world.state
    # The current version is asked for all the same.
    (request,) = fresh.chain.unverified()
    assert request.weights_root == h(current)
    score = 9_000 if current == "second" else 10_000
    fresh.chain.verify(request, Scored(score, 1000))
    assert fresh.chain.unverified() == ()
    fresh.chain.verify(request, Scored(0, 0))  # it was answered
    assert not fresh.chain.advance().moved


def test_a_false_score_that_was_taken_on_trust_ends_the_chain_there() -> None:
    world, model = deep_world()
    fresh = World(world.params)
    feed(fresh, world)
    (request,) = fresh.chain.unverified()
    for answer in (Scored(9_001, 1000), Unusable("bad-weights")):
        again = World(world.params)
        feed(again, world)
        again.chain.verify(request, answer)
        done = again.chain.advance()
        assert done.disconnected and again.chain.tip.invalid is None
        assert again.state.model(model) != world.state.model(model)
    pair = PairedRequest(model, 0, h("a"), h("first"), h("second"), b"", b"")
    fresh.chain.verify(pair, BAD)
    fresh.chain.advance()
    assert fresh.chain.headers.best is fresh.chain.tip
    assert fresh.chain.tip.height < world.height


def test_trust_does_not_survive_a_restart_unchecked() -> None:
    world, _ = deep_world()
    fresh = World(world.params)
    feed(fresh, world)
    again = Chain(world.params, fresh.store)
    assert again.unverified() == fresh.chain.unverified() != ()


def test_recent_blocks_are_not_trusted() -> None:
    world, model = deep_world()
    world.committed(model, ALICE, "third")
    world.truth.score(model, "third", 5_000)
    block = world.mine(reveal(QUICK, model, ALICE, "third", 5_000))
    fresh = World(world.params)
    feed(fresh, world)
    assert fresh.chain.status(block.hash) is Status.PENDING


# --- undo(apply(x)) == x over random histories ---------------------------------------------------


class Histories(RuleBasedStateMachine):
    """Random blocks on random parents; the chain must agree with a replay from genesis."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.states: dict[bytes, ChainState] = {self.world.chain.tip.hash: ChainState()}
        self.model: bytes | None = None
        self.count = 0

    def grow(self, parent: HeaderRecord, *txs: AnyTransaction) -> Block:
        self.count += 1
        state = self.states[parent.hash]
        extra = self.count.to_bytes(4, "big")
        block = self.world.build(*txs, parent=parent, state=state, extra=extra)
        after = state_transition(QUICK, state, block, self.world.truth.scores)
        assert after.state.undone(after.undo) == state
        assert dict(after.state.undone(after.undo).entries()) == dict(state.entries())
        self.states[block.hash] = after.state
        self.world.submit(block)
        return block

    @rule(back=st.integers(0, 4), seq=st.integers(1, 5), who=st.sampled_from([ALICE, BOB]))
    def payee(self, back: int, seq: int, who: object) -> None:
        parent = self.world.chain.tip.ancestor(max(0, self.world.height - back))
        self.grow(parent, register(QUICK, who, seq))  # type: ignore[arg-type] # sampled persons

    @rule(back=st.integers(0, 3), name=st.sampled_from("abcd"))
    def commits(self, back: int, name: str) -> None:
        parent = self.world.chain.tip.ancestor(max(0, self.world.height - back))
        self.grow(parent, commit(QUICK, self.model or h("none"), BOB, name))

    @precondition(lambda self: self.model is None)
    @rule()
    def adds(self) -> None:
        tx = add_model(QUICK, shards=("a", "b", "c"), openers=(CAROL,))
        self.world.truth.score(tx.txid, "first", tx.score)
        self.model = tx.txid
        self.grow(self.world.chain.tip, tx)

    @precondition(lambda self: self.model is not None)
    @rule(name=st.sampled_from("abcd"), score=st.integers(0, 12_000))
    def reveals(self, name: str, score: int) -> None:
        assert self.model is not None
        self.world.truth.score(self.model, name, score)
        self.grow(self.world.chain.tip, reveal(QUICK, self.model, BOB, name, score))

    @precondition(lambda self: self.model is not None)
    @rule(i=st.integers(0, 2), sums=st.sampled_from([GOOD, BAD]), back=st.integers(0, 2))
    def opens(self, i: int, sums: PairedSums, back: int) -> None:
        assert self.model is not None
        parent = self.world.chain.tip.ancestor(max(0, self.world.height - back))
        model = self.states[parent.hash].model(self.model)
        if model is not None and model.provisional is not None:
            request = PairedRequest(
                self.model,
                i,
                h("abc"[i]),
                model.confirmed.weights_root,
                model.provisional.weights_root,
                b"",
                b"",
            )
            self.world.truth.paired.setdefault(request, sums)
        self.grow(parent, open_shard(QUICK, self.model, i, "abc"[i], CAROL))

    @rule(count=st.integers(1, 25))
    def waits(self, count: int) -> None:
        for _ in range(count):
            self.grow(self.world.chain.tip)

    @rule()
    def restarts(self) -> None:
        before = self.world.chain
        self.world.chain = Chain(QUICK, self.world.store)
        assert self.world.chain.tip.hash == before.tip.hash

    @invariant()
    def agrees_with_a_replay(self) -> None:
        chain = self.world.chain
        assert chain.state == self.states[chain.tip.hash]
        assert chain.state == ChainState.load(self.world.store.entries())
        best = max(record.work for record in chain.headers.records.values())
        assert chain.tip.work == best


Histories.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase


def test_scores_are_empty_by_default() -> None:
    assert Scores() == Scores({}, {})
