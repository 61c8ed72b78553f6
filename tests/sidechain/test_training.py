"""What a trainer does next, on a chain whose scores are made up."""

from __future__ import annotations

import msgspec
import pytest

from sidechain import training
from sidechain.pledges import Pledge
from sidechain.primitives import Commit, OpenShard, Reveal
from sidechain.state import ChainState
from sidechain.training import Do, Step
from tests.sidechain.world import (
    ALICE,
    BAD,
    BOB,
    CAROL,
    GOOD,
    QUICK,
    World,
    finished,
    h,
    open_shard,
    reveal,
)

SHARDED = {"shards": ("shard",), "openers": (CAROL,)}


def pledge(weights: str = "w", score: int = 9_000, salt: str = "") -> Pledge:
    return Pledge(h(weights), h(f"infohash {weights}"), h("first"), score, h(f"salt {salt}"))


def step(world: World, model: bytes, of: Pledge | None = None, trainer: bytes = BOB.key) -> Step:
    return training.proceed(world.params, world.state, model, trainer, of or pledge())


def committed(world: World, model: bytes) -> Commit:
    return finished(QUICK, training.commit_of(QUICK, model, BOB.key, pledge()))


def revealed(world: World, model: bytes) -> Reveal:
    return finished(QUICK, training.reveal_of(QUICK, model, BOB.key, pledge()), BOB)


def test_from_commit_to_confirmed() -> None:
    world = World()
    model = world.model()
    world.truth.score(model, "w", 9_000)
    assert training.begin(world.state, model) == Step(Do.TRAIN)
    assert step(world, model) == Step(Do.COMMIT)
    world.mine(committed(world, model))
    assert step(world, model) == Step(Do.WAIT, "commit-immature")
    world.wait(QUICK.reveal_delay - 1)
    assert step(world, model) == Step(Do.REVEAL)
    world.mine(revealed(world, model))
    assert step(world, model) == Step(Do.CONFIRMED, "", world.height)
    assert training.begin(world.state, model) == Step(Do.TRAIN)


@pytest.mark.parametrize("good", [True, False])
def test_a_shard_decides(good: bool) -> None:
    world = World()
    model = world.model(**SHARDED)
    world.truth.score(model, "w", 9_000)
    world.mine(committed(world, model))
    world.wait(QUICK.reveal_delay - 1)
    assert training.next_sealed(world.state, model) is None
    world.mine(revealed(world, model))
    height = world.height
    assert step(world, model) == Step(Do.WAIT, "provisional", height)
    assert training.begin(world.state, model) == Step(Do.WAIT, "provisional-pending")
    assert training.next_sealed(world.state, model) == 0
    world.truth.pair(model, 0, "shard", "first", "w", GOOD if good else BAD)
    world.mine(open_shard(QUICK, model, 0, "shard", CAROL))
    assert step(world, model) == Step(Do.CONFIRMED if good else Do.REFUTED, "", height)
    assert training.begin(world.state, model) == Step(Do.WAIT, "no-sealed-shard")
    assert training.next_sealed(world.state, model) is None


def test_no_shard_opens_in_time() -> None:
    world = World()
    model = world.model(**SHARDED)
    world.truth.score(model, "w", 9_000)
    world.mine(committed(world, model))
    world.wait(QUICK.reveal_delay - 1)
    world.mine(revealed(world, model))
    world.wait(QUICK.shard_timeout + 1)
    assert step(world, model).do is Do.REFUTED


def test_whoever_is_faster() -> None:
    """The other is overtaken, unless his weights are better by far all the same."""
    world = World()
    model = world.model(min_gain=10)
    world.mine(committed(world, model))
    world.update(model, ALICE, "faster", 9_050)
    assert step(world, model) == Step(Do.OVERTAKEN), "100 are required right after an update"
    better = pledge("much better", 8_000)
    assert step(world, model, better) == Step(Do.COMMIT)
    world.wait(QUICK.tenure)
    assert step(world, model) == Step(Do.REVEAL), "50 are more than 10"


def test_a_commit_waits_behind_another_version() -> None:
    world = World()
    model = world.model(shards=("one", "two"), openers=(CAROL,))
    world.mine(committed(world, model))
    world.update(model, ALICE, "faster", 9_900)
    assert step(world, model) == Step(Do.WAIT, "provisional-pending")
    world.truth.pair(model, 0, "one", "first", "faster", BAD)
    world.mine(open_shard(QUICK, model, 0, "one", CAROL))
    assert step(world, model) == Step(Do.REVEAL)


def test_an_expired_commit_is_made_again() -> None:
    world = World()
    model = world.model()
    world.mine(committed(world, model))
    world.wait(QUICK.commit_ttl + 1)
    assert step(world, model) == Step(Do.COMMIT)
    world.mine(committed(world, model))
    assert step(world, model) == Step(Do.WAIT, "commit-immature")


def test_weights_that_somebody_else_has_revealed() -> None:
    world = World()
    model = world.model()
    world.update(model, ALICE, "w", 9_000)
    height = world.height
    assert step(world, model) == Step(Do.REFUSED, "root-known", height)
    world.mine(finished(QUICK, training.commit_of(QUICK, model, BOB.key, pledge())))
    world.wait(QUICK.reveal_delay)
    assert world.refused(reveal(QUICK, model, BOB, "w", 9_000)) == "root-known"


def test_what_a_reorg_undoes_is_due_again() -> None:
    """From the states alone: nothing else is remembered."""
    world = World()
    model = world.model()
    world.truth.score(model, "w", 9_000)
    states: list[ChainState] = [world.state]
    world.mine(committed(world, model))
    states.append(world.state)
    world.wait(QUICK.reveal_delay - 1)
    states.append(world.state)
    world.mine(revealed(world, model))
    states.append(world.state)
    due = [training.proceed(QUICK, state, model, BOB.key, pledge()).do for state in states]
    assert due == [Do.COMMIT, Do.WAIT, Do.REVEAL, Do.CONFIRMED]
    assert training.is_known(states[3], h("w")) and not training.is_known(states[2], h("w"))


def test_a_model_that_is_not_there() -> None:
    world = World()
    assert training.begin(world.state, h("nothing")) == Step(Do.WAIT, "model-missing")
    assert step(world, h("nothing")) == Step(Do.WAIT, "model-missing")
    assert training.next_sealed(world.state, h("nothing")) is None


def test_the_gain_that_is_asked_for_falls() -> None:
    world = World()
    model = world.model(min_gain=10)
    found, definition = world.state.model(model), world.state.definition(model)
    assert found is not None and definition is not None
    asked = [
        training.gain_required(QUICK, found, definition, found.confirmed.height + age)
        for age in range(QUICK.tenure + 2)
    ]
    assert asked == [100, 78, 55, 33, 10, 10]


def test_every_reason_to_wait_has_its_sentence() -> None:
    assert all(sentence.endswith(".") for sentence in training.WAITING.values())


def test_an_opening_has_the_key() -> None:
    tx = training.opening_of(QUICK, h("model"), 3, h("key"))
    assert isinstance(tx, OpenShard) and (tx.index, tx.key) == (3, h("key"))
    assert msgspec.structs.replace(tx, stamp_nonce=0) == tx
