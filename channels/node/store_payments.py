"""Payments that this node makes, and the attempts (lightningd: sendpays) that they consist of.

A payment is pending until its outcome is known; nothing ever makes a complete one fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from channels.errors import LocalProtocolError
from channels.node.tables import Tables
from channels.units import Msat, UnixTime


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """`amount_sent_msat` is what left this node, fees included; zero until it is complete."""

    created_index: int
    payment_hash: bytes
    bolt11: str
    destination: bytes
    amount_msat: Msat
    amount_sent_msat: Msat
    status: str
    preimage: bytes | None = field(repr=False)
    created_at: UnixTime
    completed_at: UnixTime | None
    failure_code: int | None
    failure_message: str | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One HTLC offered for a payment. `hops` is the sender's own encoding of the route."""

    id: int
    payment_hash: bytes
    groupid: int
    partid: int
    amount_msat: Msat
    amount_sent_msat: Msat
    status: str
    session_key: bytes = field(repr=False)
    hops: bytes
    channel_index: int
    htlc_id: int | None
    created_at: UnixTime
    completed_at: UnixTime | None
    preimage: bytes | None = field(repr=False)
    erroronion: bytes | None
    failure_code: int | None
    failure_message: str | None


_PAYMENT = (
    "SELECT created_index, payment_hash, bolt11, destination, amount_msat, amount_sent_msat,"
    " status, preimage, created_at, completed_at, failure_code, failure_message FROM payments "
)
_ATTEMPT = (
    "SELECT id, payment_hash, groupid, partid, amount_msat, amount_sent_msat, status, session_key,"
    " hops, channel_index, htlc_id, created_at, completed_at, preimage, erroronion, failure_code,"
    " failure_message FROM attempts "
)


class PaymentTables(Tables):
    """Part of `Store`."""

    def begin_payment(
        self,
        *,
        payment_hash: bytes,
        bolt11: str,
        destination: bytes,
        amount_msat: Msat,
        now: UnixTime,
    ) -> PaymentRow:
        """A new pending payment, or a failed one made pending again.

        Raises LocalProtocolError "payment-exists" when one is pending or complete.
        """
        before = self.payment(payment_hash)
        if before is not None and before.status != "failed":
            raise LocalProtocolError(
                "payment-exists", f"A payment with this hash is {before.status} already."
            )
        self._db.execute(
            "INSERT INTO payments (payment_hash, bolt11, destination, amount_msat,"
            " amount_sent_msat, status, created_at) VALUES (?, ?, ?, ?, 0, 'pending', ?)"
            " ON CONFLICT (payment_hash) DO UPDATE SET bolt11 = excluded.bolt11,"
            " destination = excluded.destination, amount_msat = excluded.amount_msat,"
            " status = 'pending', created_at = excluded.created_at, completed_at = NULL,"
            " failure_code = NULL, failure_message = NULL",
            (payment_hash, bolt11, destination, amount_msat, now),
        )
        return self._known_payment(payment_hash)

    def payment(self, payment_hash: bytes) -> PaymentRow | None:
        row = self._db.execute(_PAYMENT + "WHERE payment_hash = ?", (payment_hash,)).fetchone()
        return None if row is None else PaymentRow(*row)

    def list_payments(self, status: str | None = None) -> list[PaymentRow]:
        """All, or those of one status, in the order they were created."""
        rows = self._db.execute(
            _PAYMENT + "WHERE ? IS NULL OR status = ? ORDER BY created_index", (status, status)
        )
        return [PaymentRow(*row) for row in rows]

    def complete_payment(self, payment_hash: bytes, preimage: bytes, now: UnixTime) -> None:
        """The preimage is known: paid, whatever was thought before. Repeating changes nothing."""
        if self._known_payment(payment_hash).status == "complete":
            return
        # The payee releases the preimage only when all parts are there, so those that are still
        # pending will be taken too.
        self._db.execute(
            "UPDATE payments SET status = 'complete', preimage = ?, completed_at = ?,"
            " failure_code = NULL, failure_message = NULL, amount_sent_msat ="
            " (SELECT coalesce(sum(amount_sent_msat), 0) FROM attempts"
            "  WHERE attempts.payment_hash = payments.payment_hash AND status != 'failed')"
            " WHERE payment_hash = ?",
            (preimage, now, payment_hash),
        )

    def fail_payment(self, payment_hash: bytes, code: int, message: str, now: UnixTime) -> None:
        """Give up on it. Raises LocalProtocolError when it is, or may yet be, complete."""
        if self._known_payment(payment_hash).status == "complete":
            raise LocalProtocolError("payment-complete", "A complete payment cannot fail.")
        if any(attempt.status == "pending" for attempt in self.attempts(payment_hash)):
            raise LocalProtocolError(
                "attempt-pending", "A payment cannot fail while one of its attempts is pending."
            )
        self._db.execute(
            "UPDATE payments SET status = 'failed', completed_at = ?, failure_code = ?,"
            " failure_message = ? WHERE payment_hash = ?",
            (now, code, message, payment_hash),
        )

    def add_attempt(
        self,
        *,
        payment_hash: bytes,
        amount_msat: Msat,
        amount_sent_msat: Msat,
        session_key: bytes,
        hops: bytes,
        channel_index: int,
        htlc_id: int | None,
        now: UnixTime,
        groupid: int | None = None,
        partid: int = 0,
    ) -> AttemptRow:
        """A new pending attempt; without `groupid` it starts the payment's next group."""
        if groupid is None:
            (latest,) = self._db.execute(
                "SELECT coalesce(max(groupid), 0) FROM attempts WHERE payment_hash = ?",
                (payment_hash,),
            ).fetchone()
            groupid = latest + 1
        cursor = self._db.execute(
            "INSERT INTO attempts (payment_hash, groupid, partid, amount_msat, amount_sent_msat,"
            " status, session_key, hops, channel_index, htlc_id, created_at)"
            " VALUES (?, ?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?)",
            (
                *(payment_hash, groupid, partid, amount_msat, amount_sent_msat),
                *(session_key, hops, channel_index, htlc_id, now),
            ),
        )
        row = self._one_attempt("WHERE id = ?", cursor.lastrowid)
        assert row is not None
        return row

    def set_attempt_htlc(self, attempt_id: int, htlc_id: int) -> None:
        self._db.execute("UPDATE attempts SET htlc_id = ? WHERE id = ?", (htlc_id, attempt_id))

    def free_attempt_htlc(self, attempt_id: int) -> None:
        """The HTLC was never signed: its id will be that of another."""
        self._db.execute("UPDATE attempts SET htlc_id = NULL WHERE id = ?", (attempt_id,))

    def attempt_by_htlc(self, channel_index: int, htlc_id: int) -> AttemptRow | None:
        return self._one_attempt("WHERE channel_index = ? AND htlc_id = ?", channel_index, htlc_id)

    def attempts(
        self, payment_hash: bytes | None = None, status: str | None = None
    ) -> list[AttemptRow]:
        """All, or those of one payment or status, in the order they were made."""
        rows = self._db.execute(
            _ATTEMPT + "WHERE (?1 IS NULL OR payment_hash = ?1) AND (?2 IS NULL OR status = ?2)"
            " ORDER BY id",
            (payment_hash, status),
        )
        return [AttemptRow(*row) for row in rows]

    def finish_attempt(
        self,
        attempt_id: int,
        status: str,
        *,
        now: UnixTime,
        preimage: bytes | None = None,
        erroronion: bytes | None = None,
        failure_code: int | None = None,
        failure_message: str | None = None,
    ) -> None:
        """Make a pending attempt complete or failed; one that ended stays as it is."""
        self._db.execute(
            "UPDATE attempts SET status = ?, completed_at = ?, preimage = ?, erroronion = ?,"
            " failure_code = ?, failure_message = ? WHERE id = ? AND status = 'pending'",
            (status, now, preimage, erroronion, failure_code, failure_message, attempt_id),
        )

    def _known_payment(self, payment_hash: bytes) -> PaymentRow:
        row = self.payment(payment_hash)
        if row is None:
            raise LocalProtocolError("no-such-payment", "There is no payment with this hash.")
        return row

    def _one_attempt(self, where: str, *values: Any) -> AttemptRow | None:
        row = self._db.execute(_ATTEMPT + where, values).fetchone()
        return None if row is None else AttemptRow(*row)
