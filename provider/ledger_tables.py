"""The tables of ledger.py and share_ledger.py, as numbered steps.

A step that was ever released is never edited: a change is a new step at the end.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from provider import share_tables

ledger_schema = Migrations("oda-provider")


@ledger_schema()
def m001_payments(db: Database) -> None:
    db.table("offers").create(
        {
            "payment_hash": bytes,
            "label": str,
            "bolt11": str,
            "amount": int,
            "expires_at": int,
            "terms": bytes,
        },
        pk="payment_hash",
        not_null={"label", "bolt11", "amount", "expires_at", "terms"},
    )
    db.table("deposits").create(
        {"payment_hash": bytes, "session": bytes, "status": str, "received": int},
        pk="payment_hash",
        not_null={"status", "received"},
    )
    db.table("deposits").create_index(["status"])
    db.table("challenges").create(
        {"id": str, "payment_hash": bytes, "params": bytes},
        pk="id",
        not_null={"payment_hash", "params"},
    )
    db.table("challenges").create_index(["payment_hash"])
    db.table("results").create(
        {"challenge": str, "action": str, "status": int, "body": bytes},
        pk=("challenge", "action"),
    )
    db.table("marks").create({"name": str, "value": int}, pk="name")


@ledger_schema()
def m002_sessions(db: Database) -> None:
    db.table("sessions").create(
        {
            "id": bytes,
            "kind": str,
            "terms": bytes,
            "last_active": int,
            "return_invoice": str,
            "return_hash": bytes,
            "return_expires": int,
            "bearer_hash": bytes,
            "phase": str,
            "credited": int,
            "spent": int,
            "held": int,
            "moved": int,
            "refund": int,
            "refund_status": str,
            "refund_attempts": int,
            "refund_next": int,
            "outstanding": bytes,
        },
        pk="id",
    )
    db.table("sessions").create_index(["phase", "refund_status"])


@ledger_schema()
def m003_answers(db: Database) -> None:
    db.table("answers").create(
        {
            "id": str,
            "session": bytes,
            "api": str,
            "body": bytes,
            "seed": int,
            "created": int,
            "prompt_tokens": int,
            "status": str,
            "held": int,
            "spent": int,
            "completion_tokens": int,
            "events": int,
            "period": int,
            "weights": str,
        },
        pk="id",
        not_null={"weights"},
    )
    db.table("answers").create_index(["session"])
    db.execute(
        "CREATE TABLE events (answer TEXT, seq INTEGER, data BLOB NOT NULL, tokens BLOB NOT NULL, "
        "completion_tokens INTEGER NOT NULL, PRIMARY KEY (answer, seq)) WITHOUT ROWID"
    )


@ledger_schema()
def m004_shares(db: Database) -> None:
    share_tables.create(db)
