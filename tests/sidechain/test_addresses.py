from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from sidechain.addresses import (
    FIRST_RETRY,
    FORGET_AFTER,
    LAST_RETRY,
    LAST_RETRY_KEPT,
    MAX_BOOK,
    MAX_PER_GROUP,
    MAX_PER_SOURCE,
    STEADY,
    AddressBook,
    eviction,
    group,
    is_dialable,
)
from sidechain.conversation import Conversation
from sidechain.protocol import MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "public", "loopback"),
    [
        ("8.8.8.8", True, False),
        ("2001:4860:4860::8888", True, False),
        ("127.0.0.1", False, True),
        ("127.9.0.1", False, True),
        ("::1", False, True),
        ("10.0.0.1", False, False),
        ("192.168.1.1", False, False),
        ("169.254.169.254", False, False),  # where clouds keep their secrets
        ("fe80::1%eth0", False, False),
        ("224.0.0.1", False, False),
        ("0.0.0.0", False, False),  # noqa: S104 # not bound, refused
        ("localhost", False, False),
        ("node.example", False, False),
        ("127.1", False, False),
        ("0x7f000001", False, False),
        ("2001:4860:4860:0::8888", False, False),  # not the one spelling
        ("", False, False),
    ],
)
def test_which_addresses_of_strangers_are_dialled(host: str, public: bool, loopback: bool) -> None:
    assert is_dialable(host, loopback=False) is public
    assert is_dialable(host, loopback=True) is loopback


def test_groups_are_networks() -> None:
    assert group("8.8.1.1") == group("8.8.200.3") != group("8.9.1.1")
    assert group("2001:4860:1::1") == group("2001:4860:2::2") != group("2001:4861::1")


def public(i: int, network: int = 8) -> str:
    return f"{network}.{8 + i // 250}.{i % 250}.1"


def test_one_source_has_a_small_part_of_the_book() -> None:
    book, chance = AddressBook(loopback=False), Random(1)
    book.add(("9.9.9.9", 1), "1.1.1.1", chance)
    for i in range(1000):
        book.add((public(i), 1), "2.2.2.2", chance)
        book.add((public(i, 12), 1), "2.2.3.3", chance)  # the same network
    assert len(book) == 1 + MAX_PER_SOURCE
    assert ("9.9.9.9", 1) in book


def test_the_book_is_bounded_and_keeps_what_was_reached() -> None:
    book, chance = AddressBook(loopback=False), Random(1)
    kept, reached = ("9.9.9.9", 1), ("9.9.9.8", 1)
    book.keep(kept)
    book.add(reached, "1.1.1.1", chance)
    book.reached(reached, 5)
    for source in range(100):
        for i in range(MAX_PER_SOURCE):
            book.add((public(source * 100 + i, 20), 1), f"30.{source}.0.1", chance)
    assert len(book) == MAX_BOOK
    assert kept in book and reached in book
    assert [(each.host, each.time) for each in book.sample(chance)] == [("9.9.9.8", 5)]
    for i in range(300):
        book.restore((public(i, 40), 1), 7)
    assert len(book.sample(chance)) <= MAX_ADDRESSES


def test_few_of_one_network_are_dialled_at_a_time() -> None:
    book, chance = AddressBook(loopback=True), Random(1)
    for i in range(1, 60):
        book.add((f"127.7.0.{i}", 1), "127.7.0.1", chance)
    book.add(("127.8.0.1", 1), "127.9.0.1", chance)
    connected: set[tuple[str, int]] = set()
    while (place := book.pick(connected, 0.0, chance)) is not None:
        connected.add(place)
    groups = Counter(group(host) for host, _ in connected)
    assert groups == {group("127.7.0.1"): MAX_PER_GROUP, group("127.8.0.1"): 1}


def test_the_new_and_the_known_are_dialled_alike() -> None:
    """However many addresses an attacker tells, every second node that is dialled was reached
    before."""
    book, chance = AddressBook(loopback=False), Random(1)
    book.restore(("9.9.9.9", 1), 5)
    for i in range(50):
        book.add((public(i), 1), "2.2.2.2", chance)
    picked = Counter(book.pick(set(), 0.0, chance) for _ in range(200))
    assert 70 < picked["9.9.9.9", 1] < 130


def test_failures_are_waited_out() -> None:
    book, chance = AddressBook(loopback=False), Random(1)
    place, kept = ("8.8.8.8", 1), ("9.9.9.9", 1)
    book.restore(place, 5)
    book.keep(kept)
    assert book.due(set(), 0.0) == [kept] and book.due({kept}, 0.0) == []
    now, delays = 0.0, []
    for _ in range(14):
        book.failed(place, now, chance)
        book.failed(kept, now, chance)
        before = now
        while book.pick(set(), now, chance) is None:
            now += 0.25
        delays.append(now - before)
        assert book.due(set(), before + 1.5 * LAST_RETRY_KEPT) == [kept]
    for number, delay in enumerate(delays):
        usual = min(LAST_RETRY, FIRST_RETRY * 2**number)
        assert 0.5 * usual <= delay <= 1.5 * usual + 0.25
    assert len(set(delays)) > 10  # not in step with anybody
    book.failed(place, now, chance, lasted=STEADY)
    assert book.pick(set(), now + 1.5 * FIRST_RETRY, chance) == place


def test_what_was_never_reached_is_forgotten() -> None:
    book, chance = AddressBook(loopback=False), Random(1)
    place = ("8.8.8.8", 1)
    book.add(place, "1.1.1.1", chance)
    for _ in range(FORGET_AFTER):
        assert place in book
        book.failed(place, 0.0, chance)
    assert place not in book
    book.failed(place, 0.0, chance)  # nothing more to say about it


def test_shunned_places_do_not_come_back() -> None:
    book, chance = AddressBook(loopback=False), Random(1)
    place = ("8.8.8.8", 1)
    book.keep(place)
    book.shun(place)
    book.add(place, "1.1.1.1", chance)
    assert place not in book and not book.is_kept(place)
    book.keep(place)  # unless the operator says so
    assert book.due(set(), 0.0) == [place]


# --- inbound slots -------------------------------------------------------------------------------


def inbound(host: str, since: float) -> Conversation:
    return Conversation(host, inbound=True, now=since)


def test_the_youngest_of_the_biggest_crowd_goes() -> None:
    old = [inbound(f"{i}.0.0.1", float(i)) for i in range(10)]
    crowd = [inbound(f"99.0.{i}.1", 100.0 + i) for i in range(10)]
    assert eviction([*crowd, *old]) is crowd[-1]
    assert eviction([]) is None


def test_merit_is_not_evicted() -> None:
    crowd = [inbound(f"99.0.{i}.1", 100.0 + i) for i in range(12)]
    useful, quick, other = crowd[-1], crowd[-2], crowd[-3]
    useful.useful = 500.0
    quick.latency = 0.001
    assert eviction(crowd) is other


def test_a_newcomer_never_pushes_out_the_oldest_half() -> None:
    peers = [inbound("99.0.0.1", float(i)) for i in range(20)]
    for _ in range(10):
        going = eviction(peers)
        assert going is not None and going.since >= 10
        peers.remove(going)
