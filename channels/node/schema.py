"""The tables of a node's SQLite file, as numbered steps.

A step that was ever released is never edited: a change is a new step at the end.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database, Migrations

from channels.database import strict_table

node_schema = Migrations("oda-node")


@node_schema()
def m001_peers_and_channels(db: Database) -> None:
    strict_table(db, "meta", {"name": str, "value": bytes}, "name")
    strict_table(db, "counters", {"name": str, "value": int}, "name")
    strict_table(db, "peers", {"node_id": bytes, "host": str, "port": int}, "node_id")
    columns = {"channel_index": int, "peer_id": bytes, "closed": int, "state": bytes}
    strict_table(db, "channels", columns, "channel_index")


@node_schema()
def m002_invoices(db: Database) -> None:
    # AUTOINCREMENT, so that created_index stays unique for ever: callers keep it as a cursor.
    db.execute(
        """
        CREATE TABLE invoices (
            created_index INTEGER PRIMARY KEY AUTOINCREMENT,
            label TEXT NOT NULL UNIQUE,
            payment_hash BLOB NOT NULL UNIQUE,
            preimage BLOB NOT NULL,
            bolt11 TEXT NOT NULL,
            description TEXT NOT NULL,
            amount_msat INTEGER,
            status TEXT NOT NULL CHECK (status IN ('unpaid', 'paid', 'expired')),
            expires_at INTEGER NOT NULL,
            updated_index INTEGER,
            pay_index INTEGER UNIQUE,
            amount_received_msat INTEGER,
            paid_at INTEGER,
            CHECK ((status = 'paid') = (pay_index IS NOT NULL))
        ) STRICT
        """
    )
    db.execute("CREATE INDEX invoices_to_expire ON invoices (expires_at) WHERE status = 'unpaid'")


@node_schema()
def m003_payments(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE payments (
            created_index INTEGER PRIMARY KEY AUTOINCREMENT,
            payment_hash BLOB NOT NULL UNIQUE,
            bolt11 TEXT NOT NULL,
            destination BLOB NOT NULL,
            amount_msat INTEGER NOT NULL,
            amount_sent_msat INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('pending', 'complete', 'failed')),
            preimage BLOB,
            created_at INTEGER NOT NULL,
            completed_at INTEGER,
            failure_code INTEGER,
            failure_message TEXT,
            CHECK ((status = 'complete') = (preimage IS NOT NULL))
        ) STRICT
        """
    )
    db.execute(
        """
        CREATE TABLE attempts (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            payment_hash BLOB NOT NULL REFERENCES payments (payment_hash),
            groupid INTEGER NOT NULL,
            partid INTEGER NOT NULL,
            amount_msat INTEGER NOT NULL,
            amount_sent_msat INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('pending', 'complete', 'failed')),
            session_key BLOB NOT NULL,
            hops BLOB NOT NULL,
            channel_index INTEGER NOT NULL,
            htlc_id INTEGER,
            created_at INTEGER NOT NULL,
            completed_at INTEGER,
            preimage BLOB,
            erroronion BLOB,
            failure_code INTEGER,
            failure_message TEXT,
            UNIQUE (payment_hash, groupid, partid),
            UNIQUE (channel_index, htlc_id)
        ) STRICT
        """
    )
    db.execute("CREATE INDEX attempts_pending ON attempts (status) WHERE status = 'pending'")


@node_schema()
def m004_coins(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE utxos (
            txid BLOB NOT NULL,
            vout INTEGER NOT NULL,
            value INTEGER NOT NULL,
            script BLOB NOT NULL,
            keyindex INTEGER NOT NULL,
            change INTEGER NOT NULL,
            coinbase INTEGER NOT NULL,
            height INTEGER,
            spent_by BLOB,
            spent_height INTEGER,
            reserved_until INTEGER,
            PRIMARY KEY (txid, vout),
            CHECK (spent_height IS NULL OR spent_by IS NOT NULL)
        ) STRICT
        """
    )
    columns: dict[str, Any] = {"txid": bytes, "raw": bytes, "broadcast": int, "height": int}
    strict_table(db, "transactions", columns, "txid", optional="height")
    strict_table(db, "blocks", {"height": int, "hash": bytes}, "height")


@node_schema()
def m005_closes(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE past_htlcs (
            channel_index INTEGER NOT NULL,
            ours INTEGER NOT NULL,
            id INTEGER NOT NULL,
            payment_hash BLOB NOT NULL,
            cltv_expiry INTEGER NOT NULL,
            PRIMARY KEY (channel_index, ours, id)
        ) STRICT, WITHOUT ROWID
        """
    )
    outpoint: dict[str, Any] = {"channel_index": int, "txid": bytes, "vout": int}
    key = ("channel_index", "txid", "vout")
    strict_table(db, "spends", {**outpoint, "raw": bytes, "height": int}, key)
    strict_table(db, "claims", {**outpoint, "claim_txid": bytes, "feerate": int}, key)


@node_schema()
def m006_gossip(db: Database) -> None:
    columns: dict[str, Any] = {
        "short_channel_id": int,
        "announcement": bytes,
        "capacity_sat": int,
        "txid": bytes,
        "vout": int,
        "update_0": bytes,
        "update_1": bytes,
        "spent_height": int,
    }
    optional = "txid vout update_0 update_1 spent_height"
    strict_table(db, "gossip_channels", columns, "short_channel_id", optional=optional)
    strict_table(db, "gossip_nodes", {"node_id": bytes, "announcement": bytes}, "node_id")


@node_schema()
def m007_routes(db: Database) -> None:
    # An attempt's hops were the payee's id alone; now each is an id, a short_channel_id, an amount
    # and a delay (attempts.encode_route). What an old one lacks is only of use to statistics.
    db.execute("UPDATE attempts SET hops = hops || zeroblob(20) WHERE length(hops) = 33")
    db.execute(
        """
        CREATE TABLE forwards (
            created_index INTEGER PRIMARY KEY AUTOINCREMENT,
            updated_index INTEGER,
            in_channel_index INTEGER NOT NULL,
            in_htlc_id INTEGER NOT NULL,
            in_channel INTEGER NOT NULL,
            in_msat INTEGER NOT NULL,
            payment_hash BLOB NOT NULL,
            shared_secret BLOB NOT NULL,
            out_channel INTEGER,
            out_channel_index INTEGER,
            out_htlc_id INTEGER,
            out_msat INTEGER,
            status TEXT NOT NULL CHECK (status IN ('offered', 'settled', 'failed', 'local_failed')),
            failcode INTEGER,
            preimage BLOB,
            received_time INTEGER NOT NULL,
            resolved_time INTEGER,
            UNIQUE (in_channel_index, in_htlc_id),
            UNIQUE (out_channel_index, out_htlc_id),
            CHECK ((status = 'settled') = (preimage IS NOT NULL)),
            CHECK (status = 'local_failed' OR out_channel_index IS NOT NULL)
        ) STRICT
        """
    )
    onion: dict[str, Any] = {
        "shared_secret": bytes,
        "channel_index": int,
        "htlc_id": int,
        "cltv_expiry": int,
    }
    strict_table(db, "onions", onion, "shared_secret")
    db.execute("CREATE INDEX onions_to_forget ON onions (cltv_expiry)")
    policy: dict[str, Any] = {
        "channel_index": int,
        "fee_base_msat": int,
        "fee_proportional_millionths": int,
        "cltv_expiry_delta": int,
        "htlc_minimum_msat": int,
        "htlc_maximum_msat": int,
    }
    strict_table(db, "policies", policy, "channel_index")


@node_schema()
def m008_hold_invoices(db: Database) -> None:
    db.execute(
        "ALTER TABLE invoices ADD COLUMN hold TEXT CHECK (hold IN ('open', 'accepted', 'canceled'))"
    )
    db.execute("ALTER TABLE invoices ADD COLUMN min_final_cltv_expiry INTEGER NOT NULL DEFAULT 18")
    db.execute("CREATE INDEX invoices_that_hold ON invoices (hold) WHERE hold IS NOT NULL")


@node_schema()
def m009_refused_forwards(db: Database) -> None:
    db.execute(
        "CREATE INDEX forwards_refused ON forwards (created_index)"
        " WHERE status IN ('failed', 'local_failed')"
    )
