"""Path finding: BOLT 7's own example, every bound, route hints, and payments in parts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt import route_search
from channels.bolt.graph import DirectedChannel, Graph, GraphChannel, directed, direction_of
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.route import (
    Hop,
    Knowledge,
    LocalChannel,
    NoRoute,
    directed_channels,
    find,
    find_parts,
    success_ppm,
)
from channels.bolt.route_search import Query, weigher
from channels.units import Msat, Sat, UnixTime
from tests.channels.bolt.networks import connect, node, scid, update

NOW = UnixTime(1_700_000_000)
AMOUNT = Msat(4_999_999)


def names(route: tuple[Hop, ...], known: str = "ABCDEFGHPQ") -> str:
    by_id = {node(name): name for name in known}
    return "".join(by_id[hop.node_id] for hop in route)


def bolt7_graph() -> Graph:
    """BOLT 7 "Routing Example": A to D with their fees; each end has its own policy."""
    graph = Graph()
    policies = {
        "A": (100, 1000, 10),
        "B": (200, 2000, 20),
        "C": (300, 3000, 30),
        "D": (400, 4000, 40),
    }
    pairs = (("A", "B"), ("A", "D"), ("B", "C"), ("D", "C"))
    for number, (one, other) in enumerate(pairs, start=1):
        first, second = sorted((node(one), node(other)))
        graph.add_channel(GraphChannel(scid(number), (first, second), Sat(1_000_000)))
        for source, target in ((one, other), (other, one)):
            base, millionths, delta = policies[source]
            graph.update_channel(
                update(
                    source,
                    target,
                    number,
                    base=base,
                    millionths=millionths,
                    delta=delta,
                    maximum=1_000_000_000,
                )
            )
    return graph


def search(graph: Graph, target: str, amount: int = AMOUNT, **more: Any) -> tuple[Hop, ...]:
    more.setdefault("learned", Knowledge())
    return find(graph, node("A"), node(target), Msat(amount), 18 + 42, now=NOW, **more)


def test_the_example_of_bolt_7() -> None:
    graph = bolt7_graph()
    assert search(graph, "B") == (Hop(node("B"), scid(1), AMOUNT, 60),)
    assert search(graph, "C") == (
        Hop(node("B"), scid(1), Msat(5_010_198), 20 + 18 + 42),
        Hop(node("C"), scid(3), AMOUNT, 18 + 42),
    )
    learned = Knowledge()
    learned.avoid_node(node("B"), UnixTime(NOW + 1))
    assert search(graph, "C", learned=learned) == (
        Hop(node("D"), scid(2), Msat(5_020_398), 40 + 18 + 42),
        Hop(node("C"), scid(4), AMOUNT, 18 + 42),
    )


def diamond() -> Graph:
    """A - B - D is cheap, A - C - D is dear."""
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, base=10)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, base=10_000)
    return graph


def test_the_cheaper_way_wins() -> None:
    assert names(search(diamond(), "D")) == "BD"


@pytest.mark.parametrize(
    "changes",
    [
        {"disabled": True, "maximum": 10**10},
        {"minimum": AMOUNT + 1, "maximum": 10**10},
        {"maximum": AMOUNT - 1},
        {"minimum": 2, "maximum": 1},
        {"maximum": 10**10 + 1},
        {"base": 20_000, "maximum": 10**10},
        {"delta": 2016, "maximum": 10**10},
    ],
    ids=["disabled", "minimum", "maximum", "min-above-max", "above-capacity", "fee", "delay"],
)
def test_an_edge_that_cannot_carry_the_payment_is_gone_around(changes: dict[str, int]) -> None:
    graph = diamond()
    graph.update_channel(update("B", "D", 2, **changes))  # type: ignore[arg-type]  # one is a bool
    assert names(search(graph, "D")) == "CD"


def test_each_bound_is_met_exactly() -> None:
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, minimum=1000, maximum=2000)
    for amount in (1000, 2000):
        assert search(graph, "D", amount)[-1].amount_msat == amount
    for amount in (999, 2001):
        with pytest.raises(NoRoute) as raised:
            search(graph, "D", amount)
        assert raised.value.reason == "no-route"
    assert names(search(graph, "D", 0)) == "BD", "0 ignores the minimum: for probing"


def test_the_reasons_for_having_no_route() -> None:
    graph = diamond()
    few = [LocalChannel(node("B"), scid(1), Msat(AMOUNT - 1))]
    for reason, target, more in (
        ("payee-unknown", "Q", {}),
        ("no-route", "A", {}),
        ("route-too-expensive", "D", {"maxfee": Msat(9)}),
        ("route-too-expensive", "D", {"max_delay": 60}),
        ("funds-insufficient", "D", {"local": few}),
        ("no-route", "D", {"max_hops": 1}),
    ):
        with pytest.raises(NoRoute) as raised:
            search(graph, target, **more)
        assert raised.value.reason == reason


def test_maxfee_finds_the_slow_cheap_way() -> None:
    """What is best for fee and risk together costs too much fee: the other is taken."""
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, base=50, delta=6)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, base=1, delta=1500)
    assert names(search(graph, "D")) == "BD"
    assert names(search(graph, "D", maxfee=Msat(49))) == "CD"


def test_our_own_channels_carry_what_they_hold_and_cost_nothing() -> None:
    graph = diamond()
    local = [
        LocalChannel(node("B"), scid(1), Msat(AMOUNT + 9)),
        LocalChannel(node("C"), scid(3), Msat(AMOUNT + 10_000)),
    ]
    assert names(search(graph, "D", local=local)) == "CD", "10 msat of fee do not fit the first"
    fuller = local[1]._replace(node_id=node("B"), short_channel_id=scid(9))
    assert search(graph, "D", local=[*local, fuller])[0].short_channel_id == scid(9)


def test_a_peer_that_gossip_does_not_know_is_reached_over_our_channel() -> None:
    local = [LocalChannel(node("P"), scid(7), AMOUNT)]
    assert search(Graph(), "P", local=local) == (Hop(node("P"), scid(7), AMOUNT, 60),)


def test_route_hints_lead_to_a_payee_without_public_channels() -> None:
    graph = diamond()
    hint = (
        RouteHop(node("D"), scid(8), Msat(100), 1000, 40),
        RouteHop(node("P"), scid(9), Msat(7), 0, 12),
    )
    route = search(graph, "Q", 1_000_000, hints=[hint])
    assert names(route) == "BDPQ"
    over_8 = 1_000_000 + 7
    over_2 = over_8 + 100 + over_8 * 1000 // 1_000_000
    assert [(hop.amount_msat, hop.delay) for hop in route] == [
        (over_2 + 10, 60 + 12 + 40 + 6),
        (over_2, 60 + 12 + 40),
        (over_8, 60 + 12),
        (1_000_000, 60),
    ]


def test_a_hint_cannot_make_a_public_channel_cheaper() -> None:
    hint = (RouteHop(node("B"), scid(2), Msat(0), 0, 0),)
    assert search(diamond(), "D", hints=[hint]) == search(diamond(), "D")


def test_nodes_that_require_unknown_features_are_not_routed_through() -> None:
    graph = diamond()
    graph.avoided.add(node("B"))
    assert names(search(graph, "D")) == "CD"
    assert names(search(graph, "B")) == "B", "they can still be paid"


def test_twenty_hops_and_no_more() -> None:
    graph = Graph()
    line = [f"node {number}" for number in range(22)]
    for number, (one, other) in enumerate(pairwise(line), start=1):
        connect(graph, one, other, number, delta=1)
    learned = Knowledge()

    def along(last: int) -> tuple[Hop, ...]:
        end = node(line[last])
        return find(graph, node(line[0]), end, Msat(1), 9, now=NOW, learned=learned)

    assert len(along(20)) == 20
    with pytest.raises(NoRoute):
        along(21)


def test_likely_channels_are_worth_a_little_more() -> None:
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, capacity=5_000, base=0)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, capacity=10_000_000, base=50)
    route = search(graph, "D")
    assert names(route) == "CD"
    assert success_ppm(graph, node("A"), route, Knowledge(), NOW) > 999_000
    poor = (Hop(node("B"), scid(1), AMOUNT, 66), Hop(node("D"), scid(2), AMOUNT, 60))
    assert success_ppm(graph, node("A"), poor, Knowledge(), NOW) == 0


# --- several parts -----------------------------------------------------------------------------


def parts_of(graph: Graph, amount: int, parts: int, **more: Any) -> tuple[tuple[Hop, ...], ...]:
    more.setdefault("learned", Knowledge())
    return find_parts(
        graph, node("A"), node("D"), Msat(amount), 18, max_parts=parts, now=NOW, **more
    )


def two_ways(each: int) -> Graph:
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, capacity=each // 1000)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, capacity=each // 1000)
    return graph


def test_one_part_where_one_will_do() -> None:
    assert len(parts_of(two_ways(1_000_000), 1_000_000, 10)) == 1


def test_what_no_channel_carries_alone_is_split() -> None:
    routes = parts_of(two_ways(600_000), 1_000_000, 4)
    assert sum(route[-1].amount_msat for route in routes) == 1_000_000
    assert {names(route) for route in routes} == {"BD", "CD"}
    with pytest.raises(NoRoute):
        parts_of(two_ways(600_000), 1_000_000, 1)


def test_own_channels_are_used_to_the_last_msat() -> None:
    local = [
        LocalChannel(node("B"), scid(1), Msat(600_000)),
        LocalChannel(node("C"), scid(3), Msat(400_000)),
    ]
    routes = parts_of(two_ways(10**9), 1_000_000, 2, local=local)
    assert sorted(route[0].amount_msat for route in routes) == [400_000, 600_000]


def test_parts_respect_maxfee_together() -> None:
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, maximum=600_000, millionths=1000)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, maximum=600_000, millionths=1000)
    routes = parts_of(graph, 1_000_000, 4, maxfee=Msat(1000))
    assert sum(route[0].amount_msat for route in routes) <= 1_001_000
    with pytest.raises(NoRoute):
        parts_of(graph, 1_000_000, 4, maxfee=Msat(900))


def test_splitting_leaves_no_reservation_behind() -> None:
    learned = Knowledge()
    for _ in range(2):
        assert len(parts_of(two_ways(600_000), 1_000_000, 4, learned=learned)) == 2
    with pytest.raises(NoRoute):
        parts_of(two_ways(600_000), 2_000_000_000_000, 4, learned=learned)
    assert len(parts_of(two_ways(600_000), 1_000_000, 4, learned=learned)) == 2


@st.composite
def random_graphs(draw: st.DrawFn) -> Graph:
    graph = Graph()
    count = draw(st.integers(1, 14))
    for number in range(1, count + 1):
        one, other = draw(st.permutations("ABCDEF"))[:2]
        connect(
            graph,
            one,
            other,
            number,
            capacity=draw(st.integers(1, 3000)),
            base=draw(st.integers(0, 2000)),
            millionths=draw(st.integers(0, 100_000)),
            delta=draw(st.integers(0, 300)),
            minimum=draw(st.sampled_from([0, 1, 400_000])),
        )
    return graph


@settings(max_examples=150, deadline=None)
@given(random_graphs(), st.integers(1, 4_000_000), st.none() | st.integers(0, 100_000))
def test_whatever_is_found_may_be_sent(graph: Graph, amount: int, maxfee: int | None) -> None:
    """Each hop gets its fee and its delta, and no limit of any channel is broken."""
    limit = None if maxfee is None else Msat(maxfee)
    try:
        routes = parts_of(graph, amount, 5, maxfee=limit)
    except NoRoute:
        return
    assert len(routes) <= 5
    assert sum(route[-1].amount_msat for route in routes) == amount
    assert maxfee is None or sum(r[0].amount_msat for r in routes) - amount <= maxfee
    carried: dict[DirectedChannel, int] = {}
    for route in routes:
        assert route[-1].node_id == node("D") and route[-1].delay == 18
        assert len({hop.node_id for hop in route} | {node("A")}) == len(route) + 1
        for channel, hop in zip(directed_channels(node("A"), route), route, strict=True):
            edge = graph.edge(channel)
            assert edge is not None
            assert edge.htlc_minimum_msat <= hop.amount_msat <= edge.htlc_maximum_msat
            carried[channel] = carried.get(channel, 0) + hop.amount_msat
        for before, hop in pairwise(route):
            key = directed(hop.short_channel_id, direction_of(before.node_id, hop.node_id))
            edge = graph.edge(key)
            assert edge is not None
            millionths = hop.amount_msat * edge.fee_proportional_millionths // 1_000_000
            assert before.amount_msat == hop.amount_msat + edge.fee_base_msat + millionths
            assert before.delay == hop.delay + edge.cltv_expiry_delta
    for channel, total in carried.items():
        edge = graph.edge(channel)
        assert edge is not None and total <= edge.capacity_msat


def price(graph: Graph, route: tuple[Hop, ...]) -> int:
    """What the search adds up for a route, our own first channel being free."""
    query = Query(
        graph=graph,
        source=node("A"),
        destination=node("D"),
        amount=route[-1].amount_msat,
        final_cltv=9,
        now=NOW,
        learned=Knowledge(),
        maxfee=None,
        max_hops=20,
        max_delay=2016,
        riskfactor=10,
        hints={},
        local=None,
    )
    weigh = weigher(query, fee_only=False, minimum_matters=True)
    total = 0
    pairs = zip(directed_channels(node("A"), route), route, strict=True)
    for channel, hop in list(pairs)[1:]:
        edge = graph.edge(channel)
        weighed = None if edge is None else weigh(edge, hop.amount_msat)
        assert weighed is not None
        total += weighed[0]
    return total


@settings(max_examples=150, deadline=None)
@given(random_graphs(), st.integers(1, 1_000_000))
def test_looking_forward_changes_nothing_but_the_time(graph: Graph, amount: int) -> None:
    found: list[int | None] = []
    for patience in (0, 10**9):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(route_search, "PATIENCE", patience)
            try:
                route = find(
                    graph, node("A"), node("D"), Msat(amount), 9, now=NOW, learned=Knowledge()
                )
                found.append(price(graph, route))
            except NoRoute:
                found.append(None)
    assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(random_graphs(), st.integers(1, 1_000_000))
def test_no_route_is_found_where_there_is_none(graph: Graph, amount: int) -> None:
    """Against plain enumeration of all simple paths, with fees counted backward."""

    def reachable(at: bytes, arriving: int, seen: frozenset[bytes]) -> bool:
        for edge in graph.incoming(at).values():
            if not edge.htlc_minimum_msat <= arriving <= edge.htlc_maximum_msat:
                continue
            if edge.source == node("A"):
                return True
            fee = edge.fee_base_msat + arriving * edge.fee_proportional_millionths // 1_000_000
            if edge.source not in seen and reachable(
                edge.source, arriving + fee, seen | {edge.source}
            ):
                return True
        return False

    possible = reachable(node("D"), amount, frozenset({node("D")}))
    try:
        find(graph, node("A"), node("D"), Msat(amount), 9, now=NOW, learned=Knowledge())
    except NoRoute:
        # A cheap branch can hide the only one that fits: that is found when amounts change.
        return
    assert possible
