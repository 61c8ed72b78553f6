"""A SQLite file, as everything here keeps what it must not forget.

The file is its owner's alone, its schema is numbered steps, and what was committed survives a kill
and a power cut. One process holds it (`hold`); the client's alone has several.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

from sqlite_utils import Database, Migrations

from channels.errors import UserError

BUSY_SECONDS: Final = 10
"""How long a file that has several writers is waited for."""


class OneWriter:
    """Opens (creating or upgrading) the file at `path` and holds it alone until `close()`.

    Nothing is durable before `commit()`. Raises UserError: "store-in-use" when another process
    has it, "store-too-new" when a later version wrote it.
    """

    def __init__(self, path: Path, schema: Migrations) -> None:
        self._lock = _hold(path)
        try:
            self._db = connect(path, schema)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def commit(self) -> None:
        """Make the turn durable: one fsync, or nothing when nothing was written."""
        if self._db.in_transaction:
            self._db.commit()

    def close(self) -> None:
        """Let go of the file; a turn that was not committed is lost, as in a crash."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _hold(path: Path) -> int:
    """Hold an advisory lock beside the file; the system drops it when the process ends.

    Returns the descriptor to close. Raises UserError("store-in-use").
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            "store-in-use",
            f"Another process has {path.parent}: stop it, or choose another directory.",
        ) from None
    return descriptor


def connect(path: Path, schema: Migrations) -> sqlite3.Connection:
    """The file, made or brought up to date. Raises UserError("store-too-new")."""
    # SQLite gives its -wal and -shm files the mode of the main file, so that is set first.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, isolation_level="IMMEDIATE", timeout=BUSY_SECONDS)
    try:
        # A commit in WAL with FULL is one fsync of the log, and a commit that returned survives
        # a power cut (sqlite.org/wal.html).
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            db.execute(f"PRAGMA {pragma}")
        # macOS's fsync leaves the data in the drive's cache.
        db.execute("PRAGMA fullfsync = ON")
        _upgrade(db, schema, path)
    except BaseException:
        db.close()
        raise
    return db


def steps(schema: Migrations) -> list[str]:
    """The names of all steps of a schema, oldest first."""
    with closing(sqlite3.connect(":memory:")) as empty:
        return [migration.name for migration in schema.pending(Database(empty))]


def strict_table(
    db: Database, name: str, columns: dict[str, Any], pk: str | tuple[str, ...], optional: str = ""
) -> None:
    """Make a strict table whose columns are all NOT NULL but for those named in `optional`."""
    may_be_null = set(optional.split())
    db.table(name).create(columns, pk=pk, not_null=set(columns) - may_be_null, strict=True)


def _upgrade(db: sqlite3.Connection, schema: Migrations, path: Path) -> None:
    """Apply the steps that are missing, in one transaction: another process may be at it too."""
    wrapped = Database(db)
    known = steps(schema)
    if {migration.name for migration in schema.applied(wrapped)} == set(known):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        _apply(wrapped, schema, known, path)
    except BaseException:
        db.rollback()
        raise
    db.commit()


def _apply(wrapped: Database, schema: Migrations, known: list[str], path: Path) -> None:
    if any(migration.name not in known for migration in schema.applied(wrapped)):
        raise UserError(
            "store-too-new",
            f"{path} was written by a newer version of ODA: use that version, or a newer one.",
        )
    schema.apply(wrapped)
