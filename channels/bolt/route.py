"""Finding a route: what it costs, how long it may lock money up, and how likely it is to work.

The search goes backward from the payee, because what a node must receive follows from what it
must pass on (BOLT 7, "Recommendations for Routing"). Three things are added up for every hop, all
in msat: the fee, what it costs to have the amount locked for the hop's cltv_expiry_delta, and what
the failed attempts that are to be expected at this hop are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from channels.bolt.graph import Edge, Graph, directed, direction_of
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.knowledge import Hop, Knowledge, directed_channels
from channels.bolt.route_search import UNBOUNDED, LocalChannel, Query, Search
from channels.errors import OdaError
from channels.units import Msat, UnixTime

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


class NoRoute(OdaError):
    """No route now. `reason` is "no-route", "route-too-expensive" (maxfee or the delay forbids
    what is there), "payee-unknown" or "funds-insufficient" (our own channels hold less)."""


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
    query = Query(
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


def _find(query: Query) -> tuple[Hop, ...]:
    route = Search(query, fee_only=False).run()
    if route is None and query.maxfee is not None:
        # The best way to somewhere may cost too much where a worse one does not.
        route = Search(query, fee_only=True).run()
    if route is None:
        raise _why(query)
    return route


def _why(query: Query) -> NoRoute:
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
    if Search(replace(query, maxfee=None, max_delay=UNBOUNDED), fee_only=True).run() is not None:
        return NoRoute(
            "route-too-expensive", f"Every route to {payee} costs or delays more than it may."
        )
    return NoRoute("no-route", f"No route to {payee} can carry {query.amount} msat now.")


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
                htlc_maximum_msat=UNBOUNDED,
                capacity_msat=UNBOUNDED,
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
    query = Query(
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


def _next_part(query: Query, parts_left: int) -> tuple[Hop, ...] | None:
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
        route = Search(replace(query, amount=amount, maxfee=fee), fee_only=False).run()
        if route is None and fee is not None:
            route = Search(replace(query, amount=amount, maxfee=fee), fee_only=True).run()
        if route is not None:
            return _filled(query, route)
        if amount == least:
            return None
        amount = -(-amount // 2)


def _filled(query: Query, route: tuple[Hop, ...]) -> tuple[Hop, ...]:
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
    larger = Search(replace(query, amount=more, maxfee=fee, local=only), fee_only=False).run()
    return route if larger is None else larger


def _after(query: Query, part: tuple[Hop, ...]) -> Query:
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
