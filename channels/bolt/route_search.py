"""The search behind `route`: from the payee backward, and where that is long, forward a bit too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from channels.bolt.graph import DirectedChannel, Edge, Graph, directed, direction_of
from channels.bolt.knowledge import Hop, Knowledge
from channels.units import Msat, ShortChannelId, UnixTime

UNBOUNDED = 1 << 62

PATIENCE = 500
"""Edges looked at backward before the search looks forward, and then as many forward."""

_RISK_SCALE = 100 * 52_560  # a percentage; blocks in a year


class LocalChannel(NamedTuple):
    """A channel of our own: it costs nothing, and what it can carry is known."""

    node_id: bytes
    short_channel_id: ShortChannelId
    spendable_msat: Msat
    htlc_minimum_msat: Msat = Msat(0)
    htlc_maximum_msat: Msat = Msat(UNBOUNDED)


class Step(NamedTuple):
    """How a node goes on toward the payee: over `channel` to `target`, with this HTLC."""

    channel: DirectedChannel
    target: bytes
    amount: int
    delay: int


@dataclass(slots=True)
class Query:
    """What is looked for. `hints` are edges by the node that they lead to."""

    graph: Graph
    source: bytes
    destination: bytes
    amount: int
    final_cltv: int
    now: UnixTime
    learned: Knowledge
    maxfee: int | None
    max_hops: int
    max_delay: int
    riskfactor: int
    hints: Mapping[bytes, Sequence[Edge]]
    local: Sequence[LocalChannel] | None
    first: dict[bytes, list[LocalChannel]] = field(init=False)

    def __post_init__(self) -> None:
        local = self._of_graph() if self.local is None else self.local
        self.first = {}
        for channel in local:
            self.first.setdefault(channel.node_id, []).append(channel)

    def _of_graph(self) -> list[LocalChannel]:
        """The first hops of somebody else: its edges, at no fee, as learned."""
        found = []
        for target, edge in self.graph.outgoing(self.source):
            judged = self.learned.judge(edge, self.now)
            if judged is not None:
                short_channel_id = ShortChannelId(edge.channel >> 1)
                found.append(
                    LocalChannel(
                        node_id=target,
                        short_channel_id=short_channel_id,
                        spendable_msat=Msat(judged.upper),
                        htlc_minimum_msat=Msat(judged.edge.htlc_minimum_msat),
                        htlc_maximum_msat=Msat(judged.edge.htlc_maximum_msat),
                    )
                )
        return found


class _Label(NamedTuple):
    """How a node can go on: `key` orders the heap, the rest is what must reach the node."""

    key: int
    cost: int
    node: bytes
    amount: int
    delay: int
    hops: int


Weigh = Callable[[Edge, int], "tuple[int, int, int] | None"]
"""(edge, amount that it must carry) -> (cost in msat, fee, cltv_expiry_delta); None: it can't."""


def weigher(query: Query, *, fee_only: bool, minimum_matters: bool) -> Weigh:
    """A closure, because every search calls it thousands of times."""
    learned, now = query.learned, query.now
    risk = 0 if fee_only else query.riskfactor
    attempt = 0 if fee_only else _attempt_cost(query.amount)
    hop_cost = 1 + attempt // 64

    def weigh(edge: Edge, amount: int) -> tuple[int, int, int] | None:
        lower = 0
        if edge.channel in learned:
            judged = learned.judge(edge, now)
            if judged is None:
                return None
            edge, lower, upper = judged
            _, _, base, millionths, delta, minimum, maximum, _ = edge
        else:
            _, _, base, millionths, delta, minimum, maximum, upper = edge
        if amount > maximum or amount > upper or (amount < minimum and minimum_matters):
            return None
        fee = base + amount * millionths // 1_000_000
        cost = hop_cost + fee + (amount + fee) * delta * risk // _RISK_SCALE
        if amount > lower:
            # Liquidity is somewhere between the bounds, so this many attempts fail for one that
            # succeeds: (1 - p) / p.
            cost += attempt * (amount - lower) // (upper - amount + 1)
        return cost, fee, delta

    return weigh


def _attempt_cost(amount: int) -> int:
    """What one failed attempt is worth avoiding, in msat: waiting, and liquidity held meanwhile."""
    return 100 + amount // 2000


class Search:
    """Dijkstra from the payee, because what a node must receive follows from what it passes on.

    Half of the network may be nearer to the payee than the payer is. Once that shows, the nodes
    around the payer are measured forward, with the amount alone and no fees on it, which is never
    more than the real cost; what is far from both ends is then left out (A*).
    """

    def __init__(self, query: Query, *, fee_only: bool) -> None:
        self._query = query
        self._fee_only = fee_only
        self._weigh = weigher(query, fee_only=fee_only, minimum_matters=query.amount > 0)
        self._steps: dict[bytes, Step] = {}
        # No edge of the graph may lead out of the source: its first hop is a channel in `first`.
        self._best: dict[bytes, int] = {query.destination: 0, query.source: -1}
        self._heap = [_Label(0, 0, query.destination, query.amount, query.final_cltv, 0)]
        self._near: Mapping[bytes, int] = {}
        self._far = 0
        self._seen = 0

    def run(self) -> tuple[Hop, ...] | None:
        """The route of the least cost; None when there is none."""
        query, heap, best = self._query, self._heap, self._best
        if query.source == query.destination:
            return None
        to_source = UNBOUNDED
        while heap:
            label = heappop(heap)
            _, cost, node, amount, delay, hops = label
            if node == query.source:
                return self._route()
            if cost > best[node] or self._avoids(node):
                continue
            if node in query.first and cost < to_source:
                first = first_hop(query, node, amount)
                if first is not None:
                    to_source = cost
                    self._steps[query.source] = Step(first, node, amount, delay)
                    heappush(heap, label._replace(key=cost, node=query.source))
            if hops + 2 <= query.max_hops:
                self._relax(label)
            if self._seen > PATIENCE and not self._near:
                self._look_forward()
        return None

    def _avoids(self, node: bytes) -> bool:
        query = self._query
        return node != query.destination and (
            node in query.graph.avoided or query.learned.avoids_node(node, query.now)
        )

    def _relax(self, label: _Label) -> None:
        """Offer every edge into the label's node to the search."""
        query, heap, best, steps = self._query, self._heap, self._best, self._steps
        weigh, near, far = self._weigh, self._near, self._far
        _, cost, node, amount, delay, hops = label
        most = UNBOUNDED if query.maxfee is None else query.amount + query.maxfee
        edges: Collection[Edge] = query.graph.incoming(node).values()
        if node in query.hints:
            edges = (*query.hints[node], *edges)
        self._seen += len(edges)
        for edge in edges:
            weighed = weigh(edge, amount)
            if weighed is None:
                continue
            more, fee, delta = weighed
            if amount + fee > most or delay + delta > query.max_delay:
                continue
            source, total = edge.source, cost + more
            known = best.get(source)
            if known is None or total < known:
                best[source] = total
                steps[source] = Step(edge.channel, node, amount, delay)
                key = total + near.get(source, far)
                heappush(heap, _Label(key, total, source, amount + fee, delay + delta, hops + 1))

    def _look_forward(self) -> None:
        """Measure what is near the payer, and order the heap by what is still to come."""
        self._near, self._far = self._measure()
        self._heap[:] = [
            label._replace(key=label.cost + self._near.get(label.node, self._far))
            for label in self._heap
        ]
        heapify(self._heap)

    def _measure(self) -> tuple[dict[bytes, int], int]:
        """The least cost from the payer to the nodes around it, and to all others."""
        query = self._query
        # A minimum that the amount alone does not reach may be reached with fees on it.
        weigh = weigher(query, fee_only=self._fee_only, minimum_matters=False)
        hinted: dict[bytes, list[tuple[bytes, Edge]]] = {}
        for target, edges in query.hints.items():
            for edge in edges:
                hinted.setdefault(edge.source, []).append((target, edge))
        settled: dict[bytes, int] = {}
        heap = [(0, peer) for peer in query.first]
        heapify(heap)
        seen = 0
        while heap:
            cost, node = heappop(heap)
            if node in settled:
                continue
            settled[node] = cost
            if seen > PATIENCE:
                return {**settled, query.source: 0}, cost
            for target, edge in (*query.graph.outgoing(node), *hinted.get(node, ())):
                seen += 1
                weighed = None if target in settled else weigh(edge, query.amount)
                if weighed is not None:
                    heappush(heap, (cost + weighed[0], target))
        # All that can be reached: the others are as far as can be.
        return {**settled, query.source: 0}, UNBOUNDED

    def _route(self) -> tuple[Hop, ...]:
        hops = []
        node = self._query.source
        while node != self._query.destination:
            channel, node, amount, delay = self._steps[node]
            hops.append(Hop(node, ShortChannelId(channel >> 1), Msat(amount), delay))
        return tuple(hops)


def first_hop(query: Query, peer: bytes, amount: int) -> DirectedChannel | None:
    """The channel with the peer that fits the HTLC best: the fullest keep room for more."""
    fitting = [
        channel
        for channel in query.first[peer]
        if (channel.htlc_minimum_msat <= amount or not query.amount)
        and amount <= min(channel.spendable_msat, channel.htlc_maximum_msat)
        and not query.learned.avoids_channel(_local(query.source, channel), query.now)
    ]
    if not fitting:
        return None
    return _local(query.source, min(fitting, key=lambda c: (c.spendable_msat, c.short_channel_id)))


def _local(source: bytes, channel: LocalChannel) -> DirectedChannel:
    return directed(channel.short_channel_id, direction_of(source, channel.node_id))
