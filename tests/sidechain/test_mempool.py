from __future__ import annotations

from dataclasses import replace

import pytest

from sidechain.mempool import MAX_WAIT, Mempool
from sidechain.primitives import AnyTransaction, Block, Commit, Producer, RegisterPayee, stamp_work
from sidechain.reasons import Rejection
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    QUICK,
    World,
    add_model,
    commit,
    finished,
    h,
    open_shard,
    register,
    reveal,
)


def blind(name: str, work: int = 4) -> Commit:
    return finished(replace(QUICK, stamp=work), Commit(QUICK.network_id, 0, h(name)))


def test_the_best_stamp_comes_first() -> None:
    pool, state = Mempool(QUICK), World().state
    txs = [blind(str(i), 4**i) for i in range(1, 6)]
    for tx in txs:
        pool.add(tx, state)
    works = [stamp_work(tx) for tx in pool]
    assert works == sorted(works, reverse=True) and len(pool) == 5
    assert pool.size == sum(len(tx.encode()) for tx in txs)
    assert all(pool.get(tx.txid) == tx and tx.txid in pool for tx in txs)
    assert pool.get(h("x")) is None


def test_a_higher_seq_replaces_a_lower_one_only() -> None:
    pool, state = Mempool(QUICK), World().state
    old, new = register(QUICK, ALICE, 1), register(QUICK, ALICE, 2)
    pool.add(old, state)
    pool.add(new, state)
    assert list(pool) == [new]
    with pytest.raises(Rejection) as caught:
        pool.add(old, state)
    assert caught.value.reason == "txn-mempool-conflict"
    pool.add(register(QUICK, BOB, 1), state)
    assert len(pool) == 2


def test_the_same_thing_again_needs_twice_the_work() -> None:
    pool, state = Mempool(QUICK), World().state
    first = blind("same", 64)
    pool.add(first, state)
    tries = (Commit(QUICK.network_id, i, h("same")) for i in range(10**6))
    better = (tx for tx in tries if stamp_work(tx) > stamp_work(first))
    for tx in better:
        if stamp_work(tx) >= 2 * stamp_work(first):
            pool.add(tx, state)
            break
        with pytest.raises(Rejection):
            pool.add(tx, state)
    assert list(pool) == [tx]


def test_a_flood_pushes_out_nothing_that_cost_more() -> None:
    """What the flood costs: more work for every transaction it pushes out than its owner spent."""
    state = World().state
    dear = [blind(f"dear {i}", 256) for i in range(5)]
    pool = Mempool(QUICK, max_bytes=sum(len(tx.encode()) for tx in dear) + 200)
    for tx in dear:
        pool.add(tx, state)
    refused = 0
    for i in range(200):
        cheap = blind(f"cheap {i}")
        try:
            pool.add(cheap, state)
        except Rejection as rejection:
            assert rejection.reason == "mempool-full"
            refused += 1
    assert refused > 100
    least = min(stamp_work(tx) for tx in dear)
    for tx in dear:
        assert tx in list(pool) or any(
            stamp_work(other) > least for other in pool if other not in dear
        )
    assert pool.size <= sum(len(tx.encode()) for tx in dear) + 200


def test_eviction_takes_the_worst() -> None:
    state = World().state
    txs = sorted((blind(str(i), 2 ** (i % 9 + 2)) for i in range(20)), key=stamp_work)
    pool = Mempool(QUICK, max_bytes=10 * 45)
    for tx in txs:
        pool.add(tx, state)
    assert set(pool) == set(txs[-len(pool) :])
    assert len(pool) >= 9


def test_what_was_mined_goes_and_what_was_undone_comes_back() -> None:
    world, pool = World(), Mempool(QUICK)
    txs: list[AnyTransaction] = [commit(QUICK, h("m"), BOB, "a"), register(QUICK, ALICE)]
    for tx in txs:
        pool.add(tx, world.state)
    block = world.mine(*txs)
    after = world.state
    pool.moved(after, connected=[block])
    assert len(pool) == 0
    pool.moved(world.chain.state_at(1), disconnected=[block])
    assert set(pool) == set(txs)


def test_what_became_invalid_goes() -> None:
    world, pool = World(), Mempool(QUICK)
    pool.add(register(QUICK, ALICE, 1), world.state)
    block = world.mine(register(QUICK, ALICE, 5))
    pool.moved(world.state, connected=[block])
    assert len(pool) == 0


def test_waiting_ends() -> None:
    world, pool = World(), Mempool(QUICK)
    pool.add(blind("old"), world.state)
    for _ in range(MAX_WAIT):
        block = world.mine()
        pool.moved(world.state, connected=[block])
    assert len(pool) == 1
    block = world.mine()
    pool.moved(world.state, connected=[block])
    assert len(pool) == 0


def test_all_kinds_wait_together() -> None:
    world, pool = World(), Mempool(QUICK)
    model = world.model(shards=("a",), openers=(CAROL,))
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_000)
    new = add_model(QUICK, BOB, weights="other")
    world.truth.score(new.txid, "other", new.score)
    txs: list[AnyTransaction] = [
        register(QUICK, ALICE),
        new,
        commit(QUICK, model, BOB, "x"),
        reveal(QUICK, model, BOB, "w", 9_000),
        open_shard(QUICK, model, 0, "a", CAROL),
    ]
    for tx in txs:
        pool.add(tx, world.state)
    block = world.build(*pool)
    # Of reveal and opening of one model, the first one in the order gets in.
    assert len(block.transactions) == 1 + len(txs) - 1
    world.submit(block)
    assert world.chain.tip.hash == block.hash


def test_assembling_leaves_out_what_does_not_fit_or_is_not_scored() -> None:
    world = World()
    unscored = add_model(QUICK)
    first = world.build().transactions[0]
    assert isinstance(first, Producer)
    commits = [blind(f"c{i}") for i in range(2000)]
    block = world.build(unscored, first, *commits)
    assert unscored not in block.transactions
    assert sum(isinstance(tx, Producer) for tx in block.transactions) == 1
    size = len(block.encode())
    assert QUICK.block_bytes - 150 < size <= QUICK.block_bytes
    world.submit(block)
    assert world.chain.tip.hash == block.hash
    assert Block.decode(block.encode(), QUICK.block_bytes) == block


def test_a_removed_claim_is_free_again() -> None:
    pool, state = Mempool(QUICK), World().state
    tx = register(QUICK, ALICE)
    pool.add(tx, state)
    pool.remove(tx.txid)
    pool.remove(tx.txid)
    pool.add(tx, state)
    assert all(isinstance(each, RegisterPayee) for each in pool)
