"""What the tables of the store have in common."""

from __future__ import annotations

import sqlite3


class Tables:
    """Statements on the store's one connection; they join the transaction of the turn."""

    _db: sqlite3.Connection


def counted(db: sqlite3.Connection, name: str) -> int:
    """The next value (1, 2, …) of a counter whose values are never given out twice."""
    row = db.execute(
        "INSERT INTO counters VALUES (?, 1)"
        " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        (name,),
    ).fetchone()
    value: int = row[0]
    return value
