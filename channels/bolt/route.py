"""Finding a route: what it costs, how long it may lock money up, and how likely it is to work.

The search goes backward from the payee, because what a node must receive follows from what it
must pass on (BOLT 7, "Recommendations for Routing"). Three things are added up for every hop, all
in msat: the fee, what it costs to have the amount locked for the hop's cltv_expiry_delta, and what
the failed attempts that are to be expected at this hop are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import NamedTuple

from channels.bolt.graph import DirectedChannel, Edge, Graph, directed, direction_of
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.knowledge import Hop, Knowledge, directed_channels
from channels.errors import OdaError
from channels.units import Msat, ShortChannelId, UnixTime

__all__ = [
    "MAX_DELAY",
    "MAX_HOPS",
    "Hop",
    "Knowledge",
    "LocalChannel",
    "NoRoute",
    "directed_channels",
    "find",
    "find_parts",
    "success_ppm",
]

MAX_HOPS = 20
"""What an onion with full payloads holds; Core Lightning's limit too."""

MAX_DELAY = 2016
"""Blocks: the longest that the first HTLC may be locked (Core Lightning's limit)."""

RISK_PERCENT_PER_YEAR = 10
"""What having money locked costs; Core Lightning's default riskfactor."""

MAX_HINTS = 20
"""An invoice is a stranger's: so many route hints are looked at."""

_RISK_SCALE = 100 * 52_560  # a percentage; blocks in a year
_UNBOUNDED = 1 << 62


class NoRoute(OdaError):
    """No route now. `reason` is "no-route", "route-too-expensive" (maxfee or the delay forbids
    what is there), "payee-unknown" or "funds-insufficient" (our own channels hold less)."""


class LocalChannel(NamedTuple):
    """A channel of our own: it costs nothing, and what it can carry is known."""

    node_id: bytes
    short_channel_id: ShortChannelId
    spendable_msat: Msat
    htlc_minimum_msat: Msat = Msat(0)
    htlc_maximum_msat: Msat = Msat(_UNBOUNDED)


class _Step(NamedTuple):
    """How a node goes on toward the payee: over `channel` to `target`, with this HTLC."""

    channel: DirectedChannel
    target: bytes
    amount: int
    delay: int


@dataclass(slots=True)
class _Query:
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


def find(
    graph: Graph,
    source: bytes,
    destination: bytes,
    amount_msat: Msat,
    final_cltv: int,
    *,
    now: UnixTime,
    learned: Knowledge,
    hints: Sequence[Sequence[RouteHop]] = (),
    local: Sequence[LocalChannel] | None = None,
    maxfee: Msat | None = None,
    max_hops: int = MAX_HOPS,
    max_delay: int = MAX_DELAY,
    riskfactor: int = RISK_PERCENT_PER_YEAR,
) -> tuple[Hop, ...]:
    """The cheapest route for one HTLC that delivers `amount_msat`. Raises NoRoute.

    `final_cltv` and every `delay` are blocks above the current height. `hints` are an invoice's
    `r` fields; `local` are the channels of `source` that may be used (None: those of the graph).
    An amount of 0 ignores htlc_minimum_msat, for probing. What is `reserve`d in `learned` is
    taken as gone.
    """
    query = _Query(
        graph=graph,
        source=source,
        destination=destination,
        amount=amount_msat,
        final_cltv=final_cltv,
        now=now,
        learned=learned,
        maxfee=maxfee,
        max_hops=min(max_hops, MAX_HOPS),
        max_delay=max_delay,
        riskfactor=riskfactor,
        hints=_hint_edges(graph, destination, hints),
        local=local,
    )
    return _find(query)


def _find(query: _Query) -> tuple[Hop, ...]:
    route = _search(query, fee_only=False)
    if route is None and query.maxfee is not None:
        # The best way to somewhere may cost too much where a worse one does not.
        route = _search(query, fee_only=True)
    if route is None:
        raise _why(query)
    return route


def _why(query: _Query) -> NoRoute:
    payee = query.destination.hex()
    if query.destination == query.source:
        return NoRoute("no-route", "The payee is the payer itself.")
    if (
        query.destination not in query.graph
        and query.destination not in query.hints
        and query.destination not in query.first
    ):
        return NoRoute("payee-unknown", f"No channel of {payee} is known, nor does it hint at one.")
    if sum(channel.spendable_msat for channel in query.local or ()) < query.amount and (
        query.local is not None
    ):
        return NoRoute(
            "funds-insufficient", f"The usable channels do not hold {query.amount} msat together."
        )
    if _search(replace(query, maxfee=None, max_delay=_UNBOUNDED), fee_only=True) is not None:
        return NoRoute(
            "route-too-expensive", f"Every route to {payee} costs or delays more than it may."
        )
    return NoRoute("no-route", f"No route to {payee} can carry {query.amount} msat now.")


def _search(query: _Query, *, fee_only: bool) -> tuple[Hop, ...] | None:
    """Dijkstra from the payee, on labels (cost, node, amount that must reach it, delay, hops)."""
    source, learned, now = query.source, query.learned, query.now
    steps: dict[bytes, _Step] = {}
    # No edge of the graph may lead out of the source: its first hop is a channel in `first`.
    best: dict[bytes, int] = {query.destination: 0, source: -1}
    if source == query.destination:
        return None
    to_source: int | None = None
    heap = [(0, query.destination, query.amount, query.final_cltv, 0)]
    while heap:
        cost, node, amount, delay, hops = heappop(heap)
        if node == source:
            return _route(steps, source, query.destination)
        if cost > best[node]:
            continue
        if node != query.destination and (
            node in query.graph.avoided or learned.avoids_node(node, now)
        ):
            continue
        if node in query.first:
            first = _first_hop(query, node, amount)
            if first is not None and (to_source is None or cost < to_source):
                to_source = cost
                steps[source] = _Step(first, node, amount, delay)
                heappush(heap, (cost, source, amount, delay, hops + 1))
        if hops + 2 > query.max_hops:
            continue
        _relax(query, heap, best, steps, (cost, node, amount, delay, hops), fee_only=fee_only)
    return None


def _relax(
    query: _Query,
    heap: list[tuple[int, bytes, int, int, int]],
    best: dict[bytes, int],
    steps: dict[bytes, _Step],
    label: tuple[int, bytes, int, int, int],
    *,
    fee_only: bool,
) -> None:
    """Offer every edge into the label's node to the search: all of its time is spent here."""
    cost, node, amount, delay, hops = label
    learned, best_of = query.learned, best.get
    minimum_matters = query.amount > 0
    most = _UNBOUNDED if query.maxfee is None else query.amount + query.maxfee
    last_delay = query.max_delay
    risk = 0 if fee_only else query.riskfactor
    attempt = 0 if fee_only else _attempt_cost(query.amount)
    cost += 1 + attempt // 64
    hops += 1
    edges: Iterable[Edge] = query.graph.incoming(node).values()
    if node in query.hints:
        edges = (*query.hints[node], *edges)
    for edge in edges:
        lower = 0
        if edge.channel in learned:
            judged = learned.judge(edge, query.now)
            if judged is None:
                continue
            edge, lower, upper = judged
            source, channel, base, millionths, delta, minimum, maximum, _ = edge
        else:
            source, channel, base, millionths, delta, minimum, maximum, upper = edge
        if amount > maximum or amount > upper or (amount < minimum and minimum_matters):
            continue
        fee = base + amount * millionths // 1_000_000
        amount_in = amount + fee
        delay_in = delay + delta
        if amount_in > most or delay_in > last_delay:
            continue
        total = cost + fee + amount_in * delta * risk // _RISK_SCALE
        if amount > lower:
            # Liquidity is somewhere between the bounds, so this many attempts fail for one that
            # succeeds: (1 - p) / p.
            total += attempt * (amount - lower) // (upper - amount + 1)
        known = best_of(source)
        if known is None or total < known:
            best[source] = total
            steps[source] = _Step(channel, node, amount, delay)
            heappush(heap, (total, source, amount_in, delay_in, hops))


def _attempt_cost(amount: int) -> int:
    """What one failed attempt is worth avoiding, in msat: waiting, and liquidity held meanwhile."""
    return 100 + amount // 2000


def _first_hop(query: _Query, peer: bytes, amount: int) -> DirectedChannel | None:
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


def _route(steps: Mapping[bytes, _Step], source: bytes, destination: bytes) -> tuple[Hop, ...]:
    hops = []
    node = source
    while node != destination:
        channel, node, amount, delay = steps[node]
        hops.append(Hop(node, ShortChannelId(channel >> 1), Msat(amount), delay))
    return tuple(hops)


def _hint_edges(
    graph: Graph, destination: bytes, hints: Sequence[Sequence[RouteHop]]
) -> dict[bytes, list[Edge]]:
    """BOLT 11 `r`: private channels that lead to the payee, by the node that each leads to."""
    edges: dict[bytes, list[Edge]] = {}
    for hint in hints[:MAX_HINTS]:
        targets = [*(hop.pubkey for hop in hint[1:]), destination]
        for hop, target in zip(hint[:MAX_HOPS], targets, strict=False):
            channel = directed(hop.short_channel_id, direction_of(hop.pubkey, target))
            if graph.edge(channel) is not None:
                continue  # gossip knows it, and its capacity too
            edge = Edge(
                source=hop.pubkey,
                channel=channel,
                fee_base_msat=hop.fee_base_msat,
                fee_proportional_millionths=hop.fee_proportional_millionths,
                cltv_expiry_delta=hop.cltv_expiry_delta,
                htlc_minimum_msat=0,
                htlc_maximum_msat=_UNBOUNDED,
                capacity_msat=_UNBOUNDED,
            )
            edges.setdefault(target, []).append(edge)
    return edges


# --- several parts -----------------------------------------------------------------------------


def find_parts(
    graph: Graph,
    source: bytes,
    destination: bytes,
    amount_msat: Msat,
    final_cltv: int,
    *,
    max_parts: int,
    now: UnixTime,
    learned: Knowledge,
    hints: Sequence[Sequence[RouteHop]] = (),
    local: Sequence[LocalChannel] | None = None,
    maxfee: Msat | None = None,
    max_delay: int = MAX_DELAY,
) -> tuple[tuple[Hop, ...], ...]:
    """Routes that deliver `amount_msat` together, one where one can (BOLT 4, basic MPP).

    Raises NoRoute. `learned` is left as it was: `reserve` each part when it is sent.
    """
    query = _Query(
        graph=graph,
        source=source,
        destination=destination,
        amount=amount_msat,
        final_cltv=final_cltv,
        now=now,
        learned=learned,
        maxfee=maxfee,
        max_hops=MAX_HOPS,
        max_delay=max_delay,
        riskfactor=RISK_PERCENT_PER_YEAR,
        hints=_hint_edges(graph, destination, hints),
        local=local,
    )
    try:
        return (_find(query),)
    except NoRoute as error:
        if max_parts < 2 or error.reason in ("payee-unknown", "funds-insufficient"):
            raise
        whole = error
    parts: list[tuple[Hop, ...]] = []
    try:
        while query.amount:
            part = _next_part(query, max_parts - len(parts))
            if part is None:
                raise whole
            parts.append(part)
            learned.reserve(source, part)
            query = _after(query, part)
    finally:
        for part in parts:
            learned.release(source, part)
    return tuple(parts)


def _next_part(query: _Query, parts_left: int) -> tuple[Hop, ...] | None:
    """A part of what is left: all of it, or the largest half, quarter … that has a route."""
    if parts_left < 1:
        return None
    amount = query.amount
    # Each part must carry its share at least, or the parts run out before the amount does.
    least = -(-amount // parts_left)
    while True:
        amount = max(amount, least)
        # A part may spend its share of the fee.
        fee = None if query.maxfee is None else query.maxfee * amount // query.amount
        route = _search(replace(query, amount=amount, maxfee=fee), fee_only=False)
        if route is None and fee is not None:
            route = _search(replace(query, amount=amount, maxfee=fee), fee_only=True)
        if route is not None:
            return _filled(query, route)
        if amount == least:
            return None
        amount = -(-amount // 2)


def _filled(query: _Query, route: tuple[Hop, ...]) -> tuple[Hop, ...]:
    """The route with as much as its own first channel still holds, if another part must follow.

    Halving would leave crumbs in our channels that many small parts would have to gather.
    """
    amount = route[-1].amount_msat
    if amount >= query.amount or query.local is None:
        return route
    spendable = next(
        min(channel.spendable_msat, channel.htlc_maximum_msat)
        for channel in query.local
        if channel.short_channel_id == route[0].short_channel_id
    )
    # The fee grows with the amount: leave what it would come to in proportion.
    fees = route[0].amount_msat - amount
    more = min(query.amount, spendable - fees * spendable // amount - (1 if fees else 0))
    if more <= amount:
        return route
    fee = None if query.maxfee is None else query.maxfee * more // query.amount
    only = [c for c in query.local if c.short_channel_id == route[0].short_channel_id]
    larger = _search(replace(query, amount=more, maxfee=fee, local=only), fee_only=False)
    return route if larger is None else larger


def _after(query: _Query, part: tuple[Hop, ...]) -> _Query:
    """What is left to find once a part is on its way."""
    maxfee, local = query.maxfee, query.local
    delivered = part[-1].amount_msat
    if maxfee is not None:
        maxfee -= part[0].amount_msat - delivered
    if local is not None:
        local = [
            c._replace(spendable_msat=Msat(c.spendable_msat - part[0].amount_msat))
            if c.short_channel_id == part[0].short_channel_id
            else c
            for c in local
        ]
    return replace(query, amount=query.amount - delivered, maxfee=maxfee, local=local)


def success_ppm(
    graph: Graph, source: bytes, route: Sequence[Hop], learned: Knowledge, now: UnixTime
) -> int:
    """How likely the route is to work, in millionths, our own first channel taken as certain."""
    likely = 1_000_000
    channels = list(directed_channels(source, route))
    for channel, hop in zip(channels[1:], route[1:], strict=True):
        edge = graph.edge(channel)
        if edge is None:
            continue  # a hint: nobody knows
        judged = learned.judge(edge, now)
        if judged is None or hop.amount_msat > judged.upper:
            return 0
        if hop.amount_msat > judged.lower:
            room = judged.upper - judged.lower + 1
            likely = likely * (judged.upper - hop.amount_msat + 1) // room
    return likely
