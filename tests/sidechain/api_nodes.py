"""Nodes with an HTTP server and a made-up chain, without swarm, scorer and peers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp.test_utils import TestClient, TestServer

from channels.background import background
from sidechain.app import application
from sidechain.feed import Feed
from sidechain.full_handlers import FullHandlers
from sidechain.handlers import Around
from sidechain.history import History
from sidechain.light_handlers import LightHandlers
from sidechain.light_node import LightNode
from sidechain.metrics import Metrics
from sidechain.node import ChainNode
from sidechain.peers import Peers
from sidechain.primitives import AnyTransaction, Block
from sidechain.scores import Scored, ScoreRequest
from sidechain.store import SqliteStore
from tests.sidechain.world import COST, MINER, QUICK, Person, sealed_block

Client = TestClient[aiohttp.web.Request, aiohttp.web.Application]


@dataclass
class Api:
    node: ChainNode
    client: Client
    around: Around
    clock: list[int]

    def mine(self, *txs: AnyTransaction, producer: Person = MINER) -> Block:
        """A block with the mempool in it, to which these are added first."""
        for tx in txs:
            self.node.accept_transaction(tx)
        self.clock[0] += 600
        block = sealed_block(self.node.template(producer.key))
        self.node.accept_block(block)
        assert self.node.chain.tip.hash == block.hash
        return block

    def scored(self, model: bytes, weights_root: bytes, score: int) -> None:
        self.node.scored(ScoreRequest(model, weights_root, bytes(32)), Scored(score, COST))


@asynccontextmanager
async def full(folder: Path) -> AsyncIterator[Api]:
    clock = [QUICK.genesis_time]
    with SqliteStore(folder / "chain.sqlite") as store:
        node = ChainNode(QUICK, store, now=lambda: clock[0])
        around = Around("test", lambda: clock[0], Peers(node), MINER.key)
        history, metrics, feed = History(node), Metrics(node, around), Feed(node)
        node.listen(metrics.hear)
        node.listen(feed.hear)
        app = application(FullHandlers(node, history, around), metrics, feed, ())
        async with background(history.run()), TestClient(TestServer(app)) as client:
            yield Api(node, client, around, clock)
            feed.close()


@asynccontextmanager
async def light(folder: Path) -> AsyncIterator[tuple[LightNode, Client]]:
    with SqliteStore(folder / "headers.sqlite") as store:
        node = LightNode(QUICK, store, now=lambda: QUICK.genesis_time, patience=0.1)
        around = Around("test", lambda: QUICK.genesis_time, Peers(node))
        app = application(LightHandlers(node, around), Metrics(node, around), Feed(node), ())
        async with TestClient(TestServer(app)) as client:
            yield node, client
