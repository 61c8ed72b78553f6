"""Forwards and onions in the store: what strangers cause there is bounded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.node import store_forwards
from channels.node.store import Store
from channels.units import BlockHeight, Msat, ShortChannelId, UnixTime

NOW = UnixTime(1_800_000_000)
SCID = ShortChannelId.of(100, 1, 0)
KEPT, EVERY = 8, 4

ENDS = ("local_failed", "failed", "settled", "offered")


def add(store: Store, htlc_id: int, end: str) -> None:
    """A forward that ends so."""
    status = "local_failed" if end == "local_failed" else "offered"
    store.add_forward(
        in_channel_index=1,
        in_htlc_id=htlc_id,
        in_channel=SCID,
        in_msat=Msat(1_001),
        payment_hash=bytes(32),
        shared_secret=bytes(32),
        now=NOW,
        status=status,
        out_channel_index=None if status == "local_failed" else 2,
        out_htlc_id=None if status == "local_failed" else htlc_id,
    )
    row = store.forward_by_incoming(1, htlc_id)
    if row is not None and end in ("failed", "settled"):
        preimage = bytes(32) if end == "settled" else None
        store.finish_forward(row.created_index, end, NOW, preimage=preimage)


@given(ends=st.lists(st.sampled_from(ENDS), max_size=60))
def test_what_came_to_nothing_is_forgotten_and_the_rest_never(ends: list[str]) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as directory,
        Store(Path(directory) / "node.sqlite") as store,
    ):
        patch.setattr(store_forwards, "KEPT_REFUSALS", KEPT)
        patch.setattr(store_forwards, "PRUNE_EVERY", EVERY)
        for htlc_id, end in enumerate(ends):
            add(store, htlc_id, end)
        rows = store.list_forwards()
    assert [ends[row.in_htlc_id] for row in rows] == [row.status for row in rows]
    kept = {row.in_htlc_id for row in rows}
    refused = [i for i, end in enumerate(ends) if end in ("local_failed", "failed")]
    assert set(range(len(ends))) - kept <= set(refused), "only what came to nothing is forgotten"
    assert set(refused[-KEPT:]) <= kept
    assert len(kept & set(refused)) <= KEPT + EVERY


def test_onions_are_forgotten_when_they_expire_or_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_forwards, "KEPT_ONIONS", 10)
    with Store(tmp_path / "node.sqlite") as store:
        for number in range(30):
            expiry = 50 if number % 2 else 1_000
            assert store.note_onion(number.to_bytes(32, "big"), 1, number, expiry)
        assert store.note_onion((0).to_bytes(32, "big"), 1, 0, 1_000), "told of it again"
        assert not store.note_onion((0).to_bytes(32, "big"), 1, 31, 1_000), "it comes again"
        store.forget_onions(BlockHeight(50))
        fresh = [n for n in range(30) if store.note_onion(n.to_bytes(32, "big"), 9, n, 1_000)]
        # Of the even ones, 18 is the last whose place is not among the newest ten.
        assert fresh == [n for n in range(30) if n % 2 or n <= 18]
