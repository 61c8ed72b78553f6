from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain import pow
from sidechain.headers import HeaderIndex, HeaderRecord, fork_point, genesis
from sidechain.params import MAIN, NETWORKS, REGTEST
from sidechain.primitives import Header, display
from sidechain.reasons import Rejection
from tests.sidechain.world import QUICK, h, solved

EASY = replace(MAIN, pow_limit_bits=0x207FFFFF)
"""Main's retarget at a difficulty that a test can pay."""


def child(
    index: HeaderIndex, parent: HeaderRecord, *, late: int = 600, name: str = ""
) -> HeaderRecord:
    header = Header(1, parent.hash, h(name), parent.header.time + late, index.next_bits(parent), 0)
    return index.accept(solved(header), header.time)


def grow(index: HeaderIndex, parent: HeaderRecord, count: int, name: str = "") -> HeaderRecord:
    for _ in range(count):
        parent = child(index, parent, name=name)
    return parent


def test_networks_have_their_own_genesis() -> None:
    assert len({genesis(params).hash for params in NETWORKS.values()}) == len(NETWORKS)
    # Whoever changes these leaves the network.
    assert {name: display(genesis(params).hash)[:16] for name, params in NETWORKS.items()} == {
        "regtest": "2c955d49dc290340",
        "signet": "546526673b6e2974",
        "mainnet": "7c21def7ab5d329c",
    }


def test_any_ancestor_is_found_on_its_own_branch() -> None:
    index = HeaderIndex(QUICK)
    one = grow(index, index.genesis, 150)
    other = grow(index, one.ancestor(70), 80, "other")
    for tip in (one, other):
        path = [*tip.chain()][::-1]
        for record in path:
            for height in range(record.height + 1):
                assert record.ancestor(height) is path[height]


def test_known_headers_are_not_taken_twice() -> None:
    index = HeaderIndex(QUICK)
    one = child(index, index.genesis)
    assert index.accept(one.header, 0) is one
    assert index.accept(index.genesis.header, 0) is index.genesis
    assert len(index.records) == 2 and index.get(one.hash) is one


def test_work_adds_up_and_the_first_seen_wins() -> None:
    index = HeaderIndex(QUICK)
    first = child(index, index.genesis, name="first")
    second = child(index, index.genesis, name="second")
    assert first.work == second.work == 2
    assert index.best is first
    longer = child(index, second)
    assert index.best is longer and longer.work == 4


def test_retarget_follows_the_clock() -> None:
    index = HeaderIndex(EASY)
    tip = index.genesis
    for _ in range(40):
        tip = child(index, tip, late=60)  # ten times too fast
    harder = pow.work_of(tip.header.bits)
    assert harder > 2
    tip = child(index, tip, late=40 * 600)
    assert pow.work_of(index.next_bits(tip)) < harder


def test_time_must_pass_the_median() -> None:
    index = HeaderIndex(QUICK)
    tip = index.genesis
    for _ in range(11):
        tip = child(index, tip)
    median = tip.median_time()
    assert median == sorted(each.header.time for each in list(tip.chain())[:11])[5]
    # Back in time, but after the median: allowed (BIP 113).
    earlier = child(index, tip, late=median + 1 - tip.header.time)
    assert earlier.header.time < tip.header.time
    with pytest.raises(Rejection) as caught:
        child(index, tip, late=median - tip.header.time)
    assert caught.value.reason == "time-too-old"


def test_the_future_is_refused_for_now_only() -> None:
    index = HeaderIndex(QUICK)
    first = index.genesis
    header = solved(Header(1, first.hash, h(""), first.header.time + 600, QUICK.pow_limit_bits, 0))
    early = header.time - QUICK.future_limit - 1
    with pytest.raises(Rejection) as caught:
        index.accept(header, early)
    assert caught.value.reason == "time-too-new"
    assert index.accept(header, early + 1).height == 1


def test_invalid_blocks_take_their_descendants_with_them() -> None:
    index = HeaderIndex(QUICK)
    good = grow(index, index.genesis, 2, "good")
    bad = child(index, index.genesis, name="bad")
    worse = grow(index, bad, 4, "bad")
    assert index.best is worse
    marked = index.invalidate(bad, "bad-score")
    assert len(marked) == 5 and index.best is good
    assert (bad.invalid, worse.invalid) == ("bad-score", "bad-prevblk")
    assert index.invalidate(bad, "no-gain") == []
    with pytest.raises(Rejection) as caught:
        index.accept(worse.header, 0)
    assert caught.value.reason == "duplicate-invalid"
    with pytest.raises(Rejection) as caught:
        child(index, worse)
    assert caught.value.reason == "bad-prevblk"


def test_locator_has_the_last_ten_and_then_ever_fewer() -> None:
    index = HeaderIndex(QUICK)
    tip = grow(index, index.genesis, 100)
    heights = [index.records[each].height for each in index.locator(tip)]
    assert heights == [100, 99, 98, 97, 96, 95, 94, 93, 92, 91, 89, 85, 77, 61, 29, 0]
    assert index.locator(index.genesis) == [index.genesis.hash]


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_fork_point(common: int, one: int, other: int) -> None:
    index = HeaderIndex(QUICK)
    fork = grow(index, index.genesis, common)
    a, b = grow(index, fork, one, "a"), grow(index, fork, other, "b")
    assert fork_point(a, b) is fork is fork_point(b, a)
    assert fork_point(a, a) is a


def test_a_flood_of_easy_headers_is_bounded_by_the_clock() -> None:
    """On a network that retargets, headers in quick succession get dear: exponentially so."""
    index = HeaderIndex(EASY)
    tip = index.genesis
    costs = []
    for _ in range(300):
        header = Header(1, tip.hash, h(""), tip.median_time() + 1, index.next_bits(tip), 0)
        costs.append(pow.work_of(header.bits))
        if costs[-1] > 200:
            break
        tip = index.accept(solved(header), EASY.genesis_time)
    assert costs[-1] > 200 and len(costs) < 300


def test_records_say_where_they_are() -> None:
    index = HeaderIndex(REGTEST)
    assert repr(index.genesis).startswith("<0 ")
    header = msgspec.structs.replace(index.genesis.header, prev=h("x"))
    with pytest.raises(Rejection):
        index.accept(header, 0)
