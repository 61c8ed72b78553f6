"""RPC methods about invoices and payments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from channels.bolt import bech32, features, keys
from channels.bolt import invoice as bolt11
from channels.bolt.invoice import Invoice
from channels.errors import OdaError
from channels.node import rpc_params as params
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.store_invoices import InvoiceRow
from channels.node.store_payments import AttemptRow, PaymentRow
from channels.units import Msat

if TYPE_CHECKING:
    from channels.node.node import Node

DEFAULT_EXPIRY = 604_800
"""lightningd's: a week."""

SIGNATURE_GROUPS = 104
"""BOLT 11: 520 bits of signature and recovery id end the data part."""


class PaymentMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        return (*self._invoice_commands(), *self._pay_commands())

    def _invoice_commands(self) -> tuple[Command, ...]:
        label = Param("label", True, params.label)
        return (
            Command(
                "invoice",
                (
                    Param("amount_msat", True, params.msat_or_any),
                    label,
                    Param("description", True, params.string),
                    Param("expiry", False, params.u64, DEFAULT_EXPIRY),
                    Param("fallbacks", False, params.array(params.string)),
                    Param("preimage", False, params.secret),
                    Param("cltv", False, params.u32),
                    Param("deschashonly", False, params.boolean, False),
                ),
                self.invoice,
                "Create an invoice.",
            ),
            Command(
                "delinvoice",
                (label, Param("status", True, params.string)),
                self.delinvoice,
                "Delete an invoice that has this status.",
            ),
            Command(
                "listinvoices",
                (
                    Param("label", False, params.label),
                    Param("invstring", False, params.string),
                    Param("payment_hash", False, params.payment_hash),
                ),
                self.listinvoices,
                "Invoices, or one of them.",
            ),
            Command(
                "waitinvoice",
                (label,),
                self.waitinvoice,
                "Wait until an invoice is paid or expires.",
                abandonable=True,
            ),
            Command(
                "waitanyinvoice",
                (
                    Param("lastpay_index", False, params.u64, 0),
                    Param("timeout", False, params.u64),
                ),
                self.waitanyinvoice,
                "Wait for the next paid invoice.",
                abandonable=True,
            ),
        )

    def _pay_commands(self) -> tuple[Command, ...]:
        amount = Param("amount_msat", False, params.msat)
        maxfee = Param("maxfee", False, params.msat)
        retry_for = Param("retry_for", False, params.u32, 60)
        listing = (
            Param("bolt11", False, params.string),
            Param("payment_hash", False, params.payment_hash),
            Param("status", False, params.one_of("pending", "complete", "failed")),
        )
        return (
            Command(
                "decode", (Param("string", True, params.string),), self.decode, "Read BOLT 11."
            ),
            Command(
                "xpay",
                (Param("invstring", True, params.string), amount, maxfee, retry_for),
                self.xpay,
                "Pay an invoice.",
            ),
            Command(
                "pay",
                (Param("bolt11", True, params.string), amount, maxfee, retry_for),
                self.pay,
                "Pay an invoice; one that is paid answers with its preimage. Use xpay.",
            ),
            Command("listpays", listing, self.listpays, "Payments by invoice."),
            Command("listsendpays", listing, self.listsendpays, "Every attempt of a payment."),
        )

    # --- invoices --------------------------------------------------------------------------------

    async def invoice(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        for name in ("fallbacks", "cltv"):
            if arguments[name]:
                raise RpcMethodError(
                    RpcErrorCode.INVALID_PARAMS, f"{name}: not supported by the embedded node"
                )
        row, secret = self._node.invoices.create(
            amount_msat=arguments["amount_msat"],
            label=arguments["label"],
            description=arguments["description"],
            expiry=arguments["expiry"],
            now=self._node.now(),
            preimage=arguments["preimage"],
            deschashonly=arguments["deschashonly"],
        )
        await self._node.turn.committed()
        return {
            "bolt11": row.bolt11,
            "payment_hash": row.payment_hash.hex(),
            "payment_secret": secret.hex(),
            "expires_at": row.expires_at,
            "created_index": row.created_index,
        }

    async def delinvoice(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        node.store.expire_invoices(node.now())
        row = node.store.invoice_by_label(arguments["label"])
        if row is None:
            raise RpcMethodError(RpcErrorCode.INVOICE_NOT_FOUND, "Unknown invoice")
        if row.status != arguments["status"]:
            raise RpcMethodError(
                RpcErrorCode.INVOICE_STATUS_UNEXPECTED,
                f"Invoice status is {row.status} not {arguments['status']}",
                {"current_status": row.status, "expected_status": arguments["status"]},
            )
        node.store.delete_invoice(row.label)
        node.turn.after(node.invoices.wake)
        await node.turn.committed()
        return describe_invoice(row)

    async def listinvoices(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        if node.store.expire_invoices(node.now()):
            node.turn.after(node.invoices.wake)
        _only_one(arguments, "label", "invstring", "payment_hash")
        label, payment_hash = arguments["label"], arguments["payment_hash"]
        if arguments["invstring"] is not None:
            payment_hash = _decoded(arguments["invstring"]).payment_hash
        if label is not None:
            rows = [node.store.invoice_by_label(label)]
        elif payment_hash is not None:
            rows = [node.store.invoice_by_hash(payment_hash)]
        else:
            rows = list(node.store.list_invoices())
        return {"invoices": [describe_invoice(row) for row in rows if row is not None]}

    async def waitinvoice(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        while True:
            node.store.expire_invoices(node.now())
            row = node.store.invoice_by_label(arguments["label"])
            if row is None:
                raise RpcMethodError(RpcErrorCode.LIGHTNINGD, "Label not found")
            if row.status == "paid":
                await node.turn.committed()
                return describe_invoice(row)
            if row.status == "expired":
                raise RpcMethodError(
                    RpcErrorCode.INVOICE_EXPIRED_DURING_WAIT,
                    "Invoice expired during wait",
                    describe_invoice(row),
                )
            await node.invoices.changed(max(1, row.expires_at - node.now()))

    async def waitanyinvoice(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        loop = asyncio.get_running_loop()
        timeout = arguments["timeout"]
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            row = node.store.first_paid_after(arguments["lastpay_index"])
            if row is not None:
                await node.turn.committed()
                return describe_invoice(row)
            left = None if deadline is None else deadline - loop.time()
            if left is not None and (left <= 0 or not await node.invoices.changed(left)):
                raise RpcMethodError(
                    RpcErrorCode.INVOICE_WAIT_TIMED_OUT, "Timed out while waiting for invoice"
                )
            if left is None:
                await node.invoices.changed(None)

    # --- payments --------------------------------------------------------------------------------

    async def decode(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        text = arguments["string"].strip().lower().removeprefix("lightning:")
        invoice = _decoded(text)
        answer: dict[str, Any] = {
            "type": "bolt11 invoice",
            "valid": True,
            "currency": invoice.currency,
            "created_at": invoice.timestamp,
            "expiry": invoice.expiry,
            "payee": invoice.payee.hex(),
            "min_final_cltv_expiry": invoice.min_final_cltv_expiry,
            "payment_hash": invoice.payment_hash.hex(),
            "signature": _signature(text).hex(),
            "features": features.encode_bits(invoice.features).hex(),
        }
        optional = {
            "amount_msat": invoice.amount_msat,
            "description": invoice.description,
            "description_hash": invoice.description_hash,
            "payment_secret": invoice.payment_secret,
            "payment_metadata": invoice.payment_metadata,
        }
        for name, value in optional.items():
            if value is not None:
                answer[name] = value.hex() if isinstance(value, bytes) else value
        answer |= _lists(invoice)
        return answer

    async def xpay(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        invoice, amount = _payable(arguments["invstring"], arguments["amount_msat"])
        paid = await self._node.payments.pay(
            arguments["invstring"],
            invoice,
            amount,
            maxfee=arguments["maxfee"],
            retry_for=arguments["retry_for"],
        )
        return {
            "payment_preimage": paid.payment_preimage.hex(),
            "amount_msat": paid.amount_msat,
            "amount_sent_msat": paid.amount_sent_msat,
            "failed_parts": paid.failed_parts,
            "successful_parts": paid.successful_parts,
        }

    async def pay(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        invoice, amount = _payable(arguments["bolt11"], arguments["amount_msat"])
        node = self._node
        before = node.store.payment(invoice.payment_hash)
        if before is None or before.status != "complete":
            await node.payments.pay(
                arguments["bolt11"],
                invoice,
                amount,
                maxfee=arguments["maxfee"],
                retry_for=arguments["retry_for"],
            )
        row = node.store.payment(invoice.payment_hash)
        assert row is not None and row.preimage is not None, "a payment that succeeded is stored"
        return {
            "payment_preimage": row.preimage.hex(),
            "payment_hash": row.payment_hash.hex(),
            "destination": row.destination.hex(),
            "created_at": row.created_at,
            "parts": self._parts(row.payment_hash),
            "amount_msat": row.amount_msat,
            "amount_sent_msat": row.amount_sent_msat,
            "status": "complete",
        }

    async def listpays(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        payment_hash, status = _wanted_hash(arguments), arguments["status"]
        store = self._node.store
        if payment_hash is None:
            rows = store.list_payments(status)
        else:
            row = store.payment(payment_hash)
            rows = [row] if row is not None and status in (None, row.status) else []
        return {"pays": [self._describe_payment(row) for row in rows]}

    def _parts(self, payment_hash: bytes) -> int:
        return sum(a.status == "complete" for a in self._node.store.attempts(payment_hash))

    def _describe_payment(self, row: PaymentRow) -> dict[str, Any]:
        parts = self._node.store.attempts(row.payment_hash)
        return describe_payment(row, [part for part in parts if part.status != "failed"])

    async def listsendpays(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        rows = self._node.store.attempts(_wanted_hash(arguments), arguments["status"])
        return {"payments": [describe_attempt(self._node, row) for row in rows]}


def describe_attempt(node: Node, row: AttemptRow) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "created_index": row.id,
        "id": row.id,
        "payment_hash": row.payment_hash.hex(),
        "groupid": row.groupid,
        "partid": row.partid,
        "amount_msat": row.amount_msat,
        "amount_sent_msat": row.amount_sent_msat,
        "created_at": row.created_at,
        "status": row.status,
    }
    payment = node.store.payment(row.payment_hash)
    if payment is not None:
        entry["destination"] = payment.destination.hex()
        if payment.bolt11:
            entry["bolt11"] = payment.bolt11
    if row.completed_at is not None:
        entry["completed_at"] = row.completed_at
    if row.preimage is not None:
        entry["payment_preimage"] = row.preimage.hex()
    if row.erroronion is not None:
        entry["erroronion"] = row.erroronion.hex()
    return entry


def _decoded(text: str) -> Invoice:
    try:
        return bolt11.decode(text)
    except OdaError as error:
        raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, f"Invalid bolt11: {error}") from error


def _payable(text: str, amount: Msat | None) -> tuple[Invoice, Msat]:
    """The invoice and what to pay: its own amount, or the caller's where it has none."""
    invoice = _decoded(text)
    if invoice.amount_msat is None:
        if not amount:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "amount_msat parameter required")
        return invoice, amount
    if amount not in (None, invoice.amount_msat):
        raise RpcMethodError(
            RpcErrorCode.INVALID_PARAMS, "amount_msat parameter unnecessary: the invoice has one"
        )
    return invoice, invoice.amount_msat


def _only_one(arguments: Arguments, *names: str) -> None:
    if sum(arguments[name] is not None for name in names) > 1:
        raise RpcMethodError(
            RpcErrorCode.INVALID_PARAMS, f"Can only specify one of {', '.join(names)}"
        )


def _wanted_hash(arguments: Arguments) -> bytes | None:
    _only_one(arguments, "bolt11", "payment_hash")
    if arguments["bolt11"] is not None:
        return _decoded(arguments["bolt11"]).payment_hash
    wanted: bytes | None = arguments["payment_hash"]
    return wanted


def _signature(text: str) -> bytes:
    groups = bech32.from_characters(text[text.rindex("1") + 1 : -6])
    return keys.der(bech32.from_groups(groups[-SIGNATURE_GROUPS:])[:64])


def _lists(invoice: Invoice) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if invoice.fallbacks:
        answer["fallbacks"] = [
            {
                "type": {17: "P2PKH", 18: "P2SH"}.get(version, f"P2W-v{version}"),
                "addr": invoice.fallback_address(index),
                "hex": invoice.fallback_script(index).hex(),
            }
            for index, (version, _) in enumerate(invoice.fallbacks)
        ]
    if invoice.routes:
        answer["routes"] = [
            [
                {
                    "pubkey": hop.pubkey.hex(),
                    "short_channel_id": str(hop.short_channel_id),
                    "fee_base_msat": hop.fee_base_msat,
                    "fee_proportional_millionths": hop.fee_proportional_millionths,
                    "cltv_expiry_delta": hop.cltv_expiry_delta,
                }
                for hop in route
            ]
            for route in invoice.routes
        ]
    return answer


def describe_invoice(row: InvoiceRow) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "label": row.label,
        "payment_hash": row.payment_hash.hex(),
        "status": row.status,
        "expires_at": row.expires_at,
        "created_index": row.created_index,
        "bolt11": row.bolt11,
        "description": row.description,
    }
    if row.amount_msat is not None:
        entry["amount_msat"] = row.amount_msat
    if row.updated_index is not None:
        entry["updated_index"] = row.updated_index
    if row.status == "paid":
        entry |= {
            "pay_index": row.pay_index,
            "amount_received_msat": row.amount_received_msat,
            "paid_at": row.paid_at,
            "payment_preimage": row.preimage.hex(),
        }
    return entry


def describe_payment(row: PaymentRow, parts: Sequence[AttemptRow]) -> dict[str, Any]:
    """`parts`: those that have not failed; what is under way counts as sent (lightningd)."""
    entry: dict[str, Any] = {
        "created_index": row.created_index,
        "payment_hash": row.payment_hash.hex(),
        "status": row.status,
        "destination": row.destination.hex(),
        "created_at": row.created_at,
    }
    if row.bolt11:
        entry["bolt11"] = row.bolt11
    if row.status == "complete" and row.preimage is not None:
        entry |= {
            "amount_msat": row.amount_msat,
            "completed_at": row.completed_at,
            "amount_sent_msat": row.amount_sent_msat,
            "preimage": row.preimage.hex(),
        }
        if len(parts) > 1:
            entry["number_of_parts"] = len(parts)
    else:
        entry["amount_sent_msat"] = sum(part.amount_sent_msat for part in parts)
    if row.status == "pending":
        entry["amount_msat"] = sum(part.amount_msat for part in parts)
    return entry
