"""The tables of a sidechain node's SQLite file, as numbered steps.

A step that was ever released is never edited: a change is a new step at the end.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database, Migrations

from channels.database import strict_table

chain_schema = Migrations("oda-sidechain")


@chain_schema()
def m001_chain(db: Database) -> None:
    # Headers have numbers, because parents must be read before their children.
    db.execute(
        """
        CREATE TABLE headers (
            number INTEGER PRIMARY KEY,
            hash BLOB NOT NULL UNIQUE,
            header BLOB NOT NULL
        ) STRICT
        """
    )
    strict_table(db, "meta", {"name": str, "value": bytes}, "name")
    strict_table(db, "bodies", {"hash": bytes, "block": bytes}, "hash")
    strict_table(db, "undos", {"hash": bytes, "undo": bytes}, "hash")
    strict_table(db, "invalid", {"hash": bytes, "reason": str}, "hash")
    strict_table(db, "entries", {"key": bytes, "value": bytes}, "key")


@chain_schema()
def m002_mempool_scores_and_peers(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE transactions (
            number INTEGER PRIMARY KEY,
            txid BLOB NOT NULL UNIQUE,
            tx BLOB NOT NULL
        ) STRICT
        """
    )
    # Scores and sums may have more than 64 bits: they are decimal text.
    scores: dict[str, Any] = {
        "model": bytes,
        "weights_root": bytes,
        "score": str,
        "score_cost": str,
        "unusable": str,
    }
    answer = "score score_cost unusable"
    strict_table(db, "scores", scores, ("model", "weights_root"), optional=answer)
    paired: dict[str, Any] = {
        "model": bytes,
        "shard": int,
        "key": bytes,
        "old_root": bytes,
        "new_root": bytes,
        "samples": int,
        "total": str,
        "squares": str,
    }
    strict_table(db, "paired", paired, ("model", "shard", "key", "old_root", "new_root"))
    peers = {"host": str, "port": int, "last_seen": int, "banned_until": int}
    strict_table(db, "peers", peers, ("host", "port"))
