"""Ways to be refused by the rules of headers, blocks and transactions, one for each reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sidechain.primitives import (
    AnyTransaction,
    Block,
    Commit,
    Header,
    Producer,
    decode_transaction,
    signed,
)
from sidechain.reasons import VERDICTS, Rejection
from sidechain.validation import BlockDraft
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    QUICK,
    World,
    add_model,
    commit,
    finished,
    h,
    open_shard,
    register,
    reveal,
    sealed_block,
    solved,
)

CASES: dict[str, list[Callable[[], str]]] = {}


def case(reason: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """A function that answers with the reason for which something was refused."""

    def keep(function: Callable[[], str]) -> Callable[[], str]:
        CASES.setdefault(reason, []).append(function)
        return function

    return keep


def reason_of(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(Rejection) as caught:
        function(*arguments)
    return caught.value.reason


def in_block(world: World, *txs: AnyTransaction) -> str:
    return world.refused(*txs) or "accepted"


def change(tx: Any, **changes: object) -> Any:
    return msgspec.structs.replace(tx, **changes)


# --- encoding ------------------------------------------------------------------------------------

case("hdr-decode")(lambda: reason_of(Header.decode, bytes(79)))
case("tx-decode")(lambda: reason_of(decode_transaction, bytes(20_000)))
case("blk-decode")(lambda: reason_of(Block.decode, bytes(80), 1 << 16))
case("bad-blk-length")(lambda: reason_of(Block.decode, bytes(101), 100))


@case("bad-blk-length")
def _long_block() -> str:
    world = World(replace(QUICK, block_bytes=150))
    return in_block(world, commit(world.params, h("m"), BOB, "w"))


# --- headers -------------------------------------------------------------------------------------


def header_refused(world: World | None = None, **changes: Any) -> str:
    world = world or World()
    block = world.build()
    header = solved(change(block.header, nonce=0, **changes))
    return reason_of(world.chain.accept_header, header, world.now)


case("prev-blk-not-found")(lambda: header_refused(prev=h("nobody")))
case("time-too-old")(lambda: header_refused(time=QUICK.genesis_time))
case("time-too-new")(lambda: header_refused(time=QUICK.genesis_time + 600 + 15 * 60 + 1))
case("bad-diffbits")(lambda: header_refused(bits=0x207FFFFE))
case("bad-diffbits")(lambda: header_refused(bits=0x1F7FFFFF))  # more work than is asked for


@case("high-hash")
def _no_work() -> str:
    world = World(replace(QUICK, pow_limit_bits=0x1F00FFFF))
    header = Header(1, world.chain.tip.hash, bytes(32), world.now + 600, 0x1F00FFFF, 0)
    return reason_of(world.chain.accept_header, header, world.now + 600)


@case("bad-prevblk")
def _child_of_invalid() -> str:
    world = World()
    bad = world.build(extra=b"bad", honest=True)
    producer = change(bad.transactions[0], state_root=h("wrong"))
    bad = sealed_block(Block(bad.header, (producer,)))
    world.submit(bad)
    child = solved(Header(1, bad.hash, bytes(32), world.now + 1, QUICK.pow_limit_bits, 0))
    return reason_of(world.chain.accept_header, child, world.now)


@case("duplicate-invalid")
def _again() -> str:
    world = World()
    block = world.build(add_model(QUICK), honest=False)
    world.truth.score(block.transactions[1].txid, "first", 1)
    world.submit(block)
    return reason_of(world.chain.accept_block, block, world.now)


# --- blocks --------------------------------------------------------------------------------------


def block_refused(make: Callable[[World, Block], Block], *, seal: bool = True) -> str:
    """What a chain says of an honest block that was changed."""
    world = World()
    block = make(world, world.build(commit(QUICK, h("m"), BOB, "w")))
    block = sealed_block(block) if seal else block
    try:
        world.chain.accept_block(block, world.now)
    except Rejection as rejection:
        return rejection.reason
    done = world.chain.advance(world.truth.scores)
    assert done.rejected[0][0] == block.hash
    return done.rejected[0][1]


def with_producer(block: Block, **changes: Any) -> Block:
    return Block(block.header, (change(block.transactions[0], **changes), *block.transactions[1:]))


@case("bad-txnmrklroot")
def _other_transactions() -> str:
    return block_refused(lambda w, b: Block(b.header, b.transactions[:1]), seal=False)


@case("bad-producer-missing")
def _no_producer() -> str:
    return block_refused(lambda w, b: Block(b.header, b.transactions[1:]))


@case("bad-producer-missing")
def _producer_second() -> str:
    return block_refused(lambda w, b: Block(b.header, b.transactions[::-1]))


@case("bad-producer-multiple")
def _two_producers() -> str:
    return block_refused(lambda w, b: Block(b.header, (*b.transactions, b.transactions[0])))


@case("bad-producer-multiple")
def _producer_in_draft() -> str:
    producer = Producer(QUICK.network_id, 0, 1, BOB.key, bytes(32), b"")
    return reason_of(BlockDraft(QUICK, World().state, 1, BOB.key).apply, producer)


@case("bad-producer-height")
def _wrong_height() -> str:
    return block_refused(lambda w, b: with_producer(b, height=2))


@case("bad-state-root")
def _wrong_root() -> str:
    return block_refused(lambda w, b: with_producer(b, state_root=h("wrong")))


@case("bad-state-root")
def _stolen_block() -> str:
    """Another's transactions under one's own key, without computing the state."""
    return block_refused(lambda w, b: with_producer(b, payee=BOB.key))


@case("bad-txns-duplicate")
def _twice() -> str:
    return block_refused(lambda w, b: Block(b.header, (*b.transactions, b.transactions[1])))


@case("bad-network")
def _other_networks_producer() -> str:
    return block_refused(lambda w, b: with_producer(b, network_id=1))


@case("bad-blk-cost")
def _costly_block() -> str:
    world = World(replace(QUICK, score_cost=1500))
    return in_block(world, *(add_model(world.params, weights=name) for name in "ab"))


@case("too-many-openings")
def _openings() -> str:
    world = World()
    names = [f"model {i}" for i in range(QUICK.openings_per_block + 1)]
    models = [world.model(weights=name, shards=("s",), openers=(CAROL,)) for name in names]
    return in_block(world, *(open_shard(QUICK, m, 0, "s", CAROL) for m in models))


@case("model-twice-in-block")
def _two_reveals() -> str:
    world, model = sealed_world()
    world.mine(*(commit(QUICK, model, BOB, name) for name in "ab"))
    world.wait(1)
    for name in "ab":
        world.truth.score(model, name, 5000)
    return in_block(world, *(reveal(QUICK, model, BOB, name, 5000) for name in "ab"))


@case("model-twice-in-block")
def _two_openings() -> str:
    world, model = sealed_world()
    return in_block(world, *(open_shard(QUICK, model, i, "ab"[i], CAROL) for i in range(2)))


# --- transactions --------------------------------------------------------------------------------


@case("bad-network")
def _other_network() -> str:
    return in_block(World(), commit(replace(QUICK, network_id=5), h("m"), BOB, "w"))


@case("bad-stamp")
def _no_stamp() -> str:
    world = World(replace(QUICK, stamp=1 << 40))
    return in_block(world, Commit(QUICK.network_id, 0, h("blind")))


@case("bad-stamp")
def _small_stamp_of_a_model() -> str:
    tx = add_model(QUICK)
    return in_block(World(replace(QUICK, model_stamp=1 << 40)), tx)


def forged(tx: Any) -> Any:
    return signed(tx, CAROL.secret)


@case("bad-signature")
def _forged_payee() -> str:
    return in_block(World(), forged(register(QUICK, ALICE)))


@case("bad-signature")
def _forged_model() -> str:
    return in_block(World(), forged(add_model(QUICK)))


@case("bad-signature")
def _forged_reveal() -> str:
    return in_block(World(), forged(reveal(QUICK, h("m"), BOB, "w", 1)))


@case("bad-payee-endpoint")
def _endpoint() -> str:
    return in_block(World(), register(QUICK, ALICE, endpoint="http://a b"))


@case("bad-payee-proof")
def _other_node() -> str:
    """A key that names somebody else's node as its own."""
    tx = register(QUICK, ALICE)
    return in_block(World(), finished(QUICK, change(tx, node_id=BOB.node_id), ALICE))


@case("bad-payee-proof")
def _replayed_proof() -> str:
    """The node signed for seq 1; the key says seq 2."""
    return in_block(World(), finished(QUICK, change(register(QUICK, ALICE), seq=2), ALICE))


@case("stale-seq")
def _replayed_payee() -> str:
    world = World()
    world.mine(register(QUICK, ALICE, seq=2))
    assert in_block(world, register(QUICK, ALICE, seq=1)) == "stale-seq"
    return in_block(world, register(QUICK, ALICE, seq=2))


@case("bad-shards")
def _shards_without_opener() -> str:
    return in_block(World(), add_model(QUICK, shards=("a",)))


@case("bad-shards")
def _opener_without_shards() -> str:
    return in_block(World(), add_model(QUICK, openers=(BOB,)))


@case("bad-shards")
def _same_shard_twice() -> str:
    return in_block(World(), add_model(QUICK, shards=("a", "a"), openers=(BOB,)))


@case("bad-shards")
def _same_opener_twice() -> str:
    return in_block(World(), add_model(QUICK, shards=("a",), openers=(BOB, BOB)))


@case("model-too-costly")
def _costly_model() -> str:
    return in_block(World(), add_model(QUICK, cost=QUICK.score_cost + 1))


@case("model-too-costly")
def _model_that_could_never_be_opened() -> str:
    cost = QUICK.score_cost // 2 + 1
    return in_block(World(), add_model(QUICK, cost=cost, shards=("a",), openers=(BOB,)))


def model_refused(**truth: Any) -> str:
    world, tx = World(), add_model(QUICK)
    if "reason" in truth:
        world.truth.unusable(tx.txid, "first", truth["reason"])
    else:
        world.truth.score(tx.txid, "first", **truth)
    return in_block(world, tx)


case("bad-score")(lambda: model_refused(score=9_999))
case("bad-score")(lambda: model_refused(score=10_001))
case("bad-score-cost")(lambda: model_refused(score=10_000, cost=COST + 1))
for _verdict in sorted(VERDICTS):
    case(_verdict)(lambda verdict=_verdict: model_refused(reason=verdict))  # type: ignore[misc]  # mypy can't infer a lambda's default


@case("root-known")
def _known_model() -> str:
    world = World()
    world.model()
    return in_block(world, add_model(QUICK, BOB))


@case("trainer-is-opener")
def _opener_adds() -> str:
    return in_block(World(), add_model(QUICK, ALICE, shards=("a",), openers=(ALICE,)))


@case("commit-known")
def _copied_commit() -> str:
    world = World()
    world.mine(commit(QUICK, h("m"), BOB, "w"))
    copy = commit(QUICK, h("m"), BOB, "w")
    return in_block(world, finished(QUICK, change(copy, stamp_nonce=copy.stamp_nonce + 1)))


# --- reveals -------------------------------------------------------------------------------------


def plain_world() -> tuple[World, bytes]:
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)  # min_gain is enough
    return world, model


def sealed_world() -> tuple[World, bytes]:
    world = World()
    model = world.model(shards=("a", "b"), openers=(CAROL,))
    world.wait(QUICK.tenure)
    return world, model


@case("model-missing")
def _reveal_for_nothing() -> str:
    return in_block(World(), reveal(QUICK, h("m"), BOB, "w", 1))


@case("model-missing")
def _opening_of_nothing() -> str:
    return in_block(World(), open_shard(QUICK, h("m"), 0, "a", CAROL))


@case("trainer-is-opener")
def _opener_reveals() -> str:
    world, model = sealed_world()
    world.committed(model, CAROL, "w")
    return in_block(world, reveal(QUICK, model, CAROL, "w", 1))


@case("provisional-pending")
def _second_provisional() -> str:
    world, model = sealed_world()
    world.committed(model, BOB, "two")
    world.update(model, BOB, "one", 9_000)
    return in_block(world, reveal(QUICK, model, BOB, "two", 1))


@case("commit-missing")
def _never_committed() -> str:
    world, model = plain_world()
    return in_block(world, reveal(QUICK, model, BOB, "w", 1))


@case("commit-missing")
def _thief() -> str:
    """Bob committed; Carol saw his reveal on its way and claims the weights."""
    world, model = plain_world()
    world.committed(model, BOB, "w")
    return in_block(world, reveal(QUICK, model, CAROL, "w", 1))


@case("commit-missing")
def _expired() -> str:
    world, model = plain_world()
    world.mine(commit(QUICK, model, BOB, "w"))
    world.wait(QUICK.commit_ttl - 1)
    assert in_block(world, reveal(QUICK, model, BOB, "w", 1)) == "accepted"
    world.wait(1)
    return in_block(world, reveal(QUICK, model, BOB, "w", 1))


@case("commit-immature")
def _too_early() -> str:
    world, model = plain_world()
    world.mine(commit(QUICK, model, BOB, "w"))
    return in_block(world, reveal(QUICK, model, BOB, "w", 1))


@case("root-known")
def _replayed_reveal() -> str:
    world, model = plain_world()
    world.update(model, BOB, "w", 9_000)
    world.committed(model, CAROL, "w")
    return in_block(world, reveal(QUICK, model, CAROL, "w", 1))


@case("root-known")
def _first_weights_as_an_update() -> str:
    world, model = plain_world()
    other = world.model(weights="other")
    world.committed(model, BOB, "other")
    assert world.state.model(other) is not None
    return in_block(world, reveal(QUICK, model, BOB, "other", 1))


@case("no-sealed-shard")
def _all_open() -> str:
    world, model = sealed_world()
    for i, name in enumerate("ab"):
        world.mine(open_shard(QUICK, model, i, name, CAROL))
    world.committed(model, BOB, "w")
    return in_block(world, reveal(QUICK, model, BOB, "w", 1))


@case("no-gain")
def _too_little() -> str:
    world, model = plain_world()
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_990)
    assert in_block(world, reveal(QUICK, model, BOB, "w", 9_990)) == "accepted"
    return in_block(world, reveal(QUICK, model, BOB, "w", 9_991))


def reveal_refused(stated: int, **truth: Any) -> str:
    world, model = plain_world()
    world.committed(model, BOB, "w")
    if "reason" in truth:
        world.truth.unusable(model, "w", truth["reason"])
    else:
        world.truth.score(model, "w", **truth)
    return in_block(world, reveal(QUICK, model, BOB, "w", stated))


case("bad-score")(lambda: reveal_refused(9_000, score=9_001))
case("bad-score")(lambda: reveal_refused(9_001, score=9_000))
case("bad-weights")(lambda: reveal_refused(9_000, reason="bad-weights"))


# --- shards --------------------------------------------------------------------------------------


@case("shard-missing")
def _no_such_shard() -> str:
    world, model = sealed_world()
    return in_block(world, open_shard(QUICK, model, 2, "a", CAROL))


@case("shard-open")
def _opened_again() -> str:
    world, model = sealed_world()
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    return in_block(world, open_shard(QUICK, model, 0, "a", CAROL))


@case("bad-shard-key")
def _wrong_key() -> str:
    world, model = sealed_world()
    return in_block(world, open_shard(QUICK, model, 0, "b", CAROL))


@case("not-an-opener")
def _stranger_opens() -> str:
    world, model = sealed_world()
    return in_block(world, open_shard(QUICK, model, 0, "a", BOB))
