"""Getting paid: invoices, and what to do with an HTLC that has arrived for good (BOLT 4, 11)."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from typing import TYPE_CHECKING

from channels.bolt import invoice as bolt11
from channels.bolt.channel import Channel
from channels.bolt.channel_commitments import dust_exposure
from channels.bolt.effects import Effect, HtlcReceived
from channels.bolt.features import OUR_INVOICE
from channels.bolt.keys import public_key
from channels.bolt.onion import (
    FinalPayload,
    HopPayload,
    HtlcRefused,
    Peeled,
    check_final,
    parse_payload,
)
from channels.bolt.onion_failures import Failure, FailureCode, create_error
from channels.node.held import Held, Part
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.node.store import InvoiceRow
from channels.units import BlockHeight, Msat, UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

MIN_FINAL_CLTV_EXPIRY = 18
"""BOLT 11's default, written into every invoice that does not hold."""

MAX_DESCRIPTION = 640
"""BOLT 11: a tagged field holds at most 1023 groups of five bits, which is 639 bytes."""

MIN_KEYSEND = Msat(1_000)
"""A payment that nobody asked for has a row of its own for ever: less is not worth remembering."""


class Invoices:
    """Our invoices, and the callers that wait for one to be paid."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._changed = asyncio.Event()
        self.held = Held(node, self._timed_out)

    def create(
        self,
        *,
        amount_msat: Msat | None,
        label: str,
        description: str,
        expiry: int,
        now: UnixTime,
        preimage: bytes | None = None,
        deschashonly: bool = False,
        hold: bytes | None = None,
        cltv: int = MIN_FINAL_CLTV_EXPIRY,
    ) -> tuple[InvoiceRow, bytes]:
        """A new invoice and its payment secret; the caller waits for the turn before it answers.

        `hold` is the payment hash of a hold invoice, whose preimage comes when it is settled.
        """
        store = self._node.store
        if store.invoice_by_label(label) is not None:
            raise RpcMethodError(
                RpcErrorCode.INVOICE_LABEL_ALREADY_EXISTS, f"Duplicate label '{label}'"
            )
        if hold is None:
            preimage = preimage or secrets.token_bytes(32)
        payment_hash = hold or hashlib.sha256(preimage or b"").digest()
        if store.invoice_by_hash(payment_hash) is not None:
            raise RpcMethodError(
                RpcErrorCode.INVOICE_PREIMAGE_ALREADY_EXISTS, "preimage already used"
            )
        if len(description.encode()) > MAX_DESCRIPTION - 1 and not deschashonly:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS,
                f"Descriptions greater than {MAX_DESCRIPTION - 1} bytes need deschashonly",
            )
        secret = self.payment_secret(payment_hash)
        text = self._encode(
            amount_msat, payment_hash, secret, description, expiry, now, deschashonly, cltv
        )
        row = store.add_invoice(
            label=label,
            payment_hash=payment_hash,
            preimage=preimage or b"",
            bolt11=text,
            description=description,
            amount_msat=amount_msat,
            expires_at=UnixTime(now + expiry),
            hold=None if hold is None else "open",
            min_final_cltv_expiry=cltv,
        )
        self._node.turn.begin()
        return row, secret

    def _encode(
        self,
        amount_msat: Msat | None,
        payment_hash: bytes,
        payment_secret: bytes,
        description: str,
        expiry: int,
        now: UnixTime,
        deschashonly: bool,
        cltv: int,
    ) -> str:
        digest = hashlib.sha256(description.encode()).digest() if deschashonly else None
        return bolt11.encode(
            bolt11.Invoice(
                currency=self._node.params.invoice_currency,
                amount_msat=amount_msat,
                timestamp=now,
                payment_hash=payment_hash,
                payment_secret=payment_secret,
                description=None if deschashonly else description,
                description_hash=digest,
                expiry=expiry,
                min_final_cltv_expiry=cltv,
                payee=public_key(self._node.node_secret),
                routes=self._node.gossip.hints(),
                features=OUR_INVOICE,
            ),
            self._node.node_secret,
        )

    def payment_secret(self, payment_hash: bytes) -> bytes:
        """Derived, not stored: only who has seen the invoice can know it (BOLT 4)."""
        return hmac.digest(
            self._node.wallet.channel_seed, b"ODA payment_secret" + payment_hash, "sha256"
        )

    # --- incoming HTLCs ------------------------------------------------------------------------

    def receive(self, channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
        """Keep an HTLC until all of its payment is here, or give it back with a reason."""
        part = Part(channel, htlc, peeled.shared_secret)
        try:
            payload = parse_payload(peeled.payload)
            if payload.keysend_preimage is not None:
                return self._receive_keysend(part, payload, payload.keysend_preimage)
            row, final = self._judge(part, payload)
        except HtlcRefused as refused:
            log.info("HTLC of %s refused: %s", htlc.payment_hash.hex(), refused)
            return channel.fail_htlc(htlc.id, create_error(peeled.shared_secret, refused.failure))
        if not self.held.add(htlc.payment_hash, part, final):
            # BOLT 4: the parts must agree about total_msat, else all of them fail.
            self.held.fail(htlc.payment_hash, self._unknown)
            return channel.fail_htlc(
                htlc.id, create_error(peeled.shared_secret, self._unknown(htlc))
            )
        if self.held.complete(htlc.payment_hash):
            self._complete(row, self.held.received_msat(htlc.payment_hash))
        return []

    def _complete(self, row: InvoiceRow, received: Msat) -> None:
        node = self._node
        if row.hold is not None:
            if row.hold == "open":
                node.store.set_hold(row.payment_hash, "accepted")
                node.turn.after(self.wake)
            return
        node.store.settle_invoice(row.payment_hash, received, node.now())
        node.turn.after(self.wake)
        self.held.fulfill(row.payment_hash, row.preimage)

    def _unknown(self, htlc: HtlcReceived) -> Failure:
        """BOLT 4: one error for every reason, so that a prober learns nothing."""
        return Failure.of(
            FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
            htlc_msat=htlc.amount_msat,
            height=self._node.height,
        )

    def _receive_keysend(self, part: Part, payload: HopPayload, preimage: bytes) -> list[Effect]:
        """A payment without an invoice becomes one that is paid, as with Core Lightning.

        Raises HtlcRefused. It has one part: nothing tells the parts of a stranger's payment apart.
        """
        node, htlc = self._node, part.htlc
        if (
            hashlib.sha256(preimage).digest() != htlc.payment_hash
            or payload.amt_to_forward is None
            or htlc.amount_msat < MIN_KEYSEND
            or htlc.amount_msat < (payload.total_msat or payload.amt_to_forward)
            or htlc.cltv_expiry < node.height + MIN_FINAL_CLTV_EXPIRY
            or node.store.invoice_by_hash(htlc.payment_hash) is not None
        ):
            raise HtlcRefused(self._unknown(htlc), "A keysend payment is not what it should be.")
        self._check_dust(part)
        row, _ = self.create(
            amount_msat=htlc.amount_msat,
            label=f"keysend-{node.now()}.{htlc.payment_hash.hex()[:16]}",
            description="keysend",
            expiry=3600,
            now=node.now(),
            preimage=preimage,
        )
        node.store.settle_invoice(row.payment_hash, htlc.amount_msat, node.now())
        node.turn.after(self.wake)
        return part.channel.fulfill_htlc(htlc.id, preimage)

    def _check_dust(self, part: Part) -> None:
        if dust_exposure(part.channel.state) > (
            self._node.params.policy.max_dust_htlc_exposure_msat
        ):
            raise HtlcRefused(
                Failure.of(FailureCode.TEMPORARY_NODE_FAILURE), "Too much is in flight as dust."
            )

    def _judge(self, part: Part, payload: HopPayload) -> tuple[InvoiceRow, FinalPayload]:
        """The invoice that the HTLC pays, or is a part of. Raises HtlcRefused."""
        node, htlc = self._node, part.htlc
        self._check_dust(part)
        final = check_final(payload, htlc.amount_msat, htlc.cltv_expiry, node.height)
        row = node.store.invoice_by_hash(htlc.payment_hash)
        reason = self._why_not(row, htlc, final)
        if row is None or reason is not None:
            raise HtlcRefused(self._unknown(htlc), reason or "There is no such invoice.")
        return row, final

    def _why_not(
        self, row: InvoiceRow | None, htlc: HtlcReceived, final: FinalPayload
    ) -> str | None:
        node = self._node
        if row is None:
            return "There is no invoice with this payment hash."
        # What a hold invoice has accepted it keeps, over a restart after its expiry too.
        if row.hold != "accepted" and (row.status != "unpaid" or row.expires_at <= node.now()):
            return "The invoice is paid or expired."
        if row.hold == "canceled" or row.status == "paid":
            return "The invoice is canceled or paid."
        if not hmac.compare_digest(final.payment_secret, self.payment_secret(htlc.payment_hash)):
            return "The payment secret is not that of the invoice."
        wanted = row.amount_msat
        # BOLT 4: accept up to twice the amount, so that a payer may hide it a little.
        if wanted is not None and not wanted <= final.total_msat <= 2 * wanted:
            return "The amount is not that of the invoice."
        if htlc.amount_msat > 2 * final.total_msat:
            return "The HTLC brings more than twice of what it should."
        if row.hold != "accepted" and htlc.cltv_expiry < node.height + row.min_final_cltv_expiry:
            return "The HTLC leaves too few blocks to claim it on chain."
        return None

    def _timed_out(self, payment_hash: bytes) -> None:
        log.info("the rest of payment %s did not come", payment_hash.hex())
        self.held.fail(payment_hash, lambda _: Failure.of(FailureCode.MPP_TIMEOUT))

    def new_height(self, height: BlockHeight) -> None:
        """What could soon no longer be claimed in time is given back."""
        for payment_hash in self.held.expiring(height):
            log.warning("payment %s waited too long and is given back", payment_hash.hex())
            self.held.fail(payment_hash, self._unknown)
            row = self._node.store.invoice_by_hash(payment_hash)
            if row is not None and row.hold == "accepted":
                self._node.store.set_hold(payment_hash, "canceled")

    # --- hold invoices -------------------------------------------------------------------------

    def settle_hold(self, preimage: bytes) -> InvoiceRow:
        """Take what a hold invoice has accepted. Settling again changes nothing."""
        node = self._node
        row = self._hold(hashlib.sha256(preimage).digest())
        if row.status == "paid":
            return row
        if row.hold != "accepted" or not self.held.complete(row.payment_hash):
            raise RpcMethodError(
                RpcErrorCode.INVOICE_STATUS_UNEXPECTED,
                f"The invoice is {row.hold}, and only one that is accepted can be settled",
            )
        received = self.held.received_msat(row.payment_hash)
        node.store.reveal_preimage(row.payment_hash, preimage)
        node.store.settle_invoice(row.payment_hash, received, node.now())
        self.held.fulfill(row.payment_hash, preimage)
        node.turn.after(self.wake)
        return self._hold(row.payment_hash)

    def cancel_hold(self, payment_hash: bytes) -> InvoiceRow:
        """Give back what a hold invoice has accepted, and accept nothing more."""
        row = self._hold(payment_hash)
        if row.status == "paid":
            raise RpcMethodError(
                RpcErrorCode.INVOICE_STATUS_UNEXPECTED, "The invoice is settled already"
            )
        self._node.store.set_hold(payment_hash, "canceled")
        self.held.fail(payment_hash, self._unknown)
        self._node.turn.after(self.wake)
        return self._hold(payment_hash)

    def _hold(self, payment_hash: bytes) -> InvoiceRow:
        row = self._node.store.invoice_by_hash(payment_hash)
        if row is None or row.hold is None:
            raise RpcMethodError(RpcErrorCode.INVOICE_NOT_FOUND, "Unknown hold invoice")
        return row

    # --- waiting -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something was settled, deleted or expired: everybody who waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, within: float | None) -> bool:
        """Wait for the next change; False when `within` seconds pass without one."""
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
