"""Invoices that this node made, with lightningd's fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from channels.errors import LocalProtocolError
from channels.node.tables import Tables, counted
from channels.units import Msat, UnixTime


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    """`status` is unpaid, paid or expired; pay_index and what follows are there once it is paid.

    `hold` is None, or for a hold invoice open, accepted or canceled; its preimage is empty until it
    is settled.
    """

    created_index: int
    label: str
    payment_hash: bytes
    preimage: bytes = field(repr=False)
    bolt11: str
    description: str
    amount_msat: Msat | None
    status: str
    expires_at: UnixTime
    updated_index: int | None
    pay_index: int | None
    amount_received_msat: Msat | None
    paid_at: UnixTime | None
    hold: str | None
    min_final_cltv_expiry: int


_SELECT = (
    "SELECT created_index, label, payment_hash, preimage, bolt11, description, amount_msat, status,"
    " expires_at, updated_index, pay_index, amount_received_msat, paid_at, hold,"
    " min_final_cltv_expiry FROM invoices "
)


class InvoiceTable(Tables):
    """Part of `Store`."""

    def add_invoice(
        self,
        *,
        label: str,
        payment_hash: bytes,
        preimage: bytes,
        bolt11: str,
        description: str,
        amount_msat: Msat | None,
        expires_at: UnixTime,
        hold: str | None = None,
        min_final_cltv_expiry: int = 18,
    ) -> InvoiceRow:
        """A new unpaid invoice; the caller has made sure that label and hash are new."""
        self._db.execute(
            "INSERT INTO invoices (label, payment_hash, preimage, bolt11, description,"
            " amount_msat, status, expires_at, hold, min_final_cltv_expiry)"
            " VALUES (?, ?, ?, ?, ?, ?, 'unpaid', ?, ?, ?)",
            (
                *(label, payment_hash, preimage, bolt11, description, amount_msat, expires_at),
                *(hold, min_final_cltv_expiry),
            ),
        )
        row = self.invoice_by_hash(payment_hash)
        assert row is not None
        return row

    def invoice_by_label(self, label: str) -> InvoiceRow | None:
        return self._one_invoice("WHERE label = ?", label)

    def invoice_by_hash(self, payment_hash: bytes) -> InvoiceRow | None:
        return self._one_invoice("WHERE payment_hash = ?", payment_hash)

    def first_paid_after(self, pay_index: int) -> InvoiceRow | None:
        """The paid invoice with the lowest pay_index above this one."""
        return self._one_invoice("WHERE pay_index > ? ORDER BY pay_index LIMIT 1", pay_index)

    def list_invoices(self) -> list[InvoiceRow]:
        """All, in the order they were created."""
        return [InvoiceRow(*row) for row in self._db.execute(_SELECT + "ORDER BY created_index")]

    def settle_invoice(self, payment_hash: bytes, amount: Msat, now: UnixTime) -> int:
        """Mark as paid and return the pay_index; settling again changes nothing.

        An invoice that expired after its HTLC was accepted is settled too: the money is here.
        """
        row = self.invoice_by_hash(payment_hash)
        if row is None:
            raise LocalProtocolError(
                "no-such-invoice", "There is no invoice with this payment hash to settle."
            )
        if row.pay_index is not None:
            return row.pay_index
        pay_index = counted(self._db, "pay_index")
        self._db.execute(
            "UPDATE invoices SET status = 'paid', pay_index = ?, amount_received_msat = ?,"
            " paid_at = ?, updated_index = ? WHERE payment_hash = ?",
            (pay_index, amount, now, counted(self._db, "invoice_updated"), payment_hash),
        )
        return pay_index

    def set_hold(self, payment_hash: bytes, hold: str) -> None:
        self._db.execute(
            "UPDATE invoices SET hold = ? WHERE payment_hash = ?", (hold, payment_hash)
        )

    def accepted_payments(self) -> frozenset[bytes]:
        """The payment hashes that a hold invoice has accepted and that wait for their preimage."""
        rows = self._db.execute(
            "SELECT payment_hash FROM invoices WHERE hold = 'accepted' AND status != 'paid'"
        )
        return frozenset(payment_hash for (payment_hash,) in rows)

    def reveal_preimage(self, payment_hash: bytes, preimage: bytes) -> None:
        """A hold invoice's preimage, when it is settled."""
        self._db.execute(
            "UPDATE invoices SET preimage = ? WHERE payment_hash = ?", (preimage, payment_hash)
        )

    def delete_invoice(self, label: str) -> None:
        self._db.execute("DELETE FROM invoices WHERE label = ?", (label,))

    def expire_invoices(self, now: UnixTime) -> int:
        """Mark unpaid invoices whose time is over; how many there were."""
        due = self._db.execute(
            "SELECT created_index FROM invoices WHERE status = 'unpaid' AND expires_at <= ?"
            " ORDER BY expires_at, created_index",
            (now,),
        ).fetchall()
        for (created_index,) in due:
            self._db.execute(
                "UPDATE invoices SET status = 'expired', updated_index = ? WHERE created_index = ?",
                (counted(self._db, "invoice_updated"), created_index),
            )
        return len(due)

    def next_invoice_expiry(self) -> UnixTime | None:
        """When the next unpaid invoice expires."""
        row: tuple[UnixTime | None] = self._db.execute(
            "SELECT min(expires_at) FROM invoices WHERE status = 'unpaid'"
        ).fetchone()
        return row[0]

    def _one_invoice(self, where: str, value: Any) -> InvoiceRow | None:
        row = self._db.execute(_SELECT + where, (value,)).fetchone()
        return None if row is None else InvoiceRow(*row)
