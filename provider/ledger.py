"""What a provider must not forget: one SQLite file, one writer.

Write-ahead log, synchronous=FULL. A write is durable after `commit()`, and nothing that rests on
it may leave the machine before; `committed()` is the same for coroutines, and one fsync serves
all that wait for it in the same turn of the loop. Reads see uncommitted writes, so there is one
truth and no cache.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from channels.database import OneWriter
from channels.http.method import Issued
from channels.http.scheme import Challenge
from channels.http.session import Terms
from channels.units import Msat, Sat, UnixTime
from provider.ledger_tables import ledger_schema
from provider.sessions import NOTHING, Deposit, DepositStatus, Session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offer:
    """An invoice of ours as it was made; its `Deposit` is what became of it."""

    payment_hash: bytes
    label: str
    bolt11: str
    amount: Sat
    expires_at: UnixTime
    terms: Terms


class AnswerStatus(StrEnum):
    RUNNING = "running"
    """Not at its end yet. It goes on from its last event when its credential is repeated."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Answer:
    """One paid request and how far its answer got.

    id: what a repeated request is known by.
    api: "chat" or "text"; body: the request as it came; seed: the client's or drawn once.
    held: what its input took from the session and no event has spent yet.
    weights: Engine.weights_id of those that it began with.
    """

    id: str
    session: bytes
    api: str
    body: bytes
    seed: int
    created: UnixTime
    prompt_tokens: int
    status: AnswerStatus = AnswerStatus.RUNNING
    held: Msat = NOTHING
    spent: Msat = NOTHING
    completion_tokens: int = 0
    events: int = 0
    period: int | None = None
    """The shares.Period that counts what is spent; None for a provider on no sidechain."""
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One delivered event: its data, and the tokens that it paid for."""

    seq: int
    data: bytes
    tokens: tuple[int, ...]
    completion_tokens: int
    """Of the answer up to and including this event."""


@dataclass(frozen=True, slots=True)
class Result:
    """The response that a repeated credential gets again."""

    status: int
    body: bytes


class Ledger(OneWriter):
    """Raises UserError("store-in-use") where another process has the file, and
    "store-too-new"."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ledger_schema)
        self._db.row_factory = sqlite3.Row
        self._turn: asyncio.Future[None] | None = None
        self._failure: sqlite3.Error | None = None

    # Transactions --------------------------------------------------------------------------------

    def commit(self) -> None:
        """Raises sqlite3.Error where anything of this turn could not be stored: then all of it
        is gone, and nobody may be told otherwise."""
        if self._failure is not None:
            raise self._failure
        try:
            if self._db.in_transaction:
                self._db.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            raise

    async def committed(self) -> None:
        """Durable when it returns. One transaction per turn of the loop."""
        if self._turn is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.create_future()
            loop.call_soon(self._end_turn, self._turn)
        # Shielded: one that is cancelled must not cancel the others of its turn.
        await asyncio.shield(self._turn)

    def _end_turn(self, turn: asyncio.Future[None]) -> None:
        self._turn = None
        try:
            self.commit()
        except sqlite3.Error as error:
            turn.set_exception(error)
            turn.exception()  # seen here too, where nobody waits any more
        else:
            turn.set_result(None)
        finally:
            self._failure = None

    def write(self, sql: str, values: tuple[Any, ...] | dict[str, Any]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._db.execute(sql, values)
        except sqlite3.IntegrityError:
            raise  # of this statement alone: the transaction goes on
        except sqlite3.Error as error:
            # A full disk may have rolled back the whole turn: no part of it may be committed,
            # and whoever waits for its end must hear of it.
            self._roll_back()
            if self._turn is not None:
                self._failure = error
            raise

    def read(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return self._db.execute(sql, values).fetchall()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return row

    # Offers, deposits and challenges -------------------------------------------------------------

    def add_offer(self, offer: Offer, deposit: Deposit) -> None:
        self.write(_insert("offers", Offer), _row(offer))
        self.save_deposit(deposit)

    def offer(self, payment_hash: bytes) -> Offer | None:
        return _read(Offer, self._one("SELECT * FROM offers WHERE payment_hash = ?", payment_hash))

    def deposit(self, payment_hash: bytes) -> Deposit | None:
        row = self._one("SELECT * FROM deposits WHERE payment_hash = ?", payment_hash)
        return _read(Deposit, row)

    def save_deposit(self, deposit: Deposit) -> None:
        self.write(_insert("deposits", Deposit), _row(deposit))

    def expired_offers(self, now: UnixTime) -> list[Offer]:
        """Those still offered though nobody may pay them any more."""
        rows = self._db.execute(
            "SELECT offers.* FROM offers JOIN deposits USING (payment_hash) "
            "WHERE status = 'offered' AND expires_at <= ?",
            (now,),
        )
        return [_must_read(Offer, row) for row in rows]

    def add_challenge(self, challenge: Challenge, payment_hash: bytes) -> None:
        self.write(
            "INSERT INTO challenges (id, payment_hash, params) VALUES (?, ?, ?) "
            "ON CONFLICT DO NOTHING",
            (challenge.id, payment_hash, msgspec.json.encode(challenge.params())),
        )

    def issued(self, challenge_id: str) -> Issued | None:
        """A challenge as it was stored, and whether it was paid."""
        row = self._one(
            "SELECT params, payment_hash, amount, expires_at, session, status "
            "FROM challenges JOIN offers USING (payment_hash) JOIN deposits USING (payment_hash) "
            "WHERE challenges.id = ?",
            challenge_id,
        )
        if row is None:
            return None
        # A deposit that opened a session belongs to it, yet was made for anybody.
        session = None if row["session"] == row["payment_hash"] else row["session"]
        return Issued(
            Challenge.from_params(msgspec.json.decode(row["params"])),
            row["payment_hash"],
            Sat(row["amount"]),
            UnixTime(row["expires_at"]),
            session,
            row["status"] in (DepositStatus.SETTLED, DepositStatus.CREDITED),
        )

    def forget(self, before: UnixTime) -> int:
        """Drop offers that expired unpaid before then, with their challenges. What was ever paid
        is kept."""
        dead = (
            "SELECT payment_hash FROM offers JOIN deposits USING (payment_hash) "
            "WHERE expires_at < ? AND status = 'deleted'"
        )
        self.write(f"DELETE FROM challenges WHERE payment_hash IN ({dead})", (before,))  # noqa: S608  # no part of it comes from outside
        self.write(f"DELETE FROM offers WHERE payment_hash IN ({dead})", (before,))  # noqa: S608  # as above
        self.write(
            "DELETE FROM deposits WHERE status = 'deleted' "
            "AND payment_hash NOT IN (SELECT payment_hash FROM offers)",
            (),
        )
        return int(self._db.execute("SELECT changes()").fetchone()[0])

    # Sessions ------------------------------------------------------------------------------------

    def session(self, session_id: bytes) -> Session | None:
        return _read(Session, self._one("SELECT * FROM sessions WHERE id = ?", session_id))

    def save_session(self, session: Session) -> None:
        self.write(_insert("sessions", Session), _row(session))

    def restless_sessions(self) -> list[Session]:
        """Those that may have to be closed, refunded or recovered."""
        rows = self._db.execute(
            "SELECT * FROM sessions WHERE (kind = 'session' AND phase != 'closed') "
            "OR refund_status IN ('pending', 'unknown', 'failed') OR held != 0"
        )
        return [_must_read(Session, row) for row in rows]

    # Answers -------------------------------------------------------------------------------------

    def answer(self, answer_id: str) -> Answer | None:
        return _read(Answer, self._one("SELECT * FROM answers WHERE id = ?", answer_id))

    def answers(self, session: bytes) -> list[Answer]:
        """Of a session, oldest first."""
        rows = self.read("SELECT * FROM answers WHERE session = ? ORDER BY created, id", (session,))
        return [_must_read(Answer, row) for row in rows]

    def unpaid_answers(self, session: bytes) -> int:
        """How many requests of a session are stored of which nothing was delivered yet."""
        row = self._one(
            "SELECT count(*) FROM answers WHERE session = ? AND completion_tokens = 0", session
        )
        return 0 if row is None else int(row[0])

    def save_answer(self, answer: Answer) -> None:
        self.write(_insert("answers", Answer), _row(answer))

    def release_held(self) -> None:
        """After a restart: nothing is being prepared for any answer."""
        self.write("UPDATE answers SET held = 0 WHERE held != 0", ())

    def append_event(self, answer: Answer, event: Event) -> None:
        self.write(
            "INSERT INTO events (answer, seq, data, tokens, completion_tokens) "
            "VALUES (?, ?, ?, ?, ?)",
            (
                answer.id,
                event.seq,
                event.data,
                msgspec.msgpack.encode(event.tokens),
                event.completion_tokens,
            ),
        )

    def events(self, answer_id: str, after: int = -1) -> list[Event]:
        rows = self._db.execute(
            "SELECT seq, data, tokens, completion_tokens FROM events "
            "WHERE answer = ? AND seq > ? ORDER BY seq",
            (answer_id, after),
        )
        return [
            Event(
                row["seq"],
                row["data"],
                tuple(msgspec.msgpack.decode(row["tokens"])),
                row["completion_tokens"],
            )
            for row in rows
        ]

    # Results and marks ---------------------------------------------------------------------------

    def result(self, challenge_id: str, action: str) -> Result | None:
        row = self._one(
            "SELECT status, body FROM results WHERE challenge = ? AND action = ?",
            challenge_id,
            action,
        )
        return None if row is None else Result(row["status"], row["body"])

    def save_result(self, challenge_id: str, action: str, result: Result) -> None:
        self.write(
            "INSERT OR REPLACE INTO results (challenge, action, status, body) VALUES (?, ?, ?, ?)",
            (challenge_id, action, result.status, result.body),
        )

    def mark(self, name: str) -> int:
        """A number kept under a name, 0 at first: `pay_index` is the last one that was seen."""
        row = self._one("SELECT value FROM marks WHERE name = ?", name)
        return 0 if row is None else int(row["value"])

    def set_mark(self, name: str, value: int) -> None:
        self.write("INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (name, value))

    def totals(self) -> dict[str, int]:
        """Sums over everything, in msat."""
        row = self._one(
            "SELECT COALESCE(SUM(spent), 0) AS spent, COALESCE(SUM(refund), 0) AS refund, "
            "COALESCE(SUM(credited - spent - held - moved - refund), 0) AS rest FROM sessions"
        )
        assert row is not None  # an aggregate always has one row
        return {name: int(row[name]) for name in row.keys()}  # noqa: SIM118  # a Row iterates over its values


# Rows --------------------------------------------------------------------------------------------

_SQL: Final[dict[str, str]] = {}


def _insert(table: str, kind: type[Any]) -> str:
    if table not in _SQL:
        names = [f.name for f in fields(kind)]
        values = ", ".join(f":{name}" for name in names)
        _SQL[table] = f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({values})"  # noqa: S608  # names of ours
    return _SQL[table]


def _row(value: Any) -> dict[str, Any]:
    row = {f.name: getattr(value, f.name) for f in fields(value)}
    if "terms" in row:
        row["terms"] = msgspec.json.encode(row["terms"])
    return row


def _read(kind: type[T], row: sqlite3.Row | None) -> T | None:
    return None if row is None else _must_read(kind, row)


def _must_read(kind: type[T], row: sqlite3.Row) -> T:
    values = dict(row)
    if "terms" in values:
        values["terms"] = msgspec.json.decode(values["terms"])
    return msgspec.convert(values, kind, builtin_types=(bytes,))
