"""Where a payee is asked for invoices: the endpoint that it registered on the chain.

    POST {"amount_msat": n, "root": hex}  ->  {"invoice": "lnbc…"}

The invoice commits, by its description hash, to the batch of shares that it is for
(channels.receipts): with its signature the payee acknowledges who is being paid for. Asking
costs nothing, so the same batch gets the same invoice again, and a stranger can have so many made
a minute and no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Final, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta

from channels import lightning_answers as answers
from channels.errors import OdaError
from channels.lightning import LightningError
from channels.receipts import Hex32, description
from channels.sum_tree import Sum
from channels.units import Msat

PATH: Final = "/payee/invoice"
MAX_BODY: Final = 1024
MAX_MSAT: Final = 100_000_000_000
"""1 BTC: no batch is larger."""
EXPIRY: Final = 3600
STALE: Final = 600
"""An invoice with fewer seconds to live is made anew."""
PER_MINUTE: Final = 60

_GONE: Final = (905, 906)
"""lightningd's codes of delinvoice: it is gone, or its status is another now."""


class Node(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
        deschashonly: bool | None = None,
    ) -> answers.NewInvoice: ...

    async def listinvoices(
        self, *, label: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Invoice]: ...

    async def delinvoice(self, label: str, status: str) -> answers.Invoice: ...


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount_msat: Annotated[int, Meta(ge=1, le=MAX_MSAT)]
    root: Hex32


class Payout:
    """clock: seconds, for the limit of new invoices."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.time) -> None:
        self._node = node
        self._clock = clock
        self._lock = asyncio.Lock()
        self._left, self._then = float(PER_MINUTE), clock()

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self._handle)]

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > MAX_BODY:
            return _refuse(413, "body-too-large", f"Send at most {MAX_BODY} bytes.")
        try:
            asked = msgspec.json.decode(body, type=Asked)
        except msgspec.DecodeError as error:
            return _refuse(400, "bad-request", f"{error}.")
        async with self._lock:
            try:
                text = await self._invoice(Sum(bytes.fromhex(asked.root), Msat(asked.amount_msat)))
            except OdaError as error:
                return _refuse(503, error.reason, str(error))
        if text is None:
            return _refuse(429, "too-many-invoices", "Ask again in a minute.")
        return web.json_response({"invoice": text})

    async def _invoice(self, batch: Sum) -> str | None:
        """None when too many were made just now."""
        label = f"oda-shares-{batch.hash.hex()}-{batch.amount}"
        for known in await self._node.listinvoices(label=label):
            lives = known.expires_at - self._clock() > STALE
            if known.bolt11 and (known.status == "paid" or (known.status == "unpaid" and lives)):
                # A paid one too: who asks again after a crash finds that it was paid.
                return known.bolt11
            try:
                await self._node.delinvoice(label, known.status)
            except LightningError as error:
                if error.code not in _GONE:
                    raise
        if not self._take():
            return None
        made = await self._node.invoice(
            batch.amount,
            label,
            description(batch),
            expiry=EXPIRY,
            deschashonly=True,
        )
        return made.bolt11

    def _take(self) -> bool:
        now = self._clock()
        left = min(float(PER_MINUTE), self._left + (now - self._then) * PER_MINUTE / 60)
        self._left, self._then = (left - 1 if left >= 1 else left), now
        return left >= 1


def _refuse(status: int, reason: str, sentence: str) -> web.Response:
    document = {"type": f"urn:oda:{reason}", "title": sentence, "status": status}
    return web.json_response(document, status=status, content_type="application/problem+json")
