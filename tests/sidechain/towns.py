"""Whole nodes in this process, on loopback: one mines when it is told to, the others train."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from channels.background import background
from channels.settings import Settings
from sidechain import service
from sidechain import settings as sidechain_settings
from sidechain.attempts import Wishes
from sidechain.model import directory, registry
from sidechain.model import objective as objectives
from sidechain.model.directory import Model
from sidechain.node import ChainNode
from sidechain.params import REGTEST
from sidechain.pledges import Pledge
from sidechain.primitives import (
    NO_SIGNATURE,
    AddModel,
    Block,
    shard_key_hash,
    signed,
    stamped,
)
from sidechain.service import Running
from sidechain.settings import SidechainSettings
from sidechain.state import Model as ModelState
from sidechain.trainer import Trainer
from tests.sidechain.world import MINER, Person, sealed_block
from torrent.swarm import Swarm

PATIENCE = 30.0

Event = tuple[str, dict[str, Any]]


@dataclass
class Citizen:
    """A node, and what its trainer told. `task` runs as long as there is one."""

    running: Running
    folder: Path
    person: Person
    heard: list[Event] = field(default_factory=list)
    trainer: Trainer | None = None
    task: asyncio.Task[None] | None = None

    @property
    def node(self) -> ChainNode:
        assert isinstance(self.running.node, ChainNode)
        return self.running.node

    @property
    def swarm(self) -> Swarm:
        assert self.running.swarm is not None
        return self.running.swarm

    def train(self, model: bytes, **wishes: Any) -> Trainer:
        """Begin, or go on after quit()."""
        scorer = self.running.around.scorer
        assert scorer is not None
        self.trainer = Trainer(
            self.node,
            self.swarm,
            scorer.directory,
            secret=self.person.secret,
            model=model,
            wishes=Wishes(self.folder / "training", **wishes),
            offer_again=self.running.around.peers.offer_again,
            told=self.hear,
        )
        self.task = asyncio.create_task(self.trainer.run())
        return self.trainer

    async def quit(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    def hear(self, name: str, fields: dict[str, Any]) -> None:
        self.heard.append((name, fields))

    @property
    def pledges(self) -> tuple[Pledge, ...]:
        assert self.trainer is not None
        return self.trainer.pledges.all

    def began_with(self, weights_root: bytes) -> bool:
        return bool(self.told("training", base=weights_root.hex()))

    def told(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Events of this name that have these fields."""
        return [
            found for each, found in self.heard if each == name and fields.items() <= found.items()
        ]

    def model(self, identity: bytes) -> ModelState:
        found = self.node.chain.state.model(identity)
        assert found is not None
        return found


@dataclass
class Town:
    miner: Citizen
    trainers: list[Citizen]

    def mine(self) -> Block:
        """A block with all that can be in it."""
        node = self.miner.node
        block = sealed_block(node.template(MINER.key))
        node.accept_block(block)
        assert node.chain.tip.hash == block.hash
        return block

    async def until(
        self, condition: Callable[..., Any], *about: object, mining: bool = False
    ) -> Any:
        """What the condition, asked about these, is at last. mining: a block for each look."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := condition(*about)):  # of several nodes and threads
                    self._check()
                    if mining and not self.miner.node.chain.unverified():
                        self.mine()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            heard = {
                each.person.name: [event for event in each.heard if event[0] != "steps"][-8:]
                for each in self.trainers
            }
            raise AssertionError(f"waited {PATIENCE} s in vain; heard {heard}") from None
        return found

    def _check(self) -> None:
        """A trainer that has failed is not waited for."""
        for each in self.trainers:
            if each.task is not None and each.task.done():
                each.task.result()

    async def register(
        self, model: Model, openers: tuple[Person, ...], min_gain: int, keys: tuple[bytes, ...] = ()
    ) -> bytes:
        """A model of the miner's on everybody's chain; -> its identity."""
        folder = self.miner.folder / "model"
        directory.write(folder, model)
        infohash = (await self.miner.swarm.publish(folder)).infohash
        tx = AddModel(
            REGTEST.network_id,
            0,
            infohash,
            model.weights_root,
            registry.encode(model.architecture),
            objectives.encode(model.objective),
            model.dataset.root,
            tuple(shard_key_hash(key) for key in keys),
            tuple(opener.key for opener in openers),
            min_gain,
            model.score(),
            model.score_cost(),
            MINER.key,
            NO_SIGNATURE,
        )
        tx = signed(stamped(tx, REGTEST.model_stamp), MINER.secret)
        self.miner.node.accept_transaction(tx)
        for each in (self.miner, *self.trainers):
            chain = each.node.chain
            await self.until(lambda chain: chain.state.model(tx.txid), chain, mining=True)
        return tx.txid


@asynccontextmanager
async def town(folder: Path, *people: Person) -> AsyncIterator[Town]:
    """Settings are taken from the environment, so give it an empty one (node_processes)."""
    async with AsyncExitStack() as stack:
        miner = await _citizen(stack, folder, MINER, ())
        address = miner.running.url.removeprefix("http://")
        trainers = [await _citizen(stack, folder, person, (address,)) for person in people]
        made = Town(miner, trainers)
        for each in trainers:
            stack.push_async_callback(each.quit)
            await made.until(each.running.around.peers.infos)
        yield made


async def _citizen(
    stack: AsyncExitStack, folder: Path, person: Person, connect: tuple[str, ...]
) -> Citizen:
    shared = Settings(data=folder / person.name)
    found = SidechainSettings(port=0, connect=connect)
    running = await stack.enter_async_context(service.full_node(shared, found))
    await stack.enter_async_context(background(running.wait()))
    return Citizen(running, sidechain_settings.directory(shared), person)
