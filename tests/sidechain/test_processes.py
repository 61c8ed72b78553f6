"""Nodes in processes of their own on real data: what is honest gets in, what isn't does not, and
whoever comes later agrees."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from channels.errors import OdaError
from sidechain import api
from sidechain.model import directory, exact, files
from sidechain.model.paired import confirms
from sidechain.params import REGTEST
from tests.sidechain import real_models
from tests.sidechain.node_processes import NodeProcess, Trainer, ended, oda, trainer, until
from tests.sidechain.real_models import KEYS, Models
from tests.sidechain.world import BOB, CAROL, h

MINING = ("--mine", "--processes", "1", "--empty-after", "1")


@dataclass
class Town:
    """One mines, one is full, one is light; a stranger comes later. Bob trains, Carol opens."""

    miner: NodeProcess
    full: NodeProcess
    light: NodeProcess
    bob: Trainer
    folder: Path


async def test_honest_updates_get_in_and_whoever_comes_later_agrees(tmp_path: Path) -> None:
    miner = NodeProcess(tmp_path / "miner", MINING)
    await miner.start()
    connected = ("--connect", miner.address)
    full = NodeProcess(tmp_path / "full", connected)
    light = NodeProcess(tmp_path / "light", ("--light", *connected))
    stranger = NodeProcess(tmp_path / "stranger", ())
    with ended(miner, full, light, stranger):
        await asyncio.gather(full.start(), light.start())
        async with trainer(BOB, full, tmp_path / "bob") as bob:
            town = Town(miner, full, light, bob, tmp_path)
            digits, text = await asyncio.gather(
                asyncio.to_thread(real_models.digits), asyncio.to_thread(real_models.text)
            )
            models = await registered(town, digits, text)
            await text_is_improved(town, models[1], text)
            await lies_are_refused(town, models[1], text)
            await digits_are_improved(town, models[0], digits)
            await an_overfit_is_taken_back(town, models[0], digits)
        # Bob is gone. Whoever comes now gets everything from the nodes.
        stranger.options = ("--connect", full.address)
        await stranger.start()
        await all_agree([miner, full, stranger], light, models)
        assert miner.interrupt() == 0
        assert light.interrupt() == 0


async def registered(town: Town, digits: Models, text: Models) -> tuple[bytes, bytes]:
    """The digits by the miner's owner with `oda model add`, the text by Bob over HTTP."""
    town.folder.joinpath("keys").write_text("\n".join(key.hex() for key in KEYS))
    directory.write(town.folder / "digits", digits.first)
    infohash = await town.bob.publish("text", text.first)
    by_bob = town.bob.add_model(text.first, infohash, 1000)
    _, told = await asyncio.gather(
        town.bob.send(by_bob),
        oda(
            town.miner.data,
            *("model", "add", str(town.folder / "digits"), "--url", town.miner.url),
            *("--shard-keys", str(town.folder / "keys"), "--opener", CAROL.key.hex()),
            *("--min-gain", "1000"),
        ),
    )
    assert told["score"] == digits.first.score()
    await town.bob.confirmed(by_bob)
    model = bytes.fromhex(told["model"])
    await known(town.full, f"/models/{model.hex()}")
    return model, by_bob.txid


async def known(node: NodeProcess, path: str) -> None:
    await until(lambda: node.find(path, dict), path)


async def committed(town: Town, model: bytes, *roots: bytes) -> None:
    """To what Bob will reveal, true or false, and old enough for it: commits are blind."""
    commits = [await town.bob.commit(model, root) for root in roots]
    heights = [await town.bob.confirmed(commit) for commit in commits]
    await height_of(town.full, max(heights) + REGTEST.reveal_delay - 1)


async def height_of(node: NodeProcess, least: int) -> None:
    async def reached() -> bool:
        return (await node.status()).height >= least

    await until(reached, f"height {least}")


async def version_of(node: NodeProcess, model: bytes, root: bytes) -> api.PastVersion | None:
    found = await node.get(f"/models/{model.hex()}", api.Model)
    shown = [each for each in found.versions if each.version.weights_root == root.hex()]
    return shown[0] if shown else None


async def reason_of(town: Town, tx_id: bytes) -> str | None:
    refused = await town.full.get("/rejections", api.Refusals)
    return next((each.reason for each in refused.rejections if each.hash == tx_id.hex()), None)


async def text_is_improved(town: Town, model: bytes, text: Models) -> None:
    """Without shards an update is confirmed at once; and a thief who copies it gets nothing."""
    infohash = await town.bob.publish("better text", text.better)
    root, score = text.better.weights_root, text.better.score()
    await committed(town, model, root)
    reveal = town.bob.reveal(model, infohash, root, score)
    thief = Trainer(CAROL, town.bob.swarm, town.miner, town.folder)
    assert await refused(thief, thief.reveal(model, infohash, root, score)) == "commit-missing"
    assert await refused(town.bob, msgspec.structs.replace(reveal, score=1)) in (
        "bad-stamp",
        "bad-signature",
    )
    await town.bob.send(reveal)
    await town.bob.confirmed(reveal)
    found = await version_of(town.full, model, root)
    assert found is not None and found.state == "confirmed"
    assert found.version.trainer == BOB.key.hex() and found.version.score == score


async def refused(by: Trainer, tx: object) -> str:
    try:
        await by.send(tx)  # type: ignore[arg-type] # a transaction of any type
    except OdaError as error:
        return error.reason
    raise AssertionError("it was taken")


async def lies_are_refused(town: Town, model: bytes, text: Models) -> None:
    """False scores and other architectures by what the bytes say; what has no bytes just waits."""
    bob, before = town.bob, await town.full.get(f"/models/{model.hex()}", api.Model)
    data, root = real_models.misshapen(text.first)
    nothing = (h("no weights"), h("never served"))
    await committed(town, model, text.overfit.weights_root, root, *nothing)
    infohash = await bob.publish("third text", text.overfit)
    claimed = text.better.score() - 1_000_000
    assert claimed != text.overfit.score()
    false = bob.reveal(model, infohash, text.overfit.weights_root, claimed)
    await bob.send(false)
    directory.write(town.folder / "misshapen", text.first)
    (town.folder / "misshapen" / files.WEIGHTS).write_bytes(data)
    published = (await bob.swarm.publish(town.folder / "misshapen")).infohash
    another = bob.reveal(model, published, root, 1)
    await bob.send(another)
    # The weights at this infohash are others than the root says.
    other = await bob.publish("other", text.first)
    await bob.send(bob.reveal(model, other, nothing[0], 2))
    await bob.send(bob.reveal(model, h("nowhere"), nothing[1], 3))
    for tx, reason in ((false, "bad-score"), (another, "bad-weights")):
        found = await until(partial(reason_of, town, tx.txid), reason)
        assert found == reason

    async def both_tried() -> bool:
        pending = await town.full.get("/pending", api.Pending)
        tried = {each.weights_root for each in pending.scoring if each.tries}
        return {each.hex() for each in nothing} <= tried

    await until(both_tried, "what has no bytes to be tried")
    await height_of(town.full, (await town.full.status()).height + 2)
    after = await town.full.get(f"/models/{model.hex()}", api.Model)
    assert after.versions == before.versions
    for lie in (text.overfit.weights_root, root, *nothing):
        assert await town.miner.find(f"/weights/{lie.hex()}", dict) is None


async def digits_are_improved(town: Town, model: bytes, digits: Models) -> None:
    """Provisional until a shard opens; the full node is killed meanwhile."""
    infohash = await town.bob.publish("better digits", digits.better)
    await committed(town, model, digits.better.weights_root)
    reveal = town.bob.reveal(model, infohash, digits.better.weights_root, digits.better.score())
    await town.bob.send(reveal)
    town.full.kill()
    await town.full.start()
    # What it took it has, but whom to ask for the bytes it has to be told again.
    assert await town.full.get(f"/transactions/{reveal.txid.hex()}", dict)
    await town.bob.send(reveal)
    await town.bob.confirmed(reveal)
    found = await version_of(town.full, model, digits.better.weights_root)
    assert found is not None and found.state == "provisional"
    await opened(town, model, 0)
    found = await version_of(town.full, model, digits.better.weights_root)
    assert found is not None and found.state == "confirmed"


async def opened(town: Town, model: bytes, index: int) -> None:
    carol = Trainer(CAROL, town.bob.swarm, town.full, town.folder)
    tx = carol.open_shard(model, index, KEYS[index])
    await carol.send(tx)
    await carol.confirmed(tx)


async def an_overfit_is_taken_back(town: Town, model: bytes, digits: Models) -> None:
    assert digits.overfit.score() < digits.better.score()
    shard = digits.first.dataset.open_shard(1, KEYS[1])
    losses = [
        exact.sample_losses(each.architecture, each.objective, each.weights, shard)
        for each in (digits.better, digits.overfit)
    ]
    assert not confirms(*losses), "it is one"
    infohash = await town.bob.publish("overfit digits", digits.overfit)
    root = digits.overfit.weights_root
    await committed(town, model, root)
    reveal = town.bob.reveal(model, infohash, root, digits.overfit.score())
    await town.bob.send(reveal)
    await town.bob.confirmed(reveal)
    await opened(town, model, 1)
    found = await version_of(town.full, model, root)
    assert found is not None and found.state == "withdrawn"
    after = await town.full.get(f"/models/{model.hex()}", api.Model)
    assert after.confirmed.weights_root == digits.better.weights_root.hex()
    assert after.provisional is None and [bool(each.opened) for each in after.shards] == [
        True,
        True,
        False,
    ]


async def all_agree(
    nodes: list[NodeProcess], light: NodeProcess, models: tuple[bytes, bytes]
) -> None:
    """On one tip, and so on one state; the light node proves the same versions."""
    least = (await nodes[0].status()).height

    async def one_tip() -> api.Status | None:
        found = [await node.status() for node in nodes]
        same = len({(each.tip, each.state_root) for each in found}) == 1
        return found[0] if same and found[0].height >= least else None

    await until(one_tip, "all nodes to have one tip")
    for model in models:
        path = f"/models/{model.hex()}"
        seen = [await node.get(path, api.Model) for node in nodes]
        first = [(each.confirmed, each.provisional, each.shards, each.versions) for each in seen]
        assert all(each == first[0] for each in first)
        proven = await light.get(path, api.ProvenModel)
        assert (proven.confirmed, proven.provisional) == first[0][:2]
