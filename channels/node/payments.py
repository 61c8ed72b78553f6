"""Paying: one attempt at a time over a channel with the payee, remembered until it is known.

A payment is pending, complete or failed in the store; a caller that stops waiting changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from channels.bolt.channel import Channel
from channels.bolt.effects import HtlcFailed, HtlcFulfilled
from channels.bolt.invoice import Invoice, check_payable
from channels.bolt.onion import Hop, build_packet, final_payload, shared_secrets
from channels.bolt.onion_failures import read_error
from channels.errors import LocalProtocolError, UserError
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.node.store import AttemptRow, PaymentRow
from channels.units import Msat, msat

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

CLTV_SLACK = 3
"""Blocks that may be found while an HTLC is on its way."""


@dataclass(frozen=True, slots=True)
class Paid:
    payment_preimage: bytes
    amount_msat: Msat
    amount_sent_msat: Msat


class Payments:
    """Outgoing payments and the callers that wait for them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: dict[bytes, list[asyncio.Future[PaymentRow]]] = {}

    async def pay(self, text: str, invoice: Invoice, amount: Msat) -> Paid:
        """Pay and wait for the outcome. Raises RpcMethodError with lightningd's codes."""
        node = self._node
        self._check(invoice)
        existing = node.store.payment(invoice.payment_hash)
        if existing is not None and existing.status == "complete":
            raise RpcMethodError(
                RpcErrorCode.PAY_ALREADY_PAID, "This invoice has already been paid"
            )
        if existing is None or existing.status == "failed":
            self._begin(text, invoice, amount)
        row = await self._outcome(invoice.payment_hash)
        if row.status == "failed" or row.preimage is None:
            code = row.failure_code or RpcErrorCode.PAY_UNSPECIFIED_ERROR
            raise RpcMethodError(RpcErrorCode(code), row.failure_message or "Payment failed")
        return Paid(row.preimage, row.amount_msat, row.amount_sent_msat)

    def _check(self, invoice: Invoice) -> None:
        node = self._node
        try:
            check_payable(invoice, node.params.invoice_currency, node.now())
        except UserError as error:
            expired = error.reason == "invoice-expired"
            code = RpcErrorCode.PAY_INVOICE_EXPIRED if expired else RpcErrorCode.INVALID_PARAMS
            raise RpcMethodError(code, str(error)) from error
        if invoice.payee == node.node_id:
            raise RpcMethodError(
                RpcErrorCode.PAY_ROUTE_NOT_FOUND, "This is an invoice of this very node"
            )

    def _begin(self, text: str, invoice: Invoice, amount: Msat) -> None:
        """Offer the HTLC and store what it is for, in one turn."""
        node = self._node
        channel = self._channel_to(invoice.payee, amount)
        session_key = secrets.token_bytes(32)
        cltv_expiry = node.height + invoice.min_final_cltv_expiry + CLTV_SLACK
        assert invoice.payment_secret is not None, "checked by _check"
        payload = final_payload(
            amt_to_forward=amount,
            outgoing_cltv_value=cltv_expiry,
            payment_secret=invoice.payment_secret,
            total_msat=amount,
            payment_metadata=invoice.payment_metadata,
        )
        hops = [Hop(invoice.payee, payload)]
        onion = build_packet(session_key, hops, invoice.payment_hash)
        try:
            htlc_id, effects = channel.offer_htlc(amount, invoice.payment_hash, cltv_expiry, onion)
        except LocalProtocolError as error:
            raise RpcMethodError(RpcErrorCode.PAY_ROUTE_NOT_FOUND, str(error)) from error
        store = node.store
        store.begin_payment(
            payment_hash=invoice.payment_hash,
            bolt11=text,
            destination=invoice.payee,
            amount_msat=amount,
            now=node.now(),
        )
        store.add_attempt(
            payment_hash=invoice.payment_hash,
            amount_msat=amount,
            amount_sent_msat=amount,
            session_key=session_key,
            hops=invoice.payee,
            channel_index=channel.state.index,
            htlc_id=htlc_id,
            now=node.now(),
        )
        node.carry_out(channel, effects)

    def _channel_to(self, payee: bytes, amount: Msat) -> Channel:
        """The usable channel with the payee that has most to spend."""
        direct = [c for c in self._node.channels_of(payee) if c.usable]
        if not direct:
            known = self._node.channels_of(payee)
            why = "it is not ready or its peer is away" if known else "open one first"
            raise RpcMethodError(
                RpcErrorCode.PAY_ROUTE_NOT_FOUND,
                f"No usable channel with {payee.hex()}: {why}",
            )
        best = max(direct, key=lambda c: c.state.log.local_msat)
        if best.state.log.local_msat - msat(best.state.peer.channel_reserve_satoshis) < amount:
            raise RpcMethodError(
                RpcErrorCode.PAY_ROUTE_NOT_FOUND,
                f"The channel's balance less its reserve does not hold {amount} msat",
            )
        return best

    async def _outcome(self, payment_hash: bytes) -> PaymentRow:
        row = self._node.store.payment(payment_hash)
        if row is not None and row.status != "pending":
            return row
        future: asyncio.Future[PaymentRow] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(payment_hash, []).append(future)
        return await future

    # --- what the channels report ---------------------------------------------------------------

    def fulfilled(self, channel: Channel, effect: HtlcFulfilled) -> None:
        node = self._node
        attempt = node.store.attempt_by_htlc(channel.state.index, effect.id)
        if attempt is None or attempt.status != "pending":
            return  # told again after a reconnection
        node.store.finish_attempt(
            attempt.id, "complete", now=node.now(), preimage=effect.payment_preimage
        )
        node.store.complete_payment(effect.payment_hash, effect.payment_preimage, node.now())
        node.turn.after(lambda: self._tell(effect.payment_hash))

    def failed(self, channel: Channel, effect: HtlcFailed) -> None:
        node = self._node
        attempt = node.store.attempt_by_htlc(channel.state.index, effect.id)
        if attempt is None or attempt.status != "pending":
            return
        code, message = self._explain(attempt, effect)
        node.store.finish_attempt(
            attempt.id, "failed", now=node.now(), erroronion=effect.reason or None
        )
        node.store.fail_payment(effect.payment_hash, int(code), message, node.now())
        node.turn.after(lambda: self._tell(effect.payment_hash))

    def _explain(self, attempt: AttemptRow, effect: HtlcFailed) -> tuple[RpcErrorCode, str]:
        if effect.on_chain:
            return RpcErrorCode.PAY_TRY_OTHER_ROUTE, "The HTLC timed out on chain"
        if effect.malformed is not None:
            return (
                RpcErrorCode.PAY_TRY_OTHER_ROUTE,
                f"The peer could not read our onion (failure_code {effect.malformed[0]:#x})",
            )
        read = read_error(shared_secrets(attempt.session_key, [attempt.hops]), effect.reason)
        if read is None:
            return RpcErrorCode.PAY_UNPARSEABLE_ONION, "Malformed error reply"
        _, failure = read
        permanent = failure.is_permanent
        code = (
            RpcErrorCode.PAY_DESTINATION_PERM_FAIL
            if permanent
            else RpcErrorCode.PAY_TRY_OTHER_ROUTE
        )
        return code, f"Destination said {failure.name}"

    def _tell(self, payment_hash: bytes) -> None:
        row = self._node.store.payment(payment_hash)
        assert row is not None, "a payment that ended is in the store"
        for future in self._waiting.pop(payment_hash, []):
            if not future.done():
                future.set_result(row)
