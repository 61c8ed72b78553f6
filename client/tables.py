"""The tables of client/store.py and client/check_table.py, as numbered steps.

A step that was ever released is never edited: a change is a new step at the end.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from channels.database import strict_table

client_schema = Migrations("oda-client")


@client_schema()
def m001_sessions(db: Database) -> None:
    sessions = {"number": int, "provider": str, "model": str, "phase": str, "state": bytes}
    sessions |= {"label": str, "created": int, "updated": int, "refund_msat": int}
    strict_table(db, "sessions", sessions, "number")
    deposits = {"payment_hash": bytes, "session": int, "amount_msat": int, "status": str}
    strict_table(db, "deposits", deposits | {"created": int}, "payment_hash")
    db.table("deposits").create_index(["created"])
    strict_table(db, "providers", {"url": str, "node_id": str, "first_seen": int}, "url")


@client_schema()
def m002_answers_and_receipts(db: Database) -> None:
    answers = {"id": str, "session": int, "authorization": str, "body": bytes}
    answers |= {"last_event_id": str, "counted": int, "read_as": str, "input_tokens": int}
    answers |= {"output_tokens": int, "digest": bytes, "complete": int}
    strict_table(db, "answers", answers, "id")
    db.table("answers").create_index(["session"])
    strict_table(db, "receipts", {"session": int, "receipt": bytes}, "session")


@client_schema()
def m003_reputations(db: Database) -> None:
    reputations = {"node_id": str, "answers": int, "faults": bytes, "latency_ms": int}
    strict_table(db, "reputations", reputations, "node_id", optional="latency_ms")


@client_schema()
def m004_checks(db: Database) -> None:
    checks = {"session": int, "state": str, "closed": int, "next": int, "attempts": int}
    checks |= {"reason": str, "sentence": str, "owing": bytes, "blamed": str, "told": int}
    strict_table(db, "checks", checks, "session")
    db.table("checks").create_index(["next"])
    # What the chain said when a challenge named it: later nobody may prove it any more.
    owed = {"number": int, "block": bytes, "model": bytes, "weights_root": bytes}
    owed |= {"trainer": bytes, "last_producer": bytes, "accepting_producer": bytes}
    strict_table(
        db, "beneficiaries", owed, "number", optional="trainer last_producer accepting_producer"
    )
    db.table("beneficiaries").create_index(["block", "model", "weights_root"], unique=True)
    strict_table(db, "registrations", {"key": bytes, "node_id": bytes}, ("key", "node_id"))
