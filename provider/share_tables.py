"""The tables of share_ledger.py, as the ledger's migration makes them."""

from __future__ import annotations

import sqlite_utils


def create(db: sqlite_utils.Database) -> None:
    db.execute(
        "CREATE TABLE periods (session BLOB, number INTEGER, height INTEGER NOT NULL, "
        "block BLOB NOT NULL, model BLOB, weights_root BLOB, trainer BLOB, last_producer BLOB, "
        "accepting_producer BLOB, trainer_ppm INTEGER NOT NULL, producers_ppm INTEGER NOT NULL, "
        "is_open INTEGER NOT NULL, PRIMARY KEY (session, number)) WITHOUT ROWID"
    )
    # What is spent in a period is the sum over its answers, so that no event costs a write here.
    db.execute("CREATE INDEX periods_open ON periods (session) WHERE is_open")
    db.execute(
        "CREATE TABLE batches (number INTEGER PRIMARY KEY, payee BLOB NOT NULL, "
        "root BLOB NOT NULL, amount INTEGER NOT NULL, status TEXT NOT NULL, invoice TEXT, "
        # An invoice is paid for one batch: a payee can't have one payment counted twice.
        "payment_hash BLOB UNIQUE, preimage BLOB, attempts INTEGER NOT NULL, "
        "next INTEGER NOT NULL)"
    )
    db.execute("CREATE INDEX batches_status ON batches (status)")
    db.execute(
        "CREATE TABLE leaves (batch INTEGER, position INTEGER, session BLOB NOT NULL, "
        "amount INTEGER NOT NULL, PRIMARY KEY (batch, position)) WITHOUT ROWID"
    )
    db.execute("CREATE INDEX leaves_session ON leaves (session)")
    db.execute(
        "CREATE TABLE statements (session BLOB PRIMARY KEY, statement BLOB NOT NULL, "
        "signature TEXT NOT NULL)"
    )
