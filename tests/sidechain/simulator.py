"""A network of nodes in virtual time: latency, loss, restarts, partitions and attackers, all drawn
from one seed, so that a run can be repeated to the last message.

The nodes are the real pure core (chain, mempool, protocol, scores). What is made up is the wire,
the clock, the search for nonces, and the weights, of which only scores and whereabouts are known.

    python -m tests.sidechain.simulator [seed]     propagation and forks against block interval
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random
from zlib import crc32

from sidechain.chain import Chain, MemoryStore, Status
from sidechain.mempool import Mempool, assemble
from sidechain.params import Params
from sidechain.primitives import AnyTransaction, Block, Header, decode_transaction
from sidechain.protocol import (
    BAN,
    BLOCK_PENALTIES,
    MAX_HEADERS,
    PENALTIES,
    AnyMessage,
    BlockData,
    GetData,
    GetHeaders,
    Headers,
    Item,
    Tx,
    decode,
)
from sidechain.reasons import Rejection
from sidechain.scores import PairedRequest, Request, ScoreRequest, Scores
from tests.sidechain.world import QUICK, Person, Truth, sealed_block

TICK = 60.0
"""How often a node asks a peer for what it may have missed, in seconds."""

FETCH = 2.0
"""How long weights take to arrive from a peer that has them; failing, the time doubles."""


@dataclass(eq=False)
class SimNode:
    """One node: its chain, and what it thinks of its peers."""

    name: str
    params: Params
    store: MemoryStore = field(default_factory=MemoryStore)
    peers: list[SimNode] = field(default_factory=list)
    hashrate: float = 1.0
    online: bool = True
    honest: bool = True
    clock_offset: float = 0.0
    points: Counter[str] = field(default_factory=Counter)
    answered: set[Request] = field(default_factory=set)
    fetching: set[Request] = field(default_factory=set)
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chain = Chain(self.params, self.store)
        self.mempool = Mempool(self.params)

    def banned(self, peer: SimNode) -> bool:
        return self.points[peer.name] >= BAN


class Simulation:
    """`latency` and `loss` are of each message between two nodes; `now` is in virtual seconds."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        *,
        params: Params = QUICK,
        degree: int = 8,
        latency: tuple[float, float] = (0.02, 0.4),
        loss: float = 0.0,
        encode: bool = True,
    ) -> None:
        self.random = Random(seed)
        self.params = params
        self.latency = latency
        self.loss = loss
        self.encode = encode
        self.now = 0.0
        self.truth = Truth()
        self.withheld: Callable[[SimNode, Request], bool] = lambda node, request: False
        self.cut: Callable[[SimNode, SimNode], bool] = lambda one, other: False
        self.mining = True
        self.mined: dict[bytes, float] = {}
        self.arrivals: dict[bytes, list[float]] = {}
        self.messages = 0
        self.trace = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.nodes = [self._node(f"node {i}") for i in range(nodes)]
        self._connect(degree)
        self._next_block()

    def _node(self, name: str) -> SimNode:
        node = SimNode(name, self.params, clock_offset=self.random.uniform(-5, 5))
        self.at(self.random.uniform(0, TICK), lambda: self._tick(node))
        return node

    def _connect(self, degree: int) -> None:
        """A ring, so that all are connected, and random peers beside it."""
        for i, node in enumerate(self.nodes):
            self.link(node, self.nodes[i - 1])
            while len(node.peers) < min(degree, len(self.nodes) - 1):
                self.link(node, self.random.choice(self.nodes))

    def link(self, one: SimNode, other: SimNode) -> None:
        if one is not other and other not in one.peers:
            one.peers.append(other)
            other.peers.append(one)

    def join(self, name: str, degree: int = 4) -> SimNode:
        """A stranger's node, started now."""
        node = self._node(name)
        for peer in self.random.sample(self.nodes, min(degree, len(self.nodes))):
            self.link(node, peer)
        self.nodes.append(node)
        return node

    # --- time ------------------------------------------------------------------------------------

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def settle(self, seconds: float = 30 * TICK) -> None:
        """Quiet: no loss, no more blocks, and time for what is under way.

        Then everybody has the most work. Who saw two blocks of equal work keeps the first; the
        next block decides between them, so one is mined if it takes one.
        """
        self.mining, self.loss = False, 0.0
        self.run(seconds)
        if len(self.tips()) > 1:
            assert len({node.chain.tip.work for node in self._judges()}) == 1
            self.mine(self._judges()[0])
            self.run(seconds)

    def clock(self, node: SimNode | None = None) -> int:
        offset = node.clock_offset if node else 0.0
        return self.params.genesis_time + int(self.now + offset)

    def tips(self) -> set[bytes]:
        return {node.chain.tip.hash for node in self._judges()}

    def _judges(self) -> list[SimNode]:
        return [node for node in self.nodes if node.online and node.honest]

    # --- the wire --------------------------------------------------------------------------------

    def send(self, source: SimNode, to: SimNode, message: AnyMessage) -> None:
        if not source.online or self.cut(source, to) or self.random.random() < self.loss:
            return
        self.messages += 1
        delay = self.random.uniform(*self.latency)
        data = message.encode() if self.encode else message

        def arrive() -> None:
            if to.online and not to.banned(source):
                received = decode(data) if isinstance(data, bytes) else data
                event = f"{self.now:.9f} {source.name} {to.name} {type(received).__name__}"
                self.trace = crc32(event.encode(), self.trace)
                self.receive(to, source, received)

        self.at(delay, arrive)

    def receive(self, node: SimNode, source: SimNode, message: AnyMessage) -> None:
        try:
            if isinstance(message, Headers):
                self._headers(node, source, message)
            elif isinstance(message, GetHeaders):
                self._get_headers(node, source, message)
            elif isinstance(message, GetData):
                for block_hash in message.hashes:
                    body = node.store.body(block_hash)
                    if body is not None:
                        self.send(node, source, BlockData(body))
            elif isinstance(message, BlockData):
                block = Block.decode(message.block, self.params.block_bytes)
                node.chain.accept_block(block, self.clock(node))
                self.advance(node)
            elif isinstance(message, Tx):
                self.relay(node, decode_transaction(message.tx))
        except Rejection as rejection:
            penalties = PENALTIES if isinstance(message, Tx) else BLOCK_PENALTIES
            node.points[source.name] += penalties[rejection.reason]
            if rejection.reason == "prev-blk-not-found":
                self.sync(node, source)

    def _headers(self, node: SimNode, source: SimNode, message: Headers) -> None:
        record = node.chain.tip
        for data in message.headers:
            record = node.chain.accept_header(Header.decode(data), self.clock(node))
        if len(message.headers) == MAX_HEADERS:
            self.sync(node, source)
        wanted = tuple(each.hash for each in node.chain.wanted(record, 64))
        if wanted:
            self.send(node, source, GetData(Item.BLOCK, wanted))

    def _get_headers(self, node: SimNode, source: SimNode, message: GetHeaders) -> None:
        known = (node.chain.headers.get(each) for each in message.locator)
        start = next((r.height for r in known if r and node.chain.is_active(r)), 0)
        records = [node.chain.active(start + i) for i in range(1, MAX_HEADERS + 1)]
        headers = tuple(record.header.encode() for record in records if record)
        if headers:
            self.send(node, source, Headers(headers))

    def sync(self, node: SimNode, peer: SimNode) -> None:
        locator = tuple(node.chain.headers.locator(node.chain.tip))
        self.send(node, peer, GetHeaders(locator, bytes(32)))

    def _tick(self, node: SimNode) -> None:
        self.at(TICK, lambda: self._tick(node))
        if node.online and node.peers:
            peer = self.random.choice(node.peers)
            self.sync(node, peer)

    # --- a node's work ---------------------------------------------------------------------------

    def scores(self, node: SimNode) -> Scores:
        """What this node has fetched and scored."""
        public, paired = self.truth.public, self.truth.paired
        return Scores(
            {r: public[r] for r in node.answered if isinstance(r, ScoreRequest)},
            {r: paired[r] for r in node.answered if isinstance(r, PairedRequest)},
        )

    def advance(self, node: SimNode) -> None:
        done = node.chain.advance(self.scores(node))
        self._want(node, done.missing)
        if not done.moved:
            return
        node.mempool.moved(node.chain.state, done.connected, done.disconnected)
        self._want(node, node.mempool.requests(node.chain.state))
        tip = node.chain.tip
        self.arrivals.setdefault(tip.hash, []).append(self.now)
        # Only what was checked is offered to others: a pending block is not relayed.
        message = Headers(tuple(block.header.encode() for block in done.connected[-MAX_HEADERS:]))
        for peer in node.peers:
            self.send(node, peer, message)

    def _want(self, node: SimNode, requests: Iterable[Request]) -> None:
        for request in requests:
            if request not in node.fetching and request not in node.answered:
                node.fetching.add(request)
                self.at(FETCH, partial(self._fetch, node, request, FETCH))

    def _fetch(self, node: SimNode, request: Request, waited: float) -> None:
        known = request in self.truth.public or request in self.truth.paired
        if not known or self.withheld(node, request) or not node.online:
            wait = min(2 * waited, 600.0)
            self.at(wait, partial(self._fetch, node, request, wait))
            return
        node.fetching.discard(request)
        node.answered.add(request)
        self.advance(node)

    def relay(self, node: SimNode, tx: AnyTransaction) -> None:
        txid = tx.txid
        if txid in node.seen:
            return
        node.mempool.add(tx, node.chain.state)
        node.seen.add(txid)
        self._want(node, node.mempool.requests(node.chain.state))
        for peer in node.peers:
            self.send(node, peer, Tx(tx.encode()))

    def restart(self, node: SimNode, seconds: float) -> None:
        """Off for a while; what is not in the store is lost."""
        node.online = False

        def up() -> None:
            node.chain = Chain(self.params, node.store)
            node.mempool = Mempool(self.params)
            node.fetching.clear()
            node.online = True
            self.advance(node)

        self.at(seconds, up)

    # --- mining ----------------------------------------------------------------------------------

    def _next_block(self) -> None:
        self.at(self.random.expovariate(1 / self.params.spacing), self._found)

    def _found(self) -> None:
        self._next_block()
        if not self.mining:
            return
        (node,) = self.random.choices(self.nodes, [each.hashrate for each in self.nodes])
        if node.online and node.honest:
            self.mine(node)

    def template(self, node: SimNode, *, time: int | None = None) -> Block:
        chain = node.chain
        return sealed_block(
            assemble(
                self.params,
                chain.tip,
                chain.state,
                node.mempool,
                self.scores(node),
                payee=Person(node.name).key,
                time=self.clock(node) if time is None else time,
                bits=chain.headers.next_bits(chain.tip),
                extra=self.random.randbytes(8),
            )
        )

    def mine(self, node: SimNode) -> Block:
        block = self.template(node)
        self.mined[block.hash] = self.now
        node.chain.accept_block(block, self.clock(node))
        self.advance(node)
        return block

    # --- what came of it -------------------------------------------------------------------------

    def fork_rate(self) -> float:
        """The part of all mined blocks that did not stay."""
        chain = self.nodes[0].chain
        stale = sum(chain.status(block_hash) is not Status.ACTIVE for block_hash in self.mined)
        return stale / max(1, len(self.mined))

    def propagation(self, part: float) -> float:
        """The median time, in seconds, after which this part of the nodes had a block as tip."""
        needed = int(part * len(self.nodes))
        times = sorted(
            arrivals[needed - 1] - self.mined[block_hash]
            for block_hash, arrivals in self.arrivals.items()
            if block_hash in self.mined and len(arrivals) >= needed
        )
        return times[len(times) // 2] if times else float("nan")


def private_fork(simulation: Simulation, node: SimNode, blocks: int) -> list[Block]:
    """Blocks that an attacker mines on his own and keeps to himself."""
    node.honest = False
    made = []
    for _ in range(blocks):
        block = simulation.template(node, time=node.chain.tip.header.time + 1)
        node.chain.accept_block(block, simulation.clock(node))
        node.chain.advance(simulation.scores(node))
        made.append(block)
    return made


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(f"seed {seed}, 50 nodes of 8 peers, 20 to 400 ms per message, 2 % lost, 300 blocks each")
    print(f"{'interval':>9} {'blocks':>7} {'forks':>7} {'50 % have it':>13} {'90 % have it':>13}")
    for spacing in (1, 2, 5, 10, 30, 60, 600):
        params = replace(QUICK, spacing=spacing)
        simulation = Simulation(seed, 50, params=params, loss=0.02, encode=False)
        simulation.run(300 * spacing)
        simulation.settle()
        assert len(simulation.tips()) == 1
        print(
            f"{spacing:>7} s {len(simulation.mined):>7} {simulation.fork_rate():>7.1%}"
            f" {simulation.propagation(0.5):>11.2f} s {simulation.propagation(0.9):>11.2f} s"
        )


if __name__ == "__main__":
    main()
