"""How soon a provider serves better weights: from the block that confirms them to /v1/models.

    python -m benchmarks.serving [IMPROVEMENTS]      3 by default

A node of this process mines as `oda node --mine` does, and beside it run a bitcoind, a Lightning
node and `oda provider --follow`, programs of their own. A provider waits until a second block
buries the one that confirms (fee_depth 1 on regtest); the node mines it EMPTY_AFTER seconds later
where nothing else is to be put in a block. What it does after that stands beside the same weights
fetched out of the same swarm into an empty library and loaded: wanted are less than 10 seconds in
all.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final

import aiohttp

from channels.background import background
from channels.settings import Settings, load_settings
from channels.terminal import no_progress
from channels.units import Sat
from provider import models
from provider.engine import TorchEngine
from regtest.network import Network
from sidechain import service, training
from sidechain import settings as sidechain_settings
from sidechain.model import directory, registry
from sidechain.model import objective as objectives
from sidechain.model.architecture import ByteTransformer
from sidechain.model.dataset import python_documentation
from sidechain.model.directory import Model
from sidechain.model.improve import Improving
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Text
from sidechain.model.sealed import seal
from sidechain.node import ChainNode, Event, TipChanged
from sidechain.params import REGTEST
from sidechain.pledges import Pledge
from sidechain.primitives import NO_SIGNATURE, AddModel, AnyTransaction, signed, x_only
from sidechain.service import Running
from sidechain.settings import EMPTY_AFTER
from sidechain.stamping import stamp
from torrent.library import Library
from torrent.magnet import Magnet
from torrent.session import Options
from torrent.swarm import Swarm

IMPROVEMENTS: Final = 3
STEPS: Final = 12
OWNER, TRAINER = b"\x01" * 32, b"\x02" * 32
ASK_EVERY: Final = 0.01
ODA: Final = Path(sys.executable).parent / "oda"


@dataclass
class Chain:
    """A mining node, and when each of its blocks became the tip."""

    running: Running
    connected: dict[int, float]
    moved: asyncio.Event

    @property
    def node(self) -> ChainNode:
        assert isinstance(self.running.node, ChainNode)  # it is a full one
        return self.running.node

    @property
    def swarm(self) -> Swarm:
        assert self.running.swarm is not None  # as above
        return self.running.swarm

    @property
    def address(self) -> str:
        return self.running.url.removeprefix("http://")

    def hear(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self.connected[self.node.chain.tip.height] = perf_counter()
            self.moved.set()

    async def until(self, height: int) -> float:
        """When the block of this height was connected."""
        while self.node.chain.tip.height < height:
            self.moved.clear()
            await self.moved.wait()
        return self.connected[height]

    async def mined(self, tx: AnyTransaction) -> int:
        """-> the height of the block that it is in"""
        self.node.accept_transaction(tx)
        while tx.txid in self.node.mempool:
            self.moved.clear()
            await self.moved.wait()
        return self.node.chain.tip.height


@asynccontextmanager
async def mining(folder: Path) -> AsyncIterator[Chain]:
    found = sidechain_settings.SidechainSettings(port=0, processes=1, empty_after=EMPTY_AFTER)
    async with service.full_node(Settings(data=folder), found, mine=True) as running:
        chain = Chain(running, {}, asyncio.Event())
        unlisten = chain.node.listen(chain.hear)
        async with background(running.wait()):
            yield chain
        unlisten()


def versions(count: int) -> list[Model]:
    """An untrained model, and better ones."""
    part = Text(python_documentation()[:4000])
    attempt = Improving(ByteTransformer(), CrossEntropy(), part)
    data = seal(part, [], [])
    found = [Model(ByteTransformer(), CrossEntropy(), attempt.weights(), data)]
    for _ in range(count):
        for _ in range(STEPS):
            attempt.step()
        found.append(replace(found[0], weights=attempt.weights()))
    return found


async def register(chain: Chain, model: Model, infohash: bytes) -> bytes:
    tx = AddModel(
        REGTEST.network_id,
        0,
        infohash,
        model.weights_root,
        registry.encode(model.architecture),
        objectives.encode(model.objective),
        model.dataset.root,
        (),
        (),
        1,
        model.score(),
        model.score_cost(),
        x_only(OWNER),
        NO_SIGNATURE,
    )
    tx = signed(await stamp(tx, REGTEST.model_stamp, no_progress), OWNER)
    await chain.until(await chain.mined(tx) + REGTEST.fee_depth)
    return tx.txid


async def published(chain: Chain, model: Model, folder: Path) -> bytes:
    await asyncio.to_thread(directory.write, folder, model)
    return (await chain.swarm.publish(folder)).infohash


async def confirm(chain: Chain, identity: bytes, pledge: Pledge) -> int:
    """-> the height of the block that has the Reveal, which confirms where nothing is sealed"""
    key, params = x_only(TRAINER), REGTEST
    commit = training.commit_of(params, identity, key, pledge)
    committed = await chain.mined(await stamp(commit, params.stamp, no_progress))
    await chain.until(committed + params.reveal_delay - 1)
    reveal = training.reveal_of(params, identity, key, pledge)
    height = await chain.mined(signed(await stamp(reveal, params.stamp, no_progress), TRAINER))
    state = chain.node.chain.state.model(identity)
    assert state is not None and state.confirmed.weights_root == pledge.weights_root
    return height


@asynccontextmanager
async def provider(folder: Path, socket: Path, chain: Chain, model: bytes) -> AsyncIterator[str]:
    """-> its URL"""
    follow = ("--follow", model.hex(), "--chain", chain.address)
    process = await asyncio.create_subprocess_exec(
        *("env", f"ODA_DATA={folder}", str(ODA), "provider", *follow),
        *("--rpc-file", str(socket), "--port", "0", "--json"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None  # a pipe was asked for
    try:
        yield json.loads(await process.stdout.readline())["url"]
    finally:
        process.terminate()
        await process.wait()


async def served(session: aiohttp.ClientSession, url: str, weights_root: bytes) -> float:
    """When the provider says that it serves these weights."""
    while True:
        async with session.get(f"{url}/models") as answer:
            (entry,) = (await answer.json())["data"]
        if entry["sidechain"]["weights_root"] == weights_root.hex():
            return perf_counter()
        await asyncio.sleep(ASK_EVERY)


async def bare(chain: Chain, infohash: bytes, folder: Path) -> float:
    """Seconds to have the weights out of the swarm, and to load them."""
    async with Swarm(Library(folder, 1 << 40), Options()) as swarm:
        begun = perf_counter()
        path = await swarm.fetch(Magnet(infohash, (chain.swarm.address,)))
        engine = TorchEngine(await asyncio.to_thread(models.load, path, infohash=infohash))
        seconds = perf_counter() - begun
        engine.close()
    return seconds


async def measure(folder: Path, improvements: int) -> None:
    made = await asyncio.to_thread(versions, improvements)
    settings = load_settings()
    network = Network(folder / "network", settings.cache, settings.bitcoind)
    try:
        await network.up(["provider"], Sat(0))
        async with mining(folder / "node") as chain, aiohttp.ClientSession() as session:
            first, *better = made
            infohash = await published(chain, first, folder / "version")
            model = await register(chain, first, infohash)
            socket = network.node("provider").rpc_file
            async with provider(folder / "provider", socket, chain, model) as url:
                await served(session, url, first.weights_root)
                rows = []
                for number, version in enumerate(better):
                    infohash = await published(chain, version, folder / f"version-{number}")
                    pledge = Pledge(
                        version.weights_root, infohash, b"", version.score(), bytes([number]) * 32
                    )
                    height = await confirm(chain, model, pledge)
                    changed = await served(session, url, version.weights_root)
                    accepted, buried = [await chain.until(height + i) for i in (0, 1)]
                    alone = await bare(chain, infohash, folder / f"bare-{number}")
                    rows.append((changed - accepted, changed - buried, alone))
    finally:
        await network.down()
    tell(rows)


def tell(rows: list[tuple[float, float, float]]) -> None:
    everything, after, alone = (statistics.median(column) for column in zip(*rows, strict=True))
    worst = max(row[0] for row in rows)
    print(
        f"accepted to served: {everything:.2f} s ({worst:.2f} at most, of {len(rows)}), of which "
        f"{everything - after:.2f} until a block buries it; {after:.2f} s after that, bare fetch "
        f"and load {alone:.2f}; ratio {after / alone:.2f}"
    )


def main() -> None:
    improvements = int(sys.argv[1]) if len(sys.argv) > 1 else IMPROVEMENTS
    with tempfile.TemporaryDirectory(prefix="oda-") as folder:
        asyncio.run(measure(Path(folder), improvements))


if __name__ == "__main__":
    main()
