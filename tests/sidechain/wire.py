"""Nodes that talk in virtual time, without sockets: every message is encoded, sent and decoded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

from sidechain.chain import Chain
from sidechain.conversation import Conversation
from sidechain.events import (
    AnnouncementAdded,
    BlockRejected,
    Event,
    TipChanged,
    TransactionAdded,
)
from sidechain.exchange import Exchange, Identity
from sidechain.headers import genesis
from sidechain.light_node import LightNode
from sidechain.node import ChainNode
from sidechain.params import Params
from sidechain.primitives import AnyTransaction, Block
from sidechain.protocol import (
    PROTOCOL,
    Headers,
    Message,
    Verack,
    Version,
)
from sidechain.reasons import Rejection
from sidechain.store import SqliteStore
from tests.sidechain.world import MINER, QUICK, Person, sealed_block

LATER = QUICK.genesis_time + 1_000_000_000
"""The wall clock of nodes in tests: no block is from the future."""

_numbers = count()


def full_node(directory: Path, name: str = "", params: Params = QUICK) -> ChainNode:
    path = directory / f"{name or next(_numbers)}.sqlite"
    return ChainNode(params, SqliteStore(path), now=lambda: LATER)


def light_node(directory: Path, patience: float = 20.0) -> LightNode:
    path = directory / f"{next(_numbers)}.sqlite"
    return LightNode(QUICK, SqliteStore(path), now=lambda: LATER, patience=patience)


def mine(
    node: ChainNode,
    blocks: int = 1,
    *txs: AnyTransaction,
    producer: Person = MINER,
    extra: str = "",
) -> list[Block]:
    """Blocks on the node's tip; the transactions wait in its mempool first."""
    for tx in txs:
        node.accept_transaction(tx)
    made = []
    for _ in range(blocks):
        block = sealed_block(node.template(producer.key, extra.encode()))
        node.accept_block(block)
        assert node.chain.tip.hash == block.hash
        made.append(block)
    return made


class Side:
    """A node and what it says."""

    def __init__(self, wire: Wire, node: ChainNode | LightNode, nonce: int) -> None:
        self.wire = wire
        self.node = node
        self.exchange = Exchange(
            node,
            node.headers if isinstance(node, LightNode) else node.chain.headers,
            Identity(nonce, f"node {nonce}", 1000 + nonce, 2000 + nonce),
            full=None if isinstance(node, LightNode) else node,
            proving=node.proving if isinstance(node, LightNode) else None,
            draw=lambda: wire.random.getrandbits(62),
        )
        node.listen(self._heard)

    @property
    def chain_node(self) -> ChainNode:
        assert isinstance(self.node, ChainNode)
        return self.node

    @property
    def chain(self) -> Chain:
        return self.chain_node.chain

    def _heard(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self.exchange.tip_moved(event.advance.connected, event.advance.disconnected)
        elif isinstance(event, TransactionAdded):
            self.exchange.transaction_added(event.tx.txid)
        elif isinstance(event, AnnouncementAdded):
            self.exchange.announcement_added(event.announcement)
        elif isinstance(event, BlockRejected):
            self.exchange.block_rejected(event.block_hash, event.reason)


class Stranger:
    """Somebody who says whatever a test wants to one node, and keeps what he is told."""

    def __init__(self, wire: Wire, side: Side, host: str, *, inbound: bool = True) -> None:
        self.wire = wire
        self.side = side
        self.seen = Conversation(host, inbound=inbound, now=wire.now, port=0 if inbound else 9)
        """How the node sees him."""
        self.told: list[Message] = []
        side.exchange.joined(self.seen)

    def says(self, *messages: Message) -> Rejection | None:
        """-> the last refusal."""
        refusal = None
        for message in messages:
            refusal = self.sends(message.encode()) or refusal
        return refusal

    def sends(self, data: bytes) -> Rejection | None:
        with self.side.node.turn():
            refusal = self.side.exchange.received(self.seen, data, self.wire.now)
        self.side.exchange.flush(self.wire.now)
        self.hears()
        return refusal

    def hears(self) -> None:
        """Take what the node sent."""
        while True:
            self.told += self.seen.outbox
            self.seen.outbox.clear()
            self.side.exchange.serve(self.seen, self.wire.now)
            if not self.seen.outbox:
                return

    def was_told(self, kind: type[Message]) -> list[Message]:
        """What came of a kind since it was asked last."""
        self.hears()
        found = [message for message in self.told if isinstance(message, kind)]
        self.told = [message for message in self.told if not isinstance(message, kind)]
        return found

    def greets(self, *, nonce: int = 99, services: int = 3, port: int = 0) -> Stranger:
        self.says(version(nonce, services=services, port=port), Verack())
        assert self.seen.ready
        return self

    def leaves(self) -> None:
        self.side.exchange.left(self.seen, self.wire.now)


def version(nonce: int = 99, *, services: int = 3, port: int = 0, height: int = 0) -> Version:
    return Version(
        PROTOCOL,
        QUICK.network_id,
        genesis(QUICK).hash,
        nonce,
        height,
        port,
        0,
        services,
        "stranger",
    )


class Wire:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 1000.0
        self.random = Random(1)
        self.sides: list[Side] = []
        self._links: list[tuple[Side, Conversation, Side, Conversation]] = []
        self.messages = 0

    def full(self) -> Side:
        return self._side(full_node(self.directory))

    def light(self) -> Side:
        return self._side(light_node(self.directory))

    def _side(self, node: ChainNode | LightNode) -> Side:
        self.sides.append(Side(self, node, len(self.sides) + 1))
        return self.sides[-1]

    def close(self) -> None:
        for side in self.sides:
            side.node.store.close()

    def link(self, one: Side, other: Side) -> tuple[Conversation, Conversation]:
        """`one` dials; -> how each sees the other."""
        there = Conversation("10.0.0.2", inbound=False, now=self.now, port=1)
        here = Conversation("10.0.0.1", inbound=True, now=self.now)
        one.exchange.joined(there)
        other.exchange.joined(here)
        self._links.append((one, there, other, here))
        self.run()
        return there, here

    def cut(self) -> None:
        """All connections break."""
        for one, there, other, here in self._links:
            one.exchange.left(there, self.now)
            other.exchange.left(here, self.now)
        self._links.clear()

    def run(self) -> None:
        """Until nobody has anything to say."""
        moved = True
        while moved:
            moved = False
            for link in self._links:
                moved |= self._step(*link)

    def _step(self, one: Side, there: Conversation, other: Side, here: Conversation) -> bool:
        moved = self._deliver(one, there, other, here)
        return self._deliver(other, here, one, there) or moved

    def _deliver(self, source: Side, mouth: Conversation, to: Side, ear: Conversation) -> bool:
        source.exchange.flush(self.now)
        source.exchange.serve(mouth, self.now)
        messages = [message.encode() for message in mouth.outbox]
        mouth.outbox.clear()
        self.messages += len(messages)
        with to.node.turn():
            for data in messages:
                to.exchange.received(ear, data, self.now)
        to.exchange.flush(self.now)
        return bool(messages)

    def wait(self, seconds: float, step: float = 0.5) -> None:
        """Time passes, and everybody does what is due."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for side in self.sides:
                side.exchange.tick(self.now)
            self.run()


def until(condition: Callable[[], bool], wire: Wire, within: float) -> None:
    """Let time pass until something is so."""
    end = wire.now + within
    while not condition():
        assert wire.now < end, f"waited {within} s in vain"
        wire.wait(0.5)


def stranger(side: Side, host: str = "10.1.0.1") -> Stranger:
    return Stranger(side.wire, side, host).greets()


def headers(blocks: list[Block]) -> Headers:
    return Headers(tuple(block.header.encode() for block in blocks))
