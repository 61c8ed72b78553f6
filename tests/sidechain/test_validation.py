from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain.params import MAIN, NETWORKS, network
from sidechain.primitives import Block, Producer
from sidechain.reasons import Rejection
from sidechain.scores import (
    NO_SCORES,
    PairedRequest,
    PairedSums,
    ScoreRequest,
    ScoresMissing,
)
from sidechain.state import Model
from sidechain.validation import required_gain, state_transition
from tests.sidechain.world import (
    ALICE,
    BAD,
    BOB,
    CAROL,
    GOOD,
    MINER,
    QUICK,
    World,
    add_model,
    commit,
    h,
    open_shard,
    register,
    reveal,
)


def model_of(world: World, model: bytes) -> Model:
    found = world.state.model(model)
    assert found is not None
    return found


# --- gains ---------------------------------------------------------------------------------------


def test_the_gain_falls_from_ten_to_one_over_the_tenure() -> None:
    gains = [required_gain(QUICK, 100, age) for age in range(7)]
    assert gains == [1000, 775, 550, 325, 100, 100, 100]
    assert required_gain(MAIN, 100, 0) == 1000 and required_gain(MAIN, 100, 144) == 100
    assert required_gain(MAIN, 100, 1) == 994  # rounded up: 993.75


@given(st.integers(1, 10**9), st.integers(0, 200))
def test_the_gain_is_never_below_min_gain(min_gain: int, age: int) -> None:
    assert min_gain <= required_gain(MAIN, min_gain, age) <= 10 * min_gain


def test_epsilon_grinding_does_not_pay_right_after_an_update() -> None:
    """Alice improves a model; Bob can't take her right with a hair's breadth in the next block."""
    world = World()
    model = world.model(min_gain=10)
    for name in ("a", "b"):
        world.mine(commit(QUICK, model, BOB, name))
    world.update(model, ALICE, "good", 5_000)
    for age, needed in enumerate([78, 55, 33, 10, 10], start=1):
        assert world.refused(reveal(QUICK, model, BOB, "a", 5_001 - needed)) == "no-gain"
        assert world.refused(reveal(QUICK, model, BOB, "b", 5_000 - needed)) is None, age
        world.wait(1)


# --- commits -------------------------------------------------------------------------------------


def test_an_expired_commit_leaves_nothing_behind() -> None:
    world = World()
    before = dict(world.state.entries())
    world.mine(commit(QUICK, h("m"), BOB, "w"))
    assert len(dict(world.state.entries())) == len(before) + 3  # commit, expiry, tip
    world.wait(QUICK.commit_ttl)
    assert world.state.commit(commit(QUICK, h("m"), BOB, "w").commit) is not None
    world.wait(1)
    assert [key[:1] for key, _ in world.state.entries()] == [b"T"]
    world.mine(commit(QUICK, h("m"), BOB, "w"))


def test_a_commit_that_was_used_and_made_anew_is_not_forgotten_too_early() -> None:
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.update(model, BOB, "w", 9_000)
    world.wait(10)
    world.mine(commit(QUICK, model, BOB, "w"))
    blind = commit(QUICK, model, BOB, "w").commit
    made = world.height
    while world.height < made + QUICK.commit_ttl:
        world.wait(1)
        assert world.state.commit(blind) == made
    world.wait(1)
    assert world.state.commit(blind) is None


# --- provisional versions ------------------------------------------------------------------------


def sealed(world: World, shards: tuple[str, ...] = ("a", "b")) -> bytes:
    model = world.model(shards=shards, openers=(CAROL,))
    world.wait(QUICK.tenure)
    return model


def test_an_update_that_generalises_stays() -> None:
    world = World()
    model = sealed(world)
    world.update(model, BOB, "w", 9_000)
    assert model_of(world, model).confirmed.trainer == ALICE.key
    assert model_of(world, model).current.trainer == BOB.key
    world.truth.pair(model, 1, "b", "first", "w", GOOD)
    world.mine(open_shard(QUICK, model, 1, "b", CAROL))
    found = model_of(world, model)
    assert found.confirmed.trainer == BOB.key and found.provisional is None
    assert found.opened == (0, world.height)


def test_an_overfitting_trainer_is_taken_back_and_can_not_come_again() -> None:
    world = World()
    model = sealed(world)
    before = model_of(world, model).confirmed
    world.update(model, BOB, "overfit", 100)
    world.truth.pair(model, 0, "a", "first", "overfit", BAD)
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    found = model_of(world, model)
    assert found.confirmed == before and found.provisional is None
    root = world.state.root_of(h("overfit"))
    assert root is not None and root.revealed and not root.confirmed
    world.committed(model, BOB, "overfit", "again")
    assert world.refused(reveal(QUICK, model, BOB, "overfit", 100, "again")) == "root-known"
    # An honest trainer is measured against the version that stands.
    world.update(model, ALICE, "honest", 9_000)


def test_an_opener_who_never_opens_costs_the_trainer_his_right_and_not_the_model() -> None:
    world = World()
    model = sealed(world)
    waiting = commit(QUICK, model, ALICE, "waiting")
    world.mine(waiting)
    world.update(model, BOB, "w", 9_000)
    world.wait(QUICK.shard_timeout)
    assert model_of(world, model).provisional is not None
    world.wait(1)
    assert model_of(world, model).current.trainer == ALICE.key
    # Who committed while the model was blocked still gets his turn.
    world.truth.score(model, "waiting", 8_000)
    world.mine(reveal(QUICK, model, ALICE, "waiting", 8_000))


def test_a_later_provisional_version_has_its_own_time() -> None:
    """The timeout of a version that was decided says nothing about its successor."""
    world = World()
    model = sealed(world)
    world.mine(commit(QUICK, model, BOB, "second"))
    world.update(model, BOB, "first try", 9_000)
    first = world.height
    world.truth.pair(model, 0, "a", "first", "first try", BAD)
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    world.truth.score(model, "second", 9_000)
    world.mine(reveal(QUICK, model, BOB, "second", 9_000))
    world.wait(first + QUICK.shard_timeout + 1 - world.height)
    assert model_of(world, model).provisional is not None
    world.wait(1)
    assert model_of(world, model).provisional is not None
    world.wait(1)
    assert model_of(world, model).provisional is None


def test_a_shard_that_opened_before_the_reveal_does_not_decide() -> None:
    """Of many commits, the one that happens to pass on an open shard could be chosen."""
    world = World()
    model = sealed(world)
    world.committed(model, BOB, "w")
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    world.truth.score(model, "w", 9_000)
    world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    assert model_of(world, model).provisional is not None


def test_opening_without_a_provisional_version_needs_no_scores() -> None:
    world = World()
    model = sealed(world)
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    assert model_of(world, model).opened == (world.height, 0)


# --- the paired test -----------------------------------------------------------------------------


def sums(values: list[int]) -> PairedSums:
    return PairedSums(len(values), sum(values), sum(v * v for v in values))


@given(st.lists(st.integers(-1000, 1000), min_size=32, max_size=99))
def test_z_of_two_in_integers(values: list[int]) -> None:
    n, mean = len(values), sum(values) / len(values)
    variance = sum(v * v for v in values) / n - mean**2
    z_squared = None if variance < 1e-6 else mean**2 / (variance / n)
    if z_squared is not None and abs(z_squared - 4) > 1e-6:
        assert sums(values).passes(32) == (mean > 0 and z_squared >= 4)


def test_the_paired_test_by_hand() -> None:
    assert PairedSums(100, 100, 2600).passes(32)  # mean 1, variance 25, z = 2 exactly
    assert not PairedSums(100, 100, 2601).passes(32)
    assert not PairedSums(100, -100, 2600).passes(32)
    assert not PairedSums(100, 0, 0).passes(32)
    assert PairedSums(32, 32, 32).passes(32)  # every sample gained the same
    assert not PairedSums(31, 31, 31).passes(32)  # too few to say
    assert not PairedSums(0, 0, 0).passes(0)  # an unreadable shard


# --- weights -------------------------------------------------------------------------------------


def test_who_reveals_first_after_a_commit_keeps_his_weights_from_snipers() -> None:
    """A thief who sees weights on their way registers them as a model of his own first."""
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "w")
    stolen = add_model(QUICK, CAROL, weights="w")
    world.truth.score(stolen.txid, "w", stolen.score)
    world.mine(stolen)
    world.truth.score(model, "w", 9_000)
    world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    root = world.state.root_of(h("w"))
    assert root is not None and root.trainer == BOB.key and root.model == model


def test_weights_that_failed_get_no_second_try_by_a_second_commit() -> None:
    world = World()
    model = sealed(world)
    world.mine(*(commit(QUICK, model, BOB, "w", salt) for salt in ("", "spare")))
    world.wait(1)
    world.truth.score(model, "w", 9_000)
    world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    world.truth.pair(model, 0, "a", "first", "w", BAD)
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    assert world.refused(reveal(QUICK, model, BOB, "w", 9_000, "spare")) == "root-known"


def test_requests_say_where_the_bytes_are_but_do_not_hang_on_it() -> None:
    request = ScoreRequest(h("m"), h("w"), h("one place"))
    assert request == ScoreRequest(h("m"), h("w"), h("another"))
    pair = PairedRequest(h("m"), 0, h("k"), h("old"), h("new"), h("x"), h("y"))
    assert pair == PairedRequest(h("m"), 0, h("k"), h("old"), h("new"), b"", b"")


# --- state_transition ----------------------------------------------------------------------------


def unscored_reveal() -> tuple[World, Block]:
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_000)
    return world, world.build(reveal(QUICK, model, BOB, "w", 9_000))


def test_what_is_missing_is_asked_for_all_at_once() -> None:
    world = World()
    txs = [add_model(QUICK, weights=name) for name in "abc"]
    for tx, name in zip(txs, "abc", strict=True):
        world.truth.score(tx.txid, name, tx.score)
    block = world.build(*txs)
    with pytest.raises(ScoresMissing) as caught:
        state_transition(QUICK, world.state, block, NO_SCORES)
    assert [r.weights_root for r in caught.value.requests if isinstance(r, ScoreRequest)] == [
        h(name) for name in "abc"
    ]


def test_a_block_that_is_wrong_anyway_costs_no_download() -> None:
    """With every score missing, a false state root is found before weights are asked for."""
    world, block = unscored_reveal()
    producer = block.transactions[0]
    assert isinstance(producer, Producer)
    false = msgspec.structs.replace(producer, state_root=h("x"))
    with pytest.raises(Rejection) as caught:
        state_transition(QUICK, world.state, Block(block.header, (false, *block.transactions[1:])))
    assert caught.value.reason == "bad-state-root"
    with pytest.raises(ScoresMissing):
        state_transition(QUICK, world.state, block)


def test_assumed_scores_are_reported() -> None:
    world, block = unscored_reveal()
    found = state_transition(QUICK, world.state, block, assume_scored=True)
    assert [type(request) for request in found.assumed] == [ScoreRequest]
    known = state_transition(QUICK, world.state, block, world.truth.scores, assume_scored=True)
    assert known.assumed == () and known.state == found.state


def test_assumed_openings_must_lead_to_some_stated_root() -> None:
    world = World()
    models = [world.model(weights=n, shards=("a",), openers=(CAROL,)) for n in "pq"]
    for model, name in zip(models, "pq", strict=True):
        world.update(model, BOB, name + "2", 5_000)
        world.truth.pair(model, 0, "a", name, name + "2", GOOD if name == "q" else BAD)
    block = world.build(*(open_shard(QUICK, model, 0, "a", CAROL) for model in models))
    right = state_transition(QUICK, world.state, block, world.truth.scores).state
    assumed = state_transition(QUICK, world.state, block, assume_scored=True)
    assert assumed.state == right and len(assumed.assumed) == 2
    with pytest.raises(ScoresMissing):
        state_transition(QUICK, world.state, block)
    forged = world.build(producer=BOB)
    forged = Block(forged.header, (forged.transactions[0], *block.transactions[1:]))
    with pytest.raises(Rejection) as caught:
        state_transition(QUICK, world.state, forged, assume_scored=True)
    assert caught.value.reason == "bad-state-root"


def test_a_state_is_a_value() -> None:
    world = World()
    before = world.state
    entries = dict(before.entries())
    world.mine(register(QUICK, ALICE))
    assert dict(before.entries()) == entries and before != world.state
    tip = world.state.tip()
    assert tip is not None and (tip.height, tip.producer) == (1, MINER.key)


def test_the_definition_of_a_model_is_kept_whole() -> None:
    world = World()
    tx = add_model(QUICK, shards=("a",), openers=(CAROL,))
    model = world.model(shards=("a",), openers=(CAROL,))
    definition = world.state.definition(model)
    assert definition is not None and model == tx.txid
    for name in ("architecture", "objective", "dataset_root", "infohash", "shards", "openers"):
        assert getattr(definition, name) == getattr(tx, name)
    assert (definition.min_gain, definition.score_cost) == (tx.min_gain, tx.score_cost)
    assert list(world.state.models()) == [model]


def test_the_block_that_took_a_version_is_named() -> None:
    world = World()
    model = world.model()
    version = model_of(world, model).confirmed
    assert (version.height, version.producer) == (1, MINER.key)
    record = world.chain.active(version.height)
    assert record is not None and world.chain.is_active(record)


def test_networks_by_name() -> None:
    assert network("regtest") is NETWORKS["regtest"]
    with pytest.raises(Exception, match="no network 'nowhere'"):
        network("nowhere")
    assert all(params.shard_timeout < params.commit_ttl for params in NETWORKS.values())
    assert replace(MAIN, name="x").block_bytes == 65536


# --- the table of the design ---------------------------------------------------------------------


def test_the_parameters_are_the_designs() -> None:
    regtest, main = NETWORKS["regtest"], NETWORKS["mainnet"]
    rows = {
        "pow_limit_bits": (0x207FFFFF, 0x1E00FFFF),
        "half_life": (6 * 3600, 6 * 3600),
        "spacing": (600, 600),
        "reveal_delay": (2, 6),
        "commit_ttl": (50, 144),
        "fee_depth": (1, 6),
        "max_reorg": (None, 144),
        "tenure": (4, 144),
        "block_bytes": (65536, 65536),
        "score_cost": (2 * 10**10, 5 * 10**11),
        "model_bytes": (8 << 20, 64 << 20),
        "dataset_bytes": (8 << 20, 64 << 20),
        "stamp": (2**8, 2**20),
        "model_stamp": (2**10, 2**28),
        "fetch_wait": (5, 60),
        "assume_scored_depth": (None, 4320),
        "trainer_ppm": (50_000, 50_000),
        "trainer_floor_ppm": (10_000, 10_000),
        "producers_ppm": (10_000, 10_000),
        "producers_floor_ppm": (1_000, 1_000),
        "future_limit": (900, 900),
        "retarget": (False, True),
    }
    for name, values in rows.items():
        assert (getattr(regtest, name), getattr(main, name)) == values, name
