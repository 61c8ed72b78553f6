"""What the user must not forget: one SQLite file, for every process of the user.

Write-ahead log, synchronous=FULL: what `save` was given is on disk when it returns, and only then
may anything be paid that rests on it. A session belongs to one process at a time (`lock`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from channels import database
from channels.errors import UserError
from channels.http.payer import NOTHING, ClientSession, DepositStatus, Phase
from channels.receipts import NO_EVENTS, ReadAnswer
from channels.units import Msat, UnixTime
from client.budget import Cap
from client.reputation import Record
from client.tables import client_schema


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One question and how far its answer was read; `last_event_id` is where it goes on.

    counted: whether `served` of the session holds all of it. Where an answer was left, the
    provider may have sent more than was read.
    read_as: the provider's name for it, and what its receipt is held against: the tokens that were
    charged, the digest of the events (channels.receipts), and whether it was read to its end.
    """

    id: str
    authorization: str = field(repr=False)  # holds a secret
    body: bytes = field(repr=False)
    last_event_id: str = ""
    counted: bool = False
    read_as: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    digest: bytes = NO_EVENTS
    complete: bool = False


@dataclass(frozen=True, slots=True)
class SessionRow:
    """number: our own name for it; label: that of its return invoice on our node."""

    number: int
    provider: str
    value: ClientSession
    label: str
    created: UnixTime
    updated: UnixTime


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = database.connect(path, client_schema)
        self._db.row_factory = sqlite3.Row

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing; within another one, a part of that."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """For the file's other tables (check_table.py). Writes belong into a transaction."""
        return self._db.execute(sql, values)

    # Sessions ------------------------------------------------------------------------------------

    def add(self, provider: str, value: ClientSession, label: str, now: UnixTime) -> SessionRow:
        with self.transaction():
            cursor = self._db.execute(
                "INSERT INTO sessions (provider, model, phase, state, label, created, updated, "
                "refund_msat) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (provider, value.model, value.phase, _encode(value), label, now, now),
            )
        assert cursor.lastrowid is not None  # a row was inserted
        return SessionRow(cursor.lastrowid, provider, value, label, now, now)

    def save(
        self,
        number: int,
        value: ClientSession,
        now: UnixTime,
        *,
        answer: AnswerRow | None = None,
        caps: Sequence[Cap] = (),
    ) -> None:
        """Store a session, and how far its answer got, in one transaction. A session that is closed
        gets a check of its shares (check_table.py).

        Raises UserError with a cap's reason, and stores nothing, where a deposit that is new here
        would pass that cap.
        """
        with self.transaction():
            before = [self.spent_since(cap.since) for cap in caps]
            self._save_deposits(number, value, now)
            for cap, spent in zip(caps, before, strict=True):
                if (after := self.spent_since(cap.since)) > cap.most and after > spent:
                    raise UserError(
                        cap.reason,
                        f"Another deposit would pass your cap of {cap.most // 1000} sat "
                        f"{cap.sentence}.",
                    )
            self._db.execute(
                "UPDATE sessions SET phase = ?, state = ?, updated = ?, refund_msat = ? "
                "WHERE number = ?",
                (value.phase, _encode(value), now, value.refund or 0, number),
            )
            if value.phase is Phase.CLOSED and value.provenances and value.id:
                # Its challenges named payees: whether they are paid is looked at later.
                self._db.execute(
                    "INSERT INTO checks (session, state, closed, next, attempts, reason, sentence, "
                    "owing, blamed, told) VALUES (?, 'unchecked', ?, ?, 0, '', '', X'7B7D', '', 1) "
                    "ON CONFLICT DO NOTHING",
                    (number, now, now),
                )
            if answer is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO answers (session, id, authorization, body, "
                    "last_event_id, counted, read_as, input_tokens, output_tokens, digest, "
                    "complete) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (number, *astuple(answer)),
                )

    def _save_deposits(self, number: int, value: ClientSession, now: UnixTime) -> None:
        for deposit in value.deposits:
            self._db.execute(
                "INSERT INTO deposits (payment_hash, session, amount_msat, status, created) "
                "VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (payment_hash) DO UPDATE SET status = excluded.status",
                (deposit.payable.payment_hash, number, deposit.amount, deposit.status, now),
            )

    def session(self, number: int) -> SessionRow:
        """Raises UserError `not-found`."""
        row = self._db.execute("SELECT * FROM sessions WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise UserError("not-found", f"There is no session {number}; see: oda sessions")
        return _read(row)

    def sessions(self, provider: str | None = None, live: bool = False) -> list[SessionRow]:
        """Newest first; live: not closed yet."""
        rows = self._db.execute(
            "SELECT * FROM sessions WHERE (?1 IS NULL OR provider = ?1) "
            "AND (NOT ?2 OR phase != ?3) ORDER BY number DESC",
            (provider, live, Phase.CLOSED),
        )
        return [_read(row) for row in rows]

    def forget(self, number: int) -> None:
        """Drop a session in which nothing was ever paid."""
        with self.transaction():
            self._db.execute(
                "DELETE FROM sessions WHERE number = ? AND NOT EXISTS "
                "(SELECT 1 FROM deposits WHERE session = sessions.number)",
                (number,),
            )

    def uncounted(self, number: int, besides: str = "") -> bool:
        """Whether an answer of this session, besides the one of that id, was left before its
        end."""
        row = self._db.execute(
            "SELECT 1 FROM answers WHERE session = ? AND NOT counted AND id != ?",
            (number, besides),
        ).fetchone()
        return row is not None

    def settle_answers(self, number: int, besides: str) -> None:
        """The provider's figure for the session was taken over: the earlier answers count."""
        with self.transaction():
            self._db.execute(
                "UPDATE answers SET counted = 1 WHERE session = ? AND id != ?", (number, besides)
            )

    def read_answers(self, number: int) -> dict[str, ReadAnswer]:
        """What came in a session, by the provider's names for its answers."""
        rows = self._db.execute(
            "SELECT read_as, input_tokens, output_tokens, digest, complete, length(body) AS bytes "
            "FROM answers WHERE session = ? AND read_as != ''",
            (number,),
        )
        return {
            row["read_as"]: ReadAnswer(
                row["input_tokens"],
                row["output_tokens"],
                row["digest"],
                bool(row["complete"]),
                row["bytes"],
            )
            for row in rows
        }

    def unheard(self, number: int) -> tuple[int, ...]:
        """The bytes of questions of a session to which nothing had come when we were killed."""
        rows = self._db.execute(
            "SELECT length(body) AS bytes FROM answers WHERE session = ? AND read_as = ''",
            (number,),
        )
        return tuple(row["bytes"] for row in rows)

    # Reputations ---------------------------------------------------------------------------------

    def reputation(self, node_id: str) -> Record:
        row = self._db.execute(
            "SELECT answers, faults, latency_ms FROM reputations WHERE node_id = ?", (node_id,)
        ).fetchone()
        if row is None:
            return Record()
        faults = msgspec.json.decode(row["faults"], type=dict[str, int])
        return Record(row["answers"], faults, row["latency_ms"])

    def remember(self, node_id: str, change: Callable[[Record], Record]) -> Record:
        """Change what is remembered of a provider, whatever other processes remember of it."""
        with self.transaction():
            record = change(self.reputation(node_id))
            self._db.execute(
                "INSERT OR REPLACE INTO reputations (node_id, answers, faults, latency_ms) "
                "VALUES (?, ?, ?, ?)",
                (node_id, record.answers, msgspec.json.encode(record.faults), record.latency_ms),
            )
        return record

    # Receipts ------------------------------------------------------------------------------------

    def save_receipt(self, number: int, receipt: bytes) -> None:
        """The newest receipt of a session takes the place of the one before."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO receipts (session, receipt) VALUES (?, ?)",
                (number, receipt),
            )

    def receipt(self, number: int) -> bytes | None:
        row = self._db.execute(
            "SELECT receipt FROM receipts WHERE session = ?", (number,)
        ).fetchone()
        return None if row is None else bytes(row["receipt"])

    @contextmanager
    def lock(self, number: int) -> Iterator[bool]:
        """Whether the session is this process's while the block runs; the system lets go of it
        even after a kill -9."""
        handle = os.open(
            self.path.with_name(f"session-{number}.lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(handle)

    # Figures and providers -----------------------------------------------------------------------

    def spent_since(self, time: UnixTime) -> Msat:
        """Paid since then, or possibly so, less what was refunded since."""
        paid, refunded = self._db.execute(
            "SELECT (SELECT COALESCE(SUM(amount_msat), 0) FROM deposits "
            "WHERE created >= ?1 AND status != ?2), "
            "(SELECT COALESCE(SUM(refund_msat), 0) FROM sessions WHERE updated >= ?1)",
            (time, DepositStatus.FAILED),
        ).fetchone()
        return Msat(max(NOTHING, paid - refunded))

    def pin(self, provider: str, node_id: str, now: UnixTime) -> None:
        """Remember which node a provider is, at first sight. Raises UserError
        `provider-changed` where it is another one now."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO providers (url, node_id, first_seen) VALUES (?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (provider, node_id, now),
            )
        first = self.pinned(provider)
        if first != node_id:
            raise UserError(
                "provider-changed",
                f"{provider} used to be the node {first} and says now that it is {node_id}: "
                "ask its owner before you pay.",
            )

    def pinned(self, provider: str) -> str | None:
        row = self._db.execute(
            "SELECT node_id FROM providers WHERE url = ?", (provider,)
        ).fetchone()
        return None if row is None else str(row[0])


def _encode(value: ClientSession) -> bytes:
    return msgspec.json.encode(value)


def _read(row: sqlite3.Row) -> SessionRow:
    value = msgspec.json.decode(row["state"], type=ClientSession)
    return SessionRow(
        row["number"], row["provider"], value, row["label"], row["created"], row["updated"]
    )
