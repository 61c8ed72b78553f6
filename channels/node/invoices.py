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
    HtlcRefused,
    Peeled,
    check_final,
    parse_payload,
)
from channels.bolt.onion_failures import Failure, FailureCode, create_error
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.node.store import InvoiceRow
from channels.units import Msat, UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

MIN_FINAL_CLTV_EXPIRY = 18
"""BOLT 11's default, written into every invoice."""

MAX_DESCRIPTION = 640
"""BOLT 11: a tagged field holds at most 1023 groups of five bits, which is 639 bytes."""


class Invoices:
    """Our invoices, and the callers that wait for one to be paid."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._changed = asyncio.Event()

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
    ) -> tuple[InvoiceRow, bytes]:
        """A new invoice and its payment secret; the caller waits for the turn before it answers."""
        store = self._node.store
        if store.invoice_by_label(label) is not None:
            raise RpcMethodError(
                RpcErrorCode.INVOICE_LABEL_ALREADY_EXISTS, f"Duplicate label '{label}'"
            )
        preimage = preimage or secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).digest()
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
            amount_msat, payment_hash, secret, description, expiry, now, deschashonly
        )
        row = store.add_invoice(
            label=label,
            payment_hash=payment_hash,
            preimage=preimage,
            bolt11=text,
            description=description,
            amount_msat=amount_msat,
            expires_at=UnixTime(now + expiry),
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
                min_final_cltv_expiry=MIN_FINAL_CLTV_EXPIRY,
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
        """Fulfill the HTLC with the preimage of its invoice, or give it back with a reason."""
        node = self._node
        try:
            row = self._judge(channel, htlc, peeled)
        except HtlcRefused as refused:
            log.info("HTLC of %s refused: %s", htlc.payment_hash.hex(), refused)
            return channel.fail_htlc(htlc.id, create_error(peeled.shared_secret, refused.failure))
        node.store.settle_invoice(htlc.payment_hash, htlc.amount_msat, node.now())
        node.turn.after(self.wake)
        return channel.fulfill_htlc(htlc.id, row.preimage)

    def _judge(self, channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> InvoiceRow:
        """The invoice that the HTLC settles. Raises HtlcRefused."""
        node = self._node
        payload = parse_payload(peeled.payload)
        if dust_exposure(channel.state) > node.params.policy.max_dust_htlc_exposure_msat:
            raise HtlcRefused(
                Failure.of(FailureCode.TEMPORARY_NODE_FAILURE), "Too much is in flight as dust."
            )
        final = check_final(payload, htlc.amount_msat, htlc.cltv_expiry, node.height)
        row = node.store.invoice_by_hash(htlc.payment_hash)
        reason = self._why_not(row, htlc, final)
        if row is None or reason is not None:
            # BOLT 4: one error for every reason, so that a prober learns nothing.
            raise HtlcRefused(
                Failure.of(
                    FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
                    htlc_msat=htlc.amount_msat,
                    height=node.height,
                ),
                reason or "There is no such invoice.",
            )
        return row

    def _why_not(
        self, row: InvoiceRow | None, htlc: HtlcReceived, final: FinalPayload
    ) -> str | None:
        node = self._node
        if row is None:
            return "There is no invoice with this payment hash."
        if row.status != "unpaid" or row.expires_at <= node.now():
            return "The invoice is paid or expired."
        if not hmac.compare_digest(final.payment_secret, self.payment_secret(htlc.payment_hash)):
            return "The payment secret is not that of the invoice."
        # basic_mpp is not offered: one HTLC carries the whole amount.
        if final.total_msat > htlc.amount_msat:
            return "The payment comes in parts, which the invoice does not offer."
        wanted = row.amount_msat
        # BOLT 4: accept up to twice the amount, so that a payer may hide it a little.
        if wanted is not None and not wanted <= htlc.amount_msat <= 2 * wanted:
            return "The amount is not that of the invoice."
        if htlc.cltv_expiry < node.height + MIN_FINAL_CLTV_EXPIRY:
            return "The HTLC leaves too few blocks to claim it on chain."
        return None

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
