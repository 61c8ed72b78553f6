"""Checks of receipts, and what the chain said for them, in the client's file and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec

from channels.http.session import Provenance
from channels.units import UnixTime
from client.checks import BAD, Check, CheckState, Owing, fault_of
from client.judge import FaultKind
from client.reputation import fault, forgiven
from client.store import Store
from sidechain.fees import Beneficiaries

MOST_KNOWN: Final = 100_000
"""Provenances of which is kept who is owed; the oldest go."""


class CheckTable:
    def __init__(self, store: Store) -> None:
        self.store = store

    # Checks --------------------------------------------------------------------------------------

    def get(self, session: int) -> Check | None:
        rows = self._checks("WHERE checks.session = ?", session)
        return rows[0] if rows else None

    def all(self) -> list[Check]:
        """Newest first."""
        return self._checks("ORDER BY checks.session DESC")

    def due(self, now: UnixTime, most: int) -> list[Check]:
        return self._checks("WHERE next <= ? ORDER BY next LIMIT ?", now, most)

    def unfinished(self, most: int) -> list[Check]:
        """Those of which more can be known, due or not; newest first."""
        return self._checks(
            "WHERE checks.state NOT IN ('paid', 'false') ORDER BY checks.session DESC LIMIT ?", most
        )

    def of(self, provider: str, state: CheckState, most: int) -> list[Check]:
        return self._checks(
            "JOIN sessions ON number = checks.session WHERE provider = ? AND checks.state = ? "
            "ORDER BY checks.session LIMIT ?",
            *(provider, state, most),
        )

    def untold(self) -> list[Check]:
        """What is bad and the user has not heard of."""
        return self._checks("WHERE NOT told ORDER BY checks.session")

    def tell(self, checks: Iterable[Check]) -> None:
        """The user has heard of these now."""
        with self.store.transaction():
            for check in checks:
                self._execute(
                    "UPDATE checks SET told = 1 WHERE session = ? AND state = ?",
                    check.session,
                    check.state,
                )

    def is_bad(self, node_id: str) -> bool:
        """Whether a provider's node lied or has not paid: it is asked last."""
        marks = ", ".join("?" * len(BAD))
        found = self._execute(
            "SELECT 1 FROM checks JOIN sessions ON number = checks.session "  # noqa: S608  # marks only
            f"JOIN providers ON url = provider WHERE node_id = ? AND checks.state IN ({marks})",
            node_id,
            *BAD,
        )
        return found.fetchone() is not None

    def replace(self, node_id: str, changes: Iterable[tuple[Check, Check]]) -> None:
        """Store checks as they became after a look at one provider, each with the one that was
        looked at, and what the provider is remembered for, in one transaction.

        One that another process has looked at meanwhile stays as that left it. A look costs one
        fault of a kind, however many sessions it is about.
        """
        with self.store.transaction():
            kinds: set[str] = set()
            for before, after in changes:
                if self.get(before.session) == before:
                    self._save(self._blamed(node_id, before, after, kinds))

    def _blamed(self, node_id: str, before: Check, after: Check, kinds: set[str]) -> Check:
        kind = fault_of(after)
        blamed = before.blamed
        if blamed and blamed != kind:
            old = FaultKind(blamed)
            self.store.remember(node_id, lambda record: forgiven(record, old))
            blamed = ""
        if kind is not None and kind not in (blamed, *kinds) and kind != fault_of(before):
            new = kind
            self.store.remember(node_id, lambda record: fault(record, new))
            blamed = new
            kinds.add(new)
        return replace(after, blamed=blamed)

    def _save(self, check: Check) -> None:
        self._execute(
            "UPDATE checks SET state = ?, next = ?, attempts = ?, reason = ?, sentence = ?, "
            "owing = ?, blamed = ?, told = ? WHERE session = ?",
            *(check.state, check.next, check.attempts, check.reason, check.sentence),
            *(msgspec.json.encode(check.owing), check.blamed, check.told, check.session),
        )

    def _checks(self, rest: str, *values: Any) -> list[Check]:
        rows = self._execute(f"SELECT checks.* FROM checks {rest}", *values)  # noqa: S608  # words of ours
        return [_check(row) for row in rows]

    # What the chain said -------------------------------------------------------------------------

    def beneficiaries(self, provenance: Provenance) -> Beneficiaries | None:
        row = self._execute(
            "SELECT trainer, last_producer, accepting_producer FROM beneficiaries "
            "WHERE block = ? AND model = ? AND weights_root = ?",
            *_where(provenance),
        ).fetchone()
        return None if row is None else Beneficiaries(*row)

    def save_beneficiaries(self, provenance: Provenance, owed: Beneficiaries) -> None:
        with self.store.transaction():
            self._execute(
                "INSERT INTO beneficiaries (block, model, weights_root, trainer, last_producer, "
                "accepting_producer) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                *_where(provenance),
                *(owed.trainer, owed.last_producer, owed.accepting_producer),
            )
            self._execute(
                "DELETE FROM beneficiaries WHERE number <= "
                "(SELECT MAX(number) FROM beneficiaries) - ?",
                MOST_KNOWN,
            )

    def nodes(self, key: bytes) -> frozenset[bytes]:
        """The nodes at which a key was ever seen to be paid."""
        rows = self._execute("SELECT node_id FROM registrations WHERE key = ?", key)
        return frozenset(row["node_id"] for row in rows)

    def save_node(self, key: bytes, node_id: bytes) -> None:
        with self.store.transaction():
            self._execute(
                "INSERT INTO registrations (key, node_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
                *(key, node_id),
            )

    def _execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self.store.execute(sql, values)


def _where(provenance: Provenance) -> tuple[bytes, bytes, bytes]:
    return provenance.block, provenance.model or b"", provenance.weights_root or b""


def _check(row: sqlite3.Row) -> Check:
    return Check(
        row["session"],
        UnixTime(row["closed"]),
        UnixTime(row["next"]),
        CheckState(row["state"]),
        row["attempts"],
        row["reason"],
        row["sentence"],
        msgspec.json.decode(row["owing"], type=dict[str, Owing]),
        row["blamed"],
        bool(row["told"]),
    )
