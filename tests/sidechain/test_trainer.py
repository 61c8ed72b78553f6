"""Trainers on whole nodes: who wins is on the chain, and whoever lost goes on from there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from channels.background import background
from channels.errors import UserError
from sidechain import training
from sidechain.model import directory, sealed
from sidechain.model.directory import Model
from sidechain.opener import Opener
from sidechain.params import REGTEST
from sidechain.pledges import Pledge
from sidechain.primitives import Reveal
from sidechain.shard_keys import ShardKeys
from tests.sidechain import directories, real_models
from tests.sidechain.directories import samples, trained
from tests.sidechain.node_processes import environment
from tests.sidechain.towns import Citizen, Town, town
from tests.sidechain.world import ALICE, BOB, CAROL, rivals

QUICK: dict[str, Any] = {"seconds": 0.05, "patience": 20}
NEVER: dict[str, Any] = {"seconds": 1000.0}
"""To have the chain's part alone."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of nobody."""
    for name, value in environment(tmp_path / "home").items():
        if name.startswith("ODA_"):
            monkeypatch.setenv(name, value)


def untrained() -> Model:
    dataset = sealed.seal(samples(600, 0), (), ())
    return replace(directories.model(shards=0), weights=trained(steps=1), dataset=dataset)


async def pledge(citizen: Citizen, base: Model, made: Model, salt: int = 1) -> Pledge:
    """Weights that a trainer has found already, as if he were started anew."""
    folder = citizen.folder / f"found-{salt}"
    directory.write(folder, made)
    infohash = (await citizen.swarm.publish(folder)).infohash
    return Pledge(made.weights_root, infohash, base.weights_root, made.score(), bytes([salt]) * 32)


async def test_two_compete_and_the_one_who_was_overtaken_goes_on(tmp_path: Path) -> None:
    async with town(tmp_path, ALICE, BOB) as here:
        first = untrained()
        # Right after an update five sixths of the first score are asked for, which only one of them
        # can have; later it is a twelfth.
        model = await here.register(first, (), first.score() // 12)
        for _ in range(REGTEST.tenure):
            here.mine()
        for each in here.trainers:
            each.train(model, **QUICK)
        for each in here.trainers:
            await here.until(each.told, "committing")
        won, lost = await decided(here, model)
        await here.until(lost.told, "overtaken")
        await won.quit()
        base = won.model(model).confirmed
        await here.until(lost.began_with, base.weights_root, mining=True)
        await here.until(lost.told, "confirmed", mining=True)
        after = lost.model(model).confirmed
        assert (after.trainer, base.trainer) == (lost.person.key, won.person.key)
        assert base.score - after.score >= first.score() // 12
        assert [each.weights_root for each in lost.pledges] == [after.weights_root]
        shared = {entry.infohash for entry in lost.swarm.library.entries()}
        assert {base.infohash, after.infohash} <= shared


async def decided(here: Town, model: bytes) -> tuple[Citizen, Citizen]:
    """Who won and who lost, when the chain says so to both."""
    first = here.miner.model(model).confirmed.weights_root

    def has_moved(each: Citizen) -> bool:
        return each.model(model).confirmed.weights_root != first

    await here.until(has_moved, here.miner, mining=True)
    for each in here.trainers:
        await here.until(has_moved, each)
    trainer = here.miner.model(model).confirmed.trainer
    one, other = here.trainers
    return (one, other) if trainer == one.person.key else (other, one)


async def test_an_overfitter_and_a_thief_fail(tmp_path: Path) -> None:
    """The one on a sealed shard, the other because his commit is younger than his theft."""
    digits = await asyncio.to_thread(real_models.digits)
    async with town(tmp_path, ALICE, BOB) as here:
        cheat, thief = here.trainers
        model = await here.register(digits.better, (CAROL,), 1000, keys=real_models.KEYS)
        overfit = await pledge(cheat, digits.better, digits.overfit)
        cheat.train(model, **NEVER).pledges.add(overfit)
        await here.until(cheat.told, "revealing", mining=True)

        def seen() -> Reveal | None:
            waiting = (tx for tx in thief.node.mempool if isinstance(tx, Reveal))
            return next(waiting, None)

        reveal = await here.until(seen)
        stolen = Pledge(reveal.weights_root, reveal.infohash, overfit.base, reveal.score, b"t" * 32)
        thief.train(model, **NEVER).pledges.add(stolen)
        await here.until(thief.told, "committing")
        opener = Opener(
            here.miner.node, model, ShardKeys(CAROL.secret, real_models.KEYS), here.miner.hear
        )
        async with background(opener.run()):
            await here.until(cheat.told, "refuted", mining=True)
        assert here.miner.told("opening", shard=0)
        await here.until(thief.told, "refused")
        assert thief.told("refused")[0]["reason"] == "root-known"
        found = here.miner.model(model)
        assert found.confirmed.weights_root == digits.better.weights_root
        assert found.provisional is None and found.opened[0] > 0 == found.opened[1]
        assert thief.pledges == ()
        assert thief.swarm.library.is_complete(reveal.infohash), "the chain needs it"


async def test_a_false_score_is_refused_and_given_up(tmp_path: Path) -> None:
    async with town(tmp_path, ALICE) as here:
        first = untrained()
        model = await here.register(first, (), 1000)
        (liar,) = here.trainers
        better = replace(first, weights=trained(dict(first.weights), 50))
        found = await pledge(liar, first, better)
        lie = Pledge(found.weights_root, found.infohash, found.base, found.score - 1, found.salt)
        liar.train(model, **NEVER).pledges.add(lie)
        await here.until(liar.told, "refused", mining=True)
        assert liar.told("refused")[0]["reason"] == "bad-score"
        assert liar.pledges == ()
        assert not liar.swarm.library.is_complete(lie.infohash), "nobody needs it"


async def test_what_a_reorg_undoes_is_revealed_again(tmp_path: Path) -> None:
    """The commit comes back by itself; the reveal does not, as it has no commit just then."""
    async with town(tmp_path, ALICE) as here:
        first = untrained()
        model = await here.register(first, (), 1000)
        (alice,) = here.trainers
        better = replace(first, weights=trained(dict(first.weights), 50))
        found = await pledge(alice, first, better)
        before = here.miner.node.chain.tip.height
        alice.train(model, **NEVER).pledges.add(found)
        await here.until(alice.told, "confirmed", mining=True)
        height = alice.model(model).confirmed.height
        for block in rivals(here.miner.node.chain, before):
            here.miner.node.accept_block(block)
        assert here.miner.model(model).confirmed.weights_root == first.weights_root
        await here.until(lambda: len(alice.told("confirmed")) == 2, mining=True)
        again = alice.model(model).confirmed
        assert again.weights_root == found.weights_root and again.height > height
        assert len(alice.told("revealing")) == 2


async def test_what_is_superseded_may_be_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not before it is so deep that no reorg brings it back."""
    monkeypatch.setattr("sidechain.trainer.BURIED", 3)
    async with town(tmp_path, ALICE) as here:
        first = untrained()
        model = await here.register(first, (), 1000)
        (alice,) = here.trainers
        better = replace(first, weights=trained(dict(first.weights), 50))
        best = replace(first, weights=trained(dict(better.weights), 100))

        def is_pinned(each: Pledge) -> bool:
            pins = alice.swarm.library.entry(each.infohash).record.pins
            return training.pin(model) in pins

        one = await pledge(alice, first, better)
        trainer = alice.train(model, **NEVER)
        trainer.pledges.add(one)
        await here.until(lambda: alice.told("confirmed", score=one.score), mining=True)
        assert is_pinned(one)
        two = await pledge(alice, better, best, salt=2)
        trainer.pledges.add(two)
        await here.until(lambda: alice.told("confirmed", score=two.score), mining=True)
        confirmed = alice.model(model).confirmed
        assert confirmed.weights_root == two.weights_root
        await here.until(lambda: not is_pinned(one), mining=True)
        assert is_pinned(two) and alice.swarm.library.is_complete(one.infohash)


async def test_an_attempt_that_leads_nowhere_is_followed_by_another(tmp_path: Path) -> None:
    async with town(tmp_path, ALICE) as here:
        first = untrained()
        model = await here.register(first, (), first.score())
        (alice,) = here.trainers
        alice.train(model, seconds=0.05, patience=1)
        await here.until(alice.told, "nothing-found")
        await here.until(lambda: alice.told("training", attempt=2))
        attempts = [each["attempt"] for each in alice.told("training")]
        assert attempts[:3] == [0, 1, 2]
        await alice.quit()
        alice.heard.clear()
        alice.train(model, seconds=0.05, patience=1)
        await here.until(alice.told, "training")
        assert alice.told("training")[0]["attempt"] >= 2, "it is not begun from the beginning"


async def test_waiting_says_why(tmp_path: Path) -> None:
    async with town(tmp_path, ALICE) as here:
        (alice,) = here.trainers
        alice.train(bytes(32), **QUICK)
        await here.until(alice.told, "waiting")
        assert alice.told("waiting")[0]["reason"] == "model-missing"
        assert alice.told("waiting")[0]["sentence"].endswith(".")


async def test_an_opener_does_not_train(tmp_path: Path) -> None:
    async with town(tmp_path, CAROL) as here:
        digits = await asyncio.to_thread(real_models.digits)
        model = await here.register(digits.first, (CAROL,), 1000, keys=real_models.KEYS)
        (carol,) = here.trainers
        carol.train(model, **QUICK)
        assert carol.task is not None
        with pytest.raises(UserError) as caught:
            await carol.task
        assert caught.value.reason == "trainer-is-opener"
        for keys, reason in (
            (ShardKeys(CAROL.secret, real_models.KEYS[:2]), "bad-shard-key"),
            (ShardKeys(BOB.secret, real_models.KEYS), "not-an-opener"),
        ):
            with pytest.raises(UserError) as caught:
                await Opener(carol.node, model, keys, carol.hear).run()
            assert caught.value.reason == reason
        with pytest.raises(UserError, match="opener's too"):
            Opener(carol.node, model, ShardKeys(None, real_models.KEYS), carol.hear)
        carol.task = None
