from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain import announcements
from sidechain.announcements import LIFETIME, Announcement, Announcements
from sidechain.primitives import NO_SIGNATURE, decode_transaction, signed, stamp_work
from sidechain.reasons import Rejection
from tests.sidechain.world import ALICE, BOB, CAROL, QUICK, Person, finished, h

NOW = 1_800_000_000


def announcement(
    who: Person, *, seq: int = 1, expires: int = NOW + LIFETIME, stamp: int = 4, **changes: Any
) -> Announcement:
    tx = Announcement(
        QUICK.network_id,
        0,
        who.key,
        seq,
        expires,
        f"https://{who.name}.example",
        h("certificate"),
        who.node_id,
        (h("model"),),
        NO_SIGNATURE,
    )
    return finished(replace(QUICK, stamp=stamp), msgspec.structs.replace(tx, **changes), who)


def test_the_newest_of_each_provider_is_kept_for_a_day() -> None:
    book = Announcements(QUICK)
    for who in (ALICE, BOB):
        book.add(announcement(who), NOW)
    newer = announcement(ALICE, seq=2, models=(h("other"),))
    book.add(newer, NOW)
    assert len(book) == 2 and newer in list(book)
    assert [each.key for each in book.serving(h("model"), NOW)] == [BOB.key]
    assert book.serving(h("model"), NOW + LIFETIME) == []
    book.expire(NOW + LIFETIME)
    assert len(book) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seq": 5}, "stale-seq"),
        ({"seq": 4}, "stale-seq"),
        ({"seq": 6, "network_id": 1}, "bad-network"),
        ({"seq": 6, "expires": NOW}, "announcement-expired"),
        ({"seq": 6, "url": "a b"}, "bad-payee-endpoint"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    book = Announcements(QUICK)
    book.add(announcement(ALICE, seq=5), NOW)
    with pytest.raises(Rejection) as caught:
        book.add(announcement(ALICE, **changes), NOW)
    assert caught.value.reason == reason


def test_stamp_and_signature_are_checked() -> None:
    book = Announcements(replace(QUICK, stamp=1 << 40))
    with pytest.raises(Rejection, match="stamp"):
        book.add(announcement(ALICE), NOW)
    forged = signed(announcement(ALICE), BOB.secret)
    with pytest.raises(Rejection, match="signature"):
        Announcements(QUICK).add(forged, NOW)


def test_when_full_the_best_stamps_stay() -> None:
    book = Announcements(QUICK, most=2)
    cheap, dear = announcement(ALICE), announcement(BOB, stamp=1 << 9)
    book.add(cheap, NOW)
    book.add(dear, NOW)
    better = announcement(CAROL, stamp=stamp_work(cheap) + 1)
    book.add(better, NOW)
    assert {each.key for each in book} == {BOB.key, CAROL.key}
    # What is over makes room first, whatever its stamp.
    book = Announcements(QUICK, most=1)
    book.add(announcement(BOB, stamp=1 << 9, expires=NOW + 10), NOW)
    book.add(announcement(ALICE), NOW + 10)
    assert [each.key for each in book] == [ALICE.key]


def test_encoding_is_canonical_and_no_transaction() -> None:
    one = announcement(ALICE)
    assert announcements.decode(one.encode()) == one
    for bad in (one.encode() + b"\0", bytes(5000), b"\x91\x06", b"\xdc\x00\x0b" + one.encode()[1:]):
        with pytest.raises(Rejection) as caught:
            announcements.decode(bad)
        assert caught.value.reason == "tx-decode"
    with pytest.raises(Rejection):
        decode_transaction(one.encode())


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Rejection):
        announcements.decode(data)
