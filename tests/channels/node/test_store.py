"""The store: round trips, the lock, upgrades, and the rules that keep money from being lost."""

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from channels.database import steps
from channels.errors import LocalProtocolError, UserError
from channels.node.schema import node_schema
from channels.node.store import BlockRow, ChannelRow, InvoiceRow, PeerRow, Store, UtxoRow
from channels.node.store_coins import BLOCKS_KEPT
from channels.units import BlockHeight, Msat, Sat, UnixTime

HASH, OTHER, PREIMAGE = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
NOW = UnixTime(1_700_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "node.sqlite") as store:
        yield store


def reopened(store: Store, path: Path) -> Store:
    store.commit()
    store.close()
    return Store(path / "node.sqlite")


def test_everything_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    channel = ChannelRow(store.next_channel_index(), b"\x02" * 33, False, b"state\x00")
    store.set_meta("m", b"\x00v")
    store.save_peer(b"\x02" * 33, "127.0.0.1", 9735)
    store.save_channel(ChannelRow(channel.index, channel.peer_id, False, b"older"))
    store.save_channel(channel)
    with reopened(store, tmp_path) as again:
        assert again.meta("m") == b"\x00v"
        assert again.meta("n") is None
        assert again.load_peers() == [PeerRow(b"\x02" * 33, "127.0.0.1", 9735)]
        assert again.load_channels() == [channel]
        assert (channel.index, again.next_channel_index()) == (0, 1)
        again.forget_peer(b"\x02" * 33)
        assert again.load_peers() == []


def test_a_turn_that_was_not_committed_is_lost_whole(store: Store, tmp_path: Path) -> None:
    store.set_meta("a", b"1")
    store.commit()
    store.set_meta("a", b"2")
    add_invoice(store)
    store.close()
    with Store(tmp_path / "node.sqlite") as again:
        assert again.meta("a") == b"1"
        assert again.list_invoices() == []


def test_settings_of_the_file(store: Store, tmp_path: Path) -> None:
    db = store._db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    store.set_meta("a", b"1")
    store.commit()
    for name in ("node.sqlite", "node.sqlite-wal", "node.sqlite-shm", "node.sqlite.lock"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_two_nodes_on_one_directory(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Store(tmp_path / "node.sqlite")
    assert refused.value.reason == "store-in-use"
    store.close()
    Store(tmp_path / "node.sqlite").close()


STEPS = steps(node_schema)


def schema(db: sqlite3.Connection) -> list[Any]:
    rows = db.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return sorted(rows.fetchall())


@pytest.mark.parametrize("step", STEPS)
def test_upgrade_from_every_older_version(step: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "older" / "node.sqlite"
    path.parent.mkdir()
    db = sqlite3.connect(path)
    node_schema.apply(Database(db), stop_before=step)
    older = schema(db)
    if step != STEPS[0]:
        db.execute("INSERT INTO meta VALUES ('kept', x'07')")
        db.commit()
    db.close()
    with Store(path) as upgraded:
        assert len(older) < len(schema(upgraded._db))
        assert schema(upgraded._db) == schema(store._db)
        assert upgraded.meta("kept") == (None if step == STEPS[0] else b"\x07")


def test_a_newer_version_is_left_alone(store: Store, tmp_path: Path) -> None:
    store._db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('oda-node', 'm999_later', '')"
    )
    store.commit()
    store.close()
    for _ in range(2):  # the refusal lets go of the lock
        with pytest.raises(UserError) as refused:
            Store(tmp_path / "node.sqlite")
        assert refused.value.reason == "store-too-new"


def add_invoice(store: Store, label: str = "a", payment_hash: bytes = HASH) -> InvoiceRow:
    return store.add_invoice(
        label=label,
        payment_hash=payment_hash,
        preimage=PREIMAGE,
        bolt11="lnbcrt1",
        description="d",
        amount_msat=Msat(5),
        expires_at=UnixTime(NOW + 10),
    )


def test_an_invoice_is_settled_once(store: Store) -> None:
    row = add_invoice(store)
    assert (row.status, row.created_index, row.updated_index) == ("unpaid", 1, None)
    assert PREIMAGE.hex() not in repr(row)
    assert store.settle_invoice(HASH, Msat(6), NOW) == 1
    assert store.settle_invoice(HASH, Msat(7), UnixTime(NOW + 1)) == 1
    paid = store.invoice_by_label("a")
    assert paid is not None
    assert paid == store.invoice_by_hash(HASH)
    assert (paid.status, paid.amount_received_msat, paid.paid_at) == ("paid", 6, NOW)
    assert (paid.pay_index, paid.updated_index) == (1, 1)
    with pytest.raises(LocalProtocolError, match="no invoice"):
        store.settle_invoice(OTHER, Msat(1), NOW)


def test_paid_invoices_in_order_and_indexes_never_again(store: Store) -> None:
    for number in range(3):
        add_invoice(store, str(number), bytes([number]) * 32)
    for number in (2, 0):
        store.settle_invoice(bytes([number]) * 32, Msat(1), NOW)
    labels = []
    at = 0
    while (row := store.first_paid_after(at)) is not None:
        assert row.pay_index is not None
        labels.append(row.label)
        at = row.pay_index
    assert labels == ["2", "0"]
    store.delete_invoice("0")
    store.delete_invoice("2")
    assert [row.label for row in store.list_invoices()] == ["1"]
    assert add_invoice(store, "0", bytes(32)).created_index == 4
    assert store.settle_invoice(bytes(32), Msat(1), NOW) == 3


def test_expiry(store: Store) -> None:
    add_invoice(store)
    add_invoice(store, "b", OTHER)
    store.settle_invoice(OTHER, Msat(5), NOW)
    assert store.next_invoice_expiry() == NOW + 10
    assert store.expire_invoices(UnixTime(NOW + 9)) == 0
    assert store.expire_invoices(UnixTime(NOW + 10)) == 1
    assert store.next_invoice_expiry() is None
    assert [row.status for row in store.list_invoices()] == ["expired", "paid"]
    # An HTLC accepted before the expiry may be settled after it.
    assert store.settle_invoice(HASH, Msat(5), NOW) == 2


@pytest.mark.parametrize("clash", [("a", OTHER), ("b", HASH)])
def test_labels_and_hashes_are_unique(store: Store, clash: tuple[str, bytes]) -> None:
    add_invoice(store)
    with pytest.raises(sqlite3.IntegrityError):
        add_invoice(store, *clash)


def begin(store: Store) -> None:
    store.begin_payment(
        payment_hash=HASH, bolt11="lnbcrt1", destination=b"\x02" * 33, amount_msat=Msat(5), now=NOW
    )


def attempt(store: Store, htlc_id: int | None, sent: int, partid: int = 0) -> int:
    return store.add_attempt(
        payment_hash=HASH,
        amount_msat=Msat(5),
        amount_sent_msat=Msat(sent),
        session_key=b"s" * 32,
        hops=b"hops",
        channel_index=1,
        htlc_id=htlc_id,
        now=NOW,
        partid=partid,
    ).id


def test_a_payment_that_fails_then_succeeds(store: Store) -> None:
    begin(store)
    first = attempt(store, 0, 6)
    with pytest.raises(LocalProtocolError) as pending:
        store.fail_payment(HASH, 205, "no route", NOW)
    assert pending.value.reason == "attempt-pending"
    store.finish_attempt(first, "failed", now=NOW, erroronion=b"e", failure_code=4103)
    store.fail_payment(HASH, 205, "no route", NOW)
    failed = store.payment(HASH)
    assert failed is not None
    assert (failed.status, failed.failure_code, failed.completed_at) == ("failed", 205, NOW)

    begin(store)
    second = attempt(store, None, 7)
    store.set_attempt_htlc(second, 1)
    found = store.attempt_by_htlc(1, 1)
    assert found is not None
    assert (found.id, found.groupid, found.status) == (second, 2, "pending")
    store.finish_attempt(second, "complete", now=NOW, preimage=PREIMAGE)
    store.complete_payment(HASH, PREIMAGE, NOW)
    store.complete_payment(HASH, OTHER, NOW)
    (row,) = store.list_payments()
    assert (row.status, row.preimage, row.amount_sent_msat) == ("complete", PREIMAGE, 7)
    assert (row.failure_code, row.failure_message) == (None, None)
    assert [a.status for a in store.attempts(HASH)] == ["failed", "complete"]
    assert store.attempts(status="pending") == []
    assert store.list_payments("pending") == []


def test_a_complete_payment_never_fails(store: Store) -> None:
    begin(store)
    store.complete_payment(HASH, PREIMAGE, NOW)
    with pytest.raises(LocalProtocolError) as refused:
        store.fail_payment(HASH, 205, "late", NOW)
    assert refused.value.reason == "payment-complete"
    with pytest.raises(LocalProtocolError) as again:
        begin(store)
    assert again.value.reason == "payment-exists"
    with pytest.raises(LocalProtocolError, match="no payment"):
        store.complete_payment(OTHER, PREIMAGE, NOW)


def test_a_pending_payment_is_not_begun_again(store: Store) -> None:
    begin(store)
    with pytest.raises(LocalProtocolError) as refused:
        begin(store)
    assert refused.value.reason == "payment-exists"


def test_an_attempt_that_ended_stays_as_it_is(store: Store) -> None:
    begin(store)
    made = attempt(store, 0, 5)
    store.finish_attempt(made, "complete", now=NOW, preimage=PREIMAGE)
    store.finish_attempt(made, "failed", now=NOW)
    assert [a.status for a in store.attempts()] == ["complete"]


def coin(height: int | None = 100, vout: int = 0, txid: bytes = HASH) -> UtxoRow:
    at = None if height is None else BlockHeight(height)
    return UtxoRow(txid, vout, Sat(1000 + vout), b"\x00\x14", 3, False, height=at)


def test_coins(store: Store) -> None:
    store.add_utxo(coin(None))
    store.add_utxo(coin(100))
    store.add_utxo(coin(None))
    assert store.list_utxos() == [coin(100)]
    store.reserve_utxo(HASH, 0, NOW)
    reserved = store.utxo(HASH, 0)
    assert reserved is not None
    assert reserved.reserved_until == NOW
    assert store.spend_utxo(HASH, 0, OTHER, None)
    assert not store.spend_utxo(HASH, 1, OTHER, None)
    store.add_utxo(coin(None, txid=OTHER))
    assert [u.txid for u in store.list_utxos()] == [OTHER]
    assert len(store.list_utxos(spent=True)) == 2
    assert store.unsent_spends() == [OTHER]
    store.unspend_utxos(OTHER)
    assert store.unsent_spends() == []
    store.reserve_utxo(HASH, 0, None)
    assert store.list_utxos(spent=True) == [coin(100)]


def test_a_block_undone(store: Store) -> None:
    store.add_transaction(OTHER, b"raw")
    store.transaction_confirmed(OTHER, BlockHeight(101))
    assert store.transactions_to_broadcast() == []
    store.add_utxo(coin(101))
    store.add_utxo(coin(101, txid=OTHER))
    store.add_utxo(coin(100, vout=1))
    store.spend_utxo(HASH, 1, OTHER, BlockHeight(101))
    store.undo_coins(BlockHeight(101))
    assert store.transactions_to_broadcast() == [b"raw"]
    assert store.list_utxos() == [coin(None, txid=OTHER)]
    spent = store.utxo(HASH, 1)
    assert spent is not None
    assert (spent.height, spent.spent_by, spent.spent_height) == (100, OTHER, None)


def test_transactions_are_sent_again_until_told_otherwise(store: Store) -> None:
    store.add_transaction(HASH, b"kept", broadcast=False)
    store.add_transaction(OTHER, b"sent")
    store.add_transaction(OTHER, b"sent", broadcast=False)
    assert store.transactions_to_broadcast() == [b"sent"]
    assert (store.transaction(HASH), store.transaction(PREIMAGE)) == (b"kept", None)
    store.stop_broadcast(OTHER)
    assert store.transactions_to_broadcast() == []


def test_blocks(store: Store) -> None:
    assert store.tip() is None
    for height in range(BLOCKS_KEPT + 5):
        store.add_block(BlockRow(BlockHeight(height), bytes([height % 256]) * 32))
    tip = BLOCKS_KEPT + 4
    assert store.tip() == BlockRow(BlockHeight(tip), bytes([tip % 256]) * 32)
    assert store.block_hash(BlockHeight(4)) is None
    assert store.block_hash(BlockHeight(5)) == b"\x05" * 32
    store.remove_block(BlockHeight(tip - 1))
    last = store.tip()
    assert last is not None
    assert last.height == tip - 2


@given(
    label=st.text(max_size=50).filter(lambda text: text.isprintable()),
    description=st.text(st.characters(codec="utf-8"), max_size=100),
    amount=st.none() | st.integers(1, 2_100_000_000_000_000_000),
    payment_hash=st.binary(min_size=32, max_size=32),
)
@settings(max_examples=50)
def test_invoice_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    label: str,
    description: str,
    amount: int | None,
    payment_hash: bytes,
) -> None:
    with Store(tmp_path_factory.mktemp("store") / "node.sqlite") as store:
        row = store.add_invoice(
            label=label,
            payment_hash=payment_hash,
            preimage=PREIMAGE,
            bolt11="x",
            description=description,
            amount_msat=None if amount is None else Msat(amount),
            expires_at=NOW,
        )
        assert (row.label, row.payment_hash, row.description) == (label, payment_hash, description)
        assert row.amount_msat == amount
        assert store.list_invoices() == [row]
