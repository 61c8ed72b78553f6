"""Our own RPC methods about hold invoices: paid now, settled or canceled later by their maker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channels.node import rpc_params as params
from channels.node.invoices import MIN_FINAL_CLTV_EXPIRY
from channels.node.rpc_params import Param
from channels.node.rpc_payments import DEFAULT_EXPIRY
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.store_invoices import InvoiceRow

if TYPE_CHECKING:
    from channels.node.node import Node

DEFAULT_CLTV = 144
"""Blocks: how long a payment may be held, less what it takes to claim it on chain."""


class HoldMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        payment_hash = Param("payment_hash", True, params.payment_hash)
        return (
            Command(
                "oda-holdinvoice",
                (
                    payment_hash,
                    Param("amount_msat", True, params.msat_or_any),
                    Param("label", True, params.label),
                    Param("description", True, params.string),
                    Param("expiry", False, params.u64, DEFAULT_EXPIRY),
                    Param("cltv", False, params.u16, DEFAULT_CLTV),
                ),
                self.holdinvoice,
                "Create an invoice whose payment waits until it is settled or canceled.",
            ),
            Command(
                "oda-holdinvoice-settle",
                (Param("preimage", True, params.secret),),
                self.settle,
                "Take the payment of a hold invoice.",
            ),
            Command(
                "oda-holdinvoice-cancel",
                (payment_hash,),
                self.cancel,
                "Give the payment of a hold invoice back, and accept no other.",
            ),
            Command(
                "oda-listholdinvoices",
                (Param("payment_hash", False, params.payment_hash),),
                self.listholdinvoices,
                "Hold invoices: open, accepted, settled or canceled.",
            ),
        )

    async def holdinvoice(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        row, secret = node.invoices.create(
            amount_msat=arguments["amount_msat"],
            label=arguments["label"],
            description=arguments["description"],
            expiry=arguments["expiry"],
            now=node.now(),
            hold=arguments["payment_hash"],
            cltv=max(arguments["cltv"], MIN_FINAL_CLTV_EXPIRY),
        )
        await node.turn.committed()
        return {**self._describe(row), "bolt11": row.bolt11, "payment_secret": secret.hex()}

    async def settle(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        row = self._node.invoices.settle_hold(arguments["preimage"])
        await self._node.turn.committed()
        return self._describe(row)

    async def cancel(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        row = self._node.invoices.cancel_hold(arguments["payment_hash"])
        await self._node.turn.committed()
        return self._describe(row)

    async def listholdinvoices(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        wanted = arguments["payment_hash"]
        rows = [
            row
            for row in self._node.store.list_invoices()
            if row.hold is not None and wanted in (None, row.payment_hash)
        ]
        return {"holdinvoices": [self._describe(row) for row in rows]}

    def _describe(self, row: InvoiceRow) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "label": row.label,
            "payment_hash": row.payment_hash.hex(),
            "state": "settled" if row.status == "paid" else row.hold,
            "expires_at": row.expires_at,
        }
        if row.amount_msat is not None:
            entry["amount_msat"] = row.amount_msat
        held = self._node.invoices.held.received_msat(row.payment_hash)
        if row.amount_received_msat is not None:
            entry["amount_received_msat"] = row.amount_received_msat
        elif held:
            entry["amount_held_msat"] = held
        return entry
