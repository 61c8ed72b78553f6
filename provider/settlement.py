"""Paying shares: from what sessions owe to batches that payees have acknowledged.

What to do is decided in shares.py; here it is stored and carried out, in that order, so that a
crash at any point neither pays twice nor forgets. A payee that can't be reached or paid keeps its
batch open, and what is owed to it meanwhile is carried over to the next one.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp
import msgspec

from channels import receipts
from channels.errors import OdaError, RemoteProtocolError
from channels.http_body import read_body
from channels.lightning import PaymentComplete, PaymentFailed, PaymentOutcome
from channels.units import Msat, UnixTime
from provider import shares
from provider.share_ledger import ShareLedger
from provider.shares import Batch, BatchStatus

log = logging.getLogger(__name__)

TICK: Final = 1.0
LOOK: Final = 10
"""Seconds between sums over all that is owed."""
ANSWER_SECONDS: Final = 15
MAX_ANSWER: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class PayTo:
    """Where a key of the sidechain is paid, as its owner registered it."""

    node_id: bytes
    endpoint: str


class Payees(Protocol):
    async def payee(self, key: bytes) -> PayTo | None:
        """None for a key that never registered. Raises OdaError where the chain can't be asked."""


class Payer(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def pay_once(
        self, bolt11: str, *, maxfee: Msat, amount_msat: Msat | None = None
    ) -> PaymentOutcome: ...


class Ask(Protocol):
    async def __call__(self, endpoint: str, amount: Msat, root: bytes) -> str:
        """A payee's invoice for a batch. Raises OdaError."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When and how shares are paid.

    seconds, most: a settlement is due at the latest so long after the last one, or as soon as one
    payee is owed so much. smallest: less is carried over. fee_percent: of a batch, for routing.
    """

    network: str
    node_id: bytes
    secret: bytes
    seconds: int = 600
    most: Msat = Msat(1_000_000)
    smallest: Msat = Msat(1000)
    fee_percent: int = 5

    def maxfee(self, amount: Msat) -> Msat:
        return Msat(amount * self.fee_percent // 100)


class Settlement:
    def __init__(
        self,
        ledger: ShareLedger,
        node: Payer,
        payees: Payees,
        ask: Ask,
        rules: Rules,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._node = node
        self._payees = payees
        self._ask = ask
        self._rules = rules
        self._clock = clock
        self._last = self._looked = self._now()

    def _now(self) -> UnixTime:
        return UnixTime(int(self._clock()))

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.tick()
            except OdaError as error:
                log.warning("Settling shares is held up: %s", error)
            await asyncio.sleep(TICK)

    async def tick(self) -> None:
        """Make batches when it is time, and see to those that are not paid."""
        if self._is_due():
            await self.settle()
        open_batches = self._ledger.batches(BatchStatus.OPEN, BatchStatus.INVOICED)
        due = [batch for batch in open_batches if batch.next <= self._now()]
        await asyncio.gather(*(self._see_to(batch) for batch in due))

    def _is_due(self) -> bool:
        now = self._now()
        if now - self._last >= self._rules.seconds:
            return bool(self._ledger.unsettled())
        if now - self._looked < LOOK:
            return False
        self._looked = now
        return any(sum(owed.values()) >= self._rules.most for owed in self.carried().values())

    def carried(self) -> dict[bytes, dict[bytes, Msat]]:
        """By key and session: what is owed and in no batch."""
        owing: dict[bytes, dict[bytes, Msat]] = {}
        for session in self._ledger.unsettled():
            owed = shares.owed(self._ledger.periods(session))
            for key, amount in shares.carried(owed, self._ledger.batched(session)).items():
                owing.setdefault(key, {})[session] = amount
        return owing

    async def settle(self) -> None:
        """Put what is owed into batches: one per payee, none where one is not paid yet."""
        self._last = self._now()
        waiting = {
            batch.key for batch in self._ledger.batches(BatchStatus.OPEN, BatchStatus.INVOICED)
        }
        left: set[bytes] = set()
        owing = self.carried()
        number = self._ledger.next_batch()
        for key, amounts in owing.items():
            made = None
            if key not in waiting:
                rules = self._rules
                made = shares.gather(rules.secret, number, key, amounts, rules.smallest)
            if made is None:
                left |= amounts.keys()
                continue
            self._ledger.add_batch(*made)
            number += 1
        for session in self._ledger.unsettled():
            if session not in left:
                self._ledger.settled(session)
        await self._ledger.ledger.committed()

    async def _see_to(self, batch: Batch) -> None:
        try:
            if batch.status is BatchStatus.OPEN:
                opened = await self._invoice(batch)
                if opened is None:
                    return
                batch = opened
            await self._pay(batch)
        except OdaError as error:
            log.warning("Batch %d is put off: %s", batch.number, error)
            if batch.status is BatchStatus.OPEN:
                await self._save(shares.failed(batch, self._now()))

    async def _invoice(self, batch: Batch) -> Batch | None:
        """Ask the payee for an invoice; None where there is nobody to pay."""
        payee = await self._payees.payee(batch.key)
        if payee is None:
            raise RemoteProtocolError(
                "payee-not-registered", "The key has registered no Lightning node."
            )
        if payee.node_id == self._rules.node_id:
            await self._save(shares.own(batch))
            return None
        text = await self._ask(payee.endpoint, batch.amount, batch.root)
        payment_hash = receipts.check_invoice(
            text, self._rules.network, payee.node_id, batch.total, self._now()
        )
        invoiced = shares.invoiced(batch, text, payment_hash)
        try:
            await self._save(invoiced)
        except sqlite3.IntegrityError:
            raise RemoteProtocolError(
                "invoice-used", "The payee gave the invoice of another batch again."
            ) from None
        return invoiced

    async def _pay(self, batch: Batch) -> None:
        """pay_once asks what became of an earlier attempt before it does anything."""
        assert batch.invoice is not None  # it is INVOICED
        outcome = await self._node.pay_once(
            batch.invoice, maxfee=self._rules.maxfee(batch.amount), amount_msat=None
        )
        match outcome:
            case PaymentComplete():
                await self._save(shares.paid(batch, bytes.fromhex(outcome.preimage)))
            case PaymentFailed(reason):
                log.warning("Batch %d was not paid: %s", batch.number, reason)
                await self._save(shares.failed(batch, self._now()))
            case _:
                pass  # nobody knows yet: it stays as it is and is looked at again

    async def _save(self, batch: Batch) -> None:
        self._ledger.save_batch(batch)
        await self._ledger.ledger.committed()


class _Invoice(msgspec.Struct):
    invoice: str


def asking(http: aiohttp.ClientSession) -> Ask:
    """Ask over HTTP: POST {"amount_msat": …, "root": hex} to the endpoint, -> {"invoice": …}."""

    async def ask(endpoint: str, amount: Msat, root: bytes) -> str:
        document = {"amount_msat": amount, "root": root.hex()}
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with http.post(endpoint, json=document, allow_redirects=False) as response:
                    body = await read_body(response.content, MAX_ANSWER)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RemoteProtocolError(
                "payee-unreachable", f"The payee's endpoint does not answer ({error!r})."
            ) from error
        if response.status != 200 or len(body) > MAX_ANSWER:
            raise RemoteProtocolError(
                "payee-refused", f"The payee's endpoint answers with {response.status}."
            )
        try:
            return msgspec.json.decode(body, type=_Invoice).invoice
        except msgspec.DecodeError:
            raise RemoteProtocolError(
                "payee-refused", "The payee's endpoint answers with no invoice."
            ) from None

    return ask
