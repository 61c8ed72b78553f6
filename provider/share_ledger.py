"""Periods, batches and statements in the ledger, and in its transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from channels.http.session import Provenance
from channels.sum_tree import Leaf
from channels.units import Msat
from provider.ledger import Ledger
from provider.shares import Batch, BatchStatus, Period, leaf
from sidechain.fees import Beneficiaries, Terms

_PERIOD = (
    "height, block, model, weights_root, trainer, last_producer, accepting_producer, "
    "trainer_ppm, producers_ppm"
)


class ShareLedger:
    """Writes are durable after the ledger's commit()."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    # Periods -------------------------------------------------------------------------------------

    def begin(
        self, session: bytes, provenance: Provenance, beneficiaries: Beneficiaries, terms: Terms
    ) -> int:
        """The number of the session's period under a provenance; a new one at first."""
        known = self._rows(
            "SELECT number, is_open FROM periods WHERE session = ? AND block = ? AND model IS ? "
            "AND weights_root IS ?",
            (session, provenance.block, provenance.model, provenance.weights_root),
        )
        if known:
            number = int(known[0]["number"])
            if not known[0]["is_open"]:
                self.ledger.write(
                    "UPDATE periods SET is_open = 1 WHERE session = ? AND number = ?",
                    (session, number),
                )
            return number
        count = self._rows("SELECT count(*) AS n FROM periods WHERE session = ?", (session,))
        number = int(count[0]["n"])
        self.ledger.write(
            f"INSERT INTO periods (session, number, {_PERIOD}, is_open) "  # noqa: S608  # names of ours
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (
                session,
                number,
                provenance.height,
                provenance.block,
                provenance.model,
                provenance.weights_root,
                beneficiaries.trainer,
                beneficiaries.last_producer,
                beneficiaries.accepting_producer,
                terms.trainer_ppm,
                terms.producers_ppm,
            ),
        )
        return number

    def periods(self, session: bytes) -> list[Period]:
        rows = self._rows(
            f"SELECT session, {_PERIOD}, COALESCE((SELECT SUM(spent) FROM answers "  # noqa: S608  # names of ours
            "WHERE answers.session = periods.session AND period = periods.number), 0) AS spent "
            "FROM periods WHERE session = ? ORDER BY number",
            (session,),
        )
        return [_period(row) for row in rows]

    def all_periods(self) -> dict[tuple[bytes, int], Period]:
        """By session and number."""
        rows = self._rows(
            f"SELECT periods.session, number, {_PERIOD}, COALESCE(SUM(spent), 0) AS spent "  # noqa: S608  # names of ours
            "FROM periods LEFT JOIN answers ON answers.session = periods.session "
            "AND period = number GROUP BY periods.session, number",
            (),
        )
        return {(row["session"], row["number"]): _period(row) for row in rows}

    def unsettled(self) -> list[bytes]:
        """Sessions that may owe something that is in no batch."""
        rows = self._rows("SELECT DISTINCT session FROM periods WHERE is_open", ())
        return [row["session"] for row in rows]

    def settled(self, session: bytes) -> None:
        """All that a session owes is in batches. It stays open while an answer may go on."""
        self.ledger.write(
            "UPDATE periods SET is_open = 0 WHERE session = ?1 AND is_open AND ("
            "NOT EXISTS (SELECT 1 FROM answers WHERE session = ?1 AND status = 'running') "
            "OR EXISTS (SELECT 1 FROM sessions WHERE id = ?1 AND phase = 'closed' AND held = 0))",
            (session,),
        )

    # Batches -------------------------------------------------------------------------------------

    def next_batch(self) -> int:
        return int(self._rows("SELECT COALESCE(MAX(number), 0) + 1 AS n FROM batches", ())[0]["n"])

    def add_batch(self, batch: Batch, leaves: Sequence[Leaf]) -> None:
        self.save_batch(batch)
        for position, each in enumerate(leaves):
            self.ledger.write(
                "INSERT INTO leaves (batch, position, session, amount) VALUES (?, ?, ?, ?)",
                (batch.number, position, each.session, each.amount),
            )

    def save_batch(self, batch: Batch) -> None:
        """Raises sqlite3.IntegrityError where an invoice of another batch is used again."""
        self.ledger.write(
            "INSERT INTO batches (number, payee, root, amount, status, invoice, payment_hash, "
            "preimage, attempts, next) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (number) DO UPDATE SET status = excluded.status, "
            "invoice = excluded.invoice, payment_hash = excluded.payment_hash, "
            "preimage = excluded.preimage, attempts = excluded.attempts, next = excluded.next",
            (
                batch.number,
                batch.key,
                batch.root,
                batch.amount,
                batch.status,
                batch.invoice,
                batch.payment_hash,
                batch.preimage,
                batch.attempts,
                batch.next,
            ),
        )

    def batches(self, *statuses: BatchStatus) -> list[Batch]:
        """In the order in which they were made."""
        marks = ", ".join("?" * len(statuses))
        return [
            _batch(row)
            for row in self._rows(
                f"SELECT * FROM batches WHERE status IN ({marks}) ORDER BY number",  # noqa: S608  # marks only
                statuses,
            )
        ]

    def leaves(self, batch: int, secret: bytes) -> list[Leaf]:
        rows = self._rows(
            "SELECT session, amount FROM leaves WHERE batch = ? ORDER BY position", (batch,)
        )
        return [leaf(secret, batch, row["session"], Msat(row["amount"])) for row in rows]

    def batched(self, session: bytes) -> dict[bytes, Msat]:
        """By key, what of a session is in batches."""
        rows = self._rows(
            "SELECT payee, SUM(leaves.amount) AS amount FROM leaves "
            "JOIN batches ON batches.number = leaves.batch WHERE session = ? GROUP BY payee",
            (session,),
        )
        return {row["payee"]: Msat(row["amount"]) for row in rows}

    def batches_of(self, session: bytes) -> list[Batch]:
        rows = self._rows(
            "SELECT batches.* FROM batches JOIN leaves ON batches.number = leaves.batch "
            "WHERE session = ? ORDER BY number",
            (session,),
        )
        return [_batch(row) for row in rows]

    # Statements ----------------------------------------------------------------------------------

    def statement(self, session: bytes) -> tuple[bytes, str] | None:
        """The statement as it was signed, and the signature."""
        rows = self._rows(
            "SELECT statement, signature FROM statements WHERE session = ?", (session,)
        )
        return (rows[0]["statement"], rows[0]["signature"]) if rows else None

    def save_statement(self, session: bytes, statement: bytes, signature: str) -> None:
        self.ledger.write(
            "INSERT INTO statements (session, statement, signature) VALUES (?, ?, ?) "
            "ON CONFLICT DO NOTHING",
            (session, statement, signature),
        )

    # Figures -------------------------------------------------------------------------------------

    def totals(self) -> Mapping[bytes, Mapping[str, int]]:
        """By key: msat in batches by their status."""
        sums: dict[bytes, dict[str, int]] = {}
        for row in self._rows(
            "SELECT payee, status, SUM(amount) AS amount FROM batches GROUP BY payee, status", ()
        ):
            sums.setdefault(row["payee"], {})[row["status"]] = int(row["amount"])
        return sums

    def roles(self) -> dict[bytes, tuple[Literal["trainer", "producer"], ...]]:
        """By key: as what it was ever owed."""
        trainers = {row[0] for row in self._rows("SELECT DISTINCT trainer FROM periods", ())}
        producers = {
            row[0]
            for row in self._rows(
                "SELECT last_producer FROM periods UNION SELECT accepting_producer FROM periods", ()
            )
        }
        return {
            key: (
                *(("trainer",) if key in trainers else ()),
                *(("producer",) if key in producers else ()),
            )
            for key in (trainers | producers) - {None}
        }

    def _rows(self, sql: str, values: Iterable[Any]) -> list[sqlite3.Row]:
        return self.ledger.read(sql, tuple(values))


def _period(row: sqlite3.Row) -> Period:
    return Period(
        row["session"],
        Provenance(row["height"], row["block"], row["model"], row["weights_root"]),
        Beneficiaries(row["trainer"], row["last_producer"], row["accepting_producer"]),
        Terms(row["trainer_ppm"], row["producers_ppm"]),
        Msat(row["spent"]),
    )


def _batch(row: sqlite3.Row) -> Batch:
    return Batch(
        row["number"],
        row["payee"],
        row["root"],
        Msat(row["amount"]),
        BatchStatus(row["status"]),
        row["invoice"],
        row["payment_hash"],
        row["preimage"],
        row["attempts"],
        row["next"],
    )
