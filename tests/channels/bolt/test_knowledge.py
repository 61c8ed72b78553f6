"""What failures teach: each of BOLT 4's codes moves the next attempt where it should."""

from __future__ import annotations

import pytest

from channels.bolt.gossip_signatures import signed
from channels.bolt.graph import DirectedChannel, Graph, directed, direction_of
from channels.bolt.knowledge import (
    A_WHILE,
    BRIEFLY,
    FOR_LONG,
    FORGET_SECONDS,
    MAX_KNOWN,
    Hop,
    Knowledge,
)
from channels.bolt.messages import ChannelUpdate, encode
from channels.bolt.onion_failures import Failure, FailureCode
from channels.bolt.route import find
from channels.units import Msat, UnixTime
from tests.channels.bolt.networks import connect, node, scid, secret, update

NOW = UnixTime(1_700_000_000)
AMOUNT = Msat(1_000_000)
A, B, D = node("A"), node("B"), node("D")
B_TO_D = directed(scid(2), direction_of(B, D))
ROUTE = (Hop(B, scid(1), Msat(AMOUNT + 10), 66), Hop(D, scid(2), AMOUNT, 60))


@pytest.fixture
def graph() -> Graph:
    graph = Graph()
    connect(graph, "A", "B", 1)
    connect(graph, "B", "D", 2, base=10)
    connect(graph, "A", "C", 3)
    connect(graph, "C", "D", 4, base=10_000)
    return graph


def way(graph: Graph, learned: Knowledge, now: int = NOW, amount: int = AMOUNT) -> str:
    route = find(graph, A, D, Msat(amount), 60, now=UnixTime(now), learned=learned)
    return "B" if route[0].node_id == B else "C"


def failure(code: int, **fields: int | bytes) -> Failure:
    return Failure.of(FailureCode(code), **fields)


@pytest.mark.parametrize(
    ("failed", "seconds"),
    [
        (failure(FailureCode.TEMPORARY_NODE_FAILURE), BRIEFLY),
        (failure(FailureCode.PERMANENT_NODE_FAILURE), FOR_LONG),
        (failure(FailureCode.REQUIRED_NODE_FEATURE_MISSING), FOR_LONG),
        (failure(FailureCode.PERMANENT_CHANNEL_FAILURE), FOR_LONG),
        (failure(FailureCode.REQUIRED_CHANNEL_FEATURE_MISSING), FOR_LONG),
        (failure(FailureCode.UNKNOWN_NEXT_PEER), FOR_LONG),
        (failure(FailureCode.INVALID_ONION_HMAC, sha256_of_onion=bytes(32)), A_WHILE),
        (failure(FailureCode.EXPIRY_TOO_FAR), A_WHILE),
        (failure(FailureCode.EXPIRY_TOO_SOON, channel_update=b""), A_WHILE),
        (failure(FailureCode.CHANNEL_DISABLED, disabled_flags=0, channel_update=b""), A_WHILE),
        (failure(FailureCode.FEE_INSUFFICIENT, htlc_msat=1, channel_update=b""), A_WHILE),
        (failure(FailureCode.FEE_INSUFFICIENT, htlc_msat=1, channel_update=b"junk"), A_WHILE),
        (Failure(0x1234), A_WHILE),
        (Failure(0), A_WHILE),
    ],
)
def test_a_failure_is_gone_around_for_its_time(graph: Graph, failed: Failure, seconds: int) -> None:
    learned = Knowledge()
    assert way(graph, learned) == "B"
    learned.failed(A, ROUTE, 0, failed, NOW)
    assert way(graph, learned, NOW + seconds - 1) == "C"
    assert way(graph, learned, NOW + seconds) == "B"


def test_an_unreadable_error_blames_the_channels_that_are_not_ours(graph: Graph) -> None:
    learned = Knowledge()
    learned.failed(A, ROUTE, None, None, NOW)
    assert way(graph, learned) == "C"
    assert not learned.avoids_channel(directed(scid(1), direction_of(A, B)), NOW)


def test_the_payees_own_failure_blames_nobody(graph: Graph) -> None:
    learned = Knowledge()
    code = FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS
    learned.failed(A, ROUTE, 1, failure(code, htlc_msat=1, height=1), NOW)
    assert way(graph, learned) == "B"


def test_liquidity_that_was_not_there_comes_back_with_time(graph: Graph) -> None:
    learned = Knowledge()
    code = FailureCode.TEMPORARY_CHANNEL_FAILURE
    learned.failed(A, ROUTE, 0, failure(code, channel_update=b""), NOW)
    assert way(graph, learned, NOW) == "C"
    assert way(graph, learned, NOW, AMOUNT // 3) == "B", "a smaller amount may still fit"
    assert way(graph, learned, NOW + FORGET_SECONDS) == "B"


def test_liquidity_in_flight_is_not_counted_twice(graph: Graph) -> None:
    """Three parts were under way and one failed: the channel holds less than the three."""
    learned = Knowledge()
    edge = graph.edge(B_TO_D)
    assert edge is not None
    for _ in range(3):
        learned.reserve(A, ROUTE)
    code = FailureCode.TEMPORARY_CHANNEL_FAILURE
    learned.failed(A, ROUTE, 0, failure(code, channel_update=b""), NOW)
    judged = learned.judge(edge, NOW)
    assert judged is not None and judged.upper == 3 * AMOUNT - 1 - 2 * AMOUNT
    learned.release(A, ROUTE)
    learned.succeeded(A, ROUTE, NOW)
    judged = learned.judge(edge, NOW)
    assert judged is not None and judged.upper == 2 * AMOUNT - 1


def test_what_passed_is_there_and_what_was_paid_is_gone(graph: Graph) -> None:
    learned = Knowledge()
    edge = graph.edge(B_TO_D)
    back = graph.edge(DirectedChannel(B_TO_D ^ 1))
    assert edge is not None and back is not None
    code = FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS
    learned.failed(A, ROUTE, 1, failure(code, htlc_msat=1, height=1), NOW)
    judged = learned.judge(edge, NOW)
    assert judged is not None and judged.lower == AMOUNT
    judged = learned.judge(edge, UnixTime(NOW + FORGET_SECONDS // 2))
    assert judged is not None and judged.lower == AMOUNT // 2
    learned.succeeded(A, ROUTE, NOW)
    there, returned = learned.judge(edge, NOW), learned.judge(back, NOW)
    assert there is not None and there.lower == 0
    assert returned is not None and returned.lower == AMOUNT


def answer(new: ChannelUpdate, *, by: str = "B", bare: bool = False) -> Failure:
    data = encode(signed(new, secret(by)))
    code = FailureCode.FEE_INSUFFICIENT
    return failure(code, htlc_msat=1, channel_update=data[2:] if bare else data)


@pytest.mark.parametrize("bare", [False, True])
def test_fee_insufficient_with_an_update_is_obeyed_but_not_for_ever(
    graph: Graph, bare: bool
) -> None:
    learned = Knowledge()
    new = update("B", "D", 2, base=500, delta=9, maximum=10**10)
    learned.failed(A, ROUTE, 0, answer(new, bare=bare), NOW)
    route = find(graph, A, D, AMOUNT, 60, now=NOW, learned=learned)
    assert (route[0].amount_msat, route[0].delay) == (AMOUNT + 500, 69)
    edge = graph.edge(B_TO_D)
    assert edge is not None and edge.fee_base_msat == 10, "gossip is not changed by it"
    learned.failed(A, ROUTE, 0, answer(new), NOW)
    assert way(graph, learned) == "C", "what it asked for was paid, and it asks again"


@pytest.mark.parametrize(
    "forged",
    [
        answer(update("B", "D", 2, base=500, maximum=10**10), by="C"),
        answer(update("B", "D", 4, base=500, maximum=10**10)),
        answer(update("D", "B", 2, base=500, maximum=10**10)),
        answer(update("B", "D", 2, base=500, maximum=10**10, disabled=True)),
    ],
    ids=["other-signer", "other-channel", "other-direction", "disabled"],
)
def test_an_update_that_is_not_the_nodes_own_is_not_believed(graph: Graph, forged: Failure) -> None:
    learned = Knowledge()
    learned.failed(A, ROUTE, 0, forged, NOW)
    assert way(graph, learned) == "C"


def test_memory_is_bounded() -> None:
    learned = Knowledge()
    for number in range(MAX_KNOWN + 10):
        learned.avoid_channel(DirectedChannel(number), NOW)
        learned.avoid_node(number.to_bytes(33, "big"), NOW)
    assert len(learned) == 2 * MAX_KNOWN


@pytest.mark.parametrize("code", [0x1007, 0x2002, 0x400A])
def test_what_may_have_passed_is_forgiven(graph: Graph, code: int) -> None:
    learned = Knowledge()
    before = way(graph, learned)
    learned.reserve(A, ROUTE)
    learned.failed(A, ROUTE, 0, Failure(code), NOW)
    assert way(graph, learned) != before
    learned.forgive(A, ROUTE, 0)
    assert way(graph, learned) == before


def test_forgiving_ourselves_is_about_our_own_channel() -> None:
    learned = Knowledge()
    first, second = (directed(scid(1), direction_of(A, B)), B_TO_D)
    for channel in (first, second):
        learned.avoid_channel(channel, UnixTime(NOW + 60))
    learned.forgive(A, ROUTE, -1)
    assert not learned.avoids_channel(first, NOW)
    assert learned.avoids_channel(second, NOW)
