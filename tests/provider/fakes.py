"""A Lightning node and an engine in memory, a clock that can be moved, and a provider on them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from channels import lightning_answers as answers
from channels.bolt import invoice as bolt11
from channels.bolt import keys
from channels.lightning import (
    LightningError,
    LightningUnreachable,
    PaymentComplete,
    PaymentFailed,
    PaymentOutcome,
    PaymentPending,
    PaymentUnknown,
)
from channels.units import Msat, UnixTime
from provider.api import ChatRequest, EmbeddingRequest, no_embeddings
from provider.app import Provider
from provider.decoding import Decoding, Token
from provider.engine import AnyRequest, Embeddings, Engine, GenerateRequest, Prompt
from provider.ledger import Ledger
from provider.places import Places
from provider.pricing import Price
from provider.serving import Models, Served
from provider.settings import Keys, ProviderSettings
from provider.upstreams import Upstreams
from tests.provider.clock import Clock
from tests.provider.payees import SHARES, PayeeWorld

MODEL = "letters"
PRICE = Price(Msat(50), Msat(250))
PACE = 10  # deposits of 8 sat, D is 16 sat


@dataclass
class Row:
    invoice: answers.Invoice
    preimage: bytes


@dataclass
class FakeNode:
    """Like channels.lightning.Lightning, with somebody on the other side who pays."""

    clock: Clock
    secret: bytes = b"\x11" * 32
    rows: dict[str, Row] = field(default_factory=dict)
    pay_index: int = 0
    refunds: dict[str, Msat] = field(default_factory=dict)
    outcomes: list[PaymentOutcome] = field(default_factory=list)
    """What the next refunds come to; complete when it is empty."""
    down: bool = False
    deaf: bool = False
    """waitanyinvoice says nothing; everything else works."""
    attempts: int = 0
    channels: list[answers.PeerChannel] = field(default_factory=list)
    _paid: asyncio.Event = field(default_factory=asyncio.Event)

    def _check(self) -> None:
        if self.down:
            raise LightningUnreachable("lightning-unreachable", "No Lightning node answers.")

    def text(self, amount: Msat | None, payment_hash: bytes, expiry: int) -> str:
        value = bolt11.Invoice(
            "bcrt",
            amount,
            UnixTime(int(self.clock())),
            payment_hash,
            payment_secret=bytes(32),
            description="oda",
            expiry=expiry,
            features=frozenset({8, 14}),
        )
        return bolt11.encode(value, self.secret)

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
        preimage: str | None = None,
    ) -> answers.NewInvoice:
        self._check()
        assert preimage is not None
        secret = bytes.fromhex(preimage)
        payment_hash = sha256(secret).digest()
        text = self.text(amount_msat, payment_hash, expiry or 3600)
        expires_at = UnixTime(int(self.clock()) + (expiry or 3600))
        row = answers.Invoice(
            label,
            payment_hash.hex(),
            "unpaid",
            expires_at,
            len(self.rows),
            bolt11=text,
            amount_msat=amount_msat,
        )
        self.rows[label] = Row(row, secret)
        return answers.NewInvoice(text, payment_hash.hex(), "00" * 32, expires_at, len(self.rows))

    async def delinvoice(self, label: str, status: str) -> answers.Invoice:
        self._check()
        row = self.rows.get(label)
        if row is None:
            raise LightningError(905, "no such invoice")
        if self._status(row) != status:
            raise LightningError(906, "the status is another")
        del self.rows[label]
        return row.invoice

    def _status(self, row: Row) -> str:
        if row.invoice.status == "unpaid" and self.clock() > row.invoice.expires_at:
            return "expired"
        return row.invoice.status

    async def listinvoices(
        self, *, label: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Invoice]:
        self._check()
        return [
            _with(row.invoice, status=self._status(row))
            for row in self.rows.values()
            if label in (None, row.invoice.label)
            and payment_hash in (None, row.invoice.payment_hash)
        ]

    async def waitanyinvoice(
        self,
        lastpay_index: int,
        timeout: int | None = None,  # noqa: ASYNC109  # lightningd's own parameter
    ) -> answers.Invoice | None:
        while True:
            self._check()
            for row in self.rows.values():
                index = row.invoice.pay_index
                if not self.deaf and index is not None and index > lastpay_index:
                    return row.invoice
            self._paid.clear()
            await self._paid.wait()

    async def pay_once(
        self, bolt11: str, *, maxfee: Msat, amount_msat: Msat | None = None
    ) -> PaymentOutcome:
        self.attempts += 1
        if bolt11 in self.refunds:
            return PaymentComplete("00" * 32, self.refunds[bolt11])
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, PaymentFailed | PaymentPending):
            return outcome
        assert amount_msat is not None
        if not isinstance(outcome, PaymentUnknown) or outcome.reason == "paid, but nobody knows":
            self.refunds[bolt11] = amount_msat
        return outcome or PaymentComplete("00" * 32, amount_msat)

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]:
        self._check()
        return self.channels

    def pay(self, text: str) -> bytes:
        """Somebody pays an invoice of this node; gives the preimage."""
        payment_hash = bolt11.decode(text).payment_hash.hex()
        row = next(r for r in self.rows.values() if r.invoice.payment_hash == payment_hash)
        assert self._status(row) == "unpaid"
        self.pay_index += 1
        row.invoice = _with(
            row.invoice,
            status="paid",
            pay_index=self.pay_index,
            amount_received_msat=row.invoice.amount_msat,
        )
        self._paid.set()
        return row.preimage

    def wake(self) -> None:
        self._paid.set()


def _with(invoice: answers.Invoice, **changes: Any) -> answers.Invoice:
    values = {name: getattr(invoice, name) for name in invoice.__struct_fields__}
    return answers.Invoice(**(values | changes))


class FakeEngine:
    """Letters that follow from prompt, seed and place. `computed` counts those asked for."""

    def __init__(self, weights_id: str = "first", model_id: str = MODEL) -> None:
        self.weights_id = weights_id
        self.model_id = model_id
        self.closed = False
        self.computed = 0
        self.fail_at: int | None = None
        self.stall_at: int | None = None
        self.hold = asyncio.Event()
        """What a stall waits for."""
        self.silent = False

    @property
    def context_length(self) -> int:
        return 4096

    @property
    def goes_on(self) -> bool:
        return True

    def read(self, request: AnyRequest, body: bytes) -> Prompt:
        if isinstance(request, EmbeddingRequest):
            raise no_embeddings(self.model_id)
        if isinstance(request, ChatRequest):
            text = "".join(message.text for message in request.messages).encode()
        else:
            text = request.text.encode()
        return Prompt(text, len(text))

    async def prompt_tokens(self, request: GenerateRequest, most: int) -> int:
        return most

    def replay(self, request: GenerateRequest, already: Sequence[int]) -> tuple[Token, ...]:
        return Decoding(request.max_tokens, request.stop).replay(already)

    async def generate(
        self, request: GenerateRequest, already: Sequence[int] = ()
    ) -> AsyncGenerator[Token, None]:
        decoding = Decoding(request.max_tokens, request.stop)
        decoding.replay(already)
        place = len(already)
        while decoding.finish_reason is None:
            await asyncio.sleep(0)
            if place == self.fail_at:
                raise RuntimeError("out of memory")
            if place == self.stall_at:
                await self.hold.wait()
            if self.closed:
                raise RuntimeError("closed")
            named = b"" if self.weights_id == "first" else self.weights_id.encode()
            digest = sha256(named + b"%d %d " % (request.seed, place) + request.prompt).digest()
            self.computed += 1
            place += 1
            token = decoding.feed(ord("a") + digest[0] % 26)
            if self.silent:
                token = Token(token.id, "", token.finish_reason)
            yield token

    async def embed(self, request: GenerateRequest) -> Embeddings:
        raise no_embeddings(self.model_id)

    def close(self) -> None:
        self.closed = True


class World:
    """A provider on a ledger, which can be killed and started again."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.clock = Clock()
        self.node = FakeNode(self.clock)
        self.engine = FakeEngine()
        self.serving: Engine = self.engine
        self.places: Places | None = None
        self.models: Models | None = None
        """What is offered, where that is not one engine."""
        self.upstreams: Upstreams | None = None
        self.settings = ProviderSettings(tokens_per_second=PACE, **settings)
        self.payees: PayeeWorld | None = None
        self.client: TestClient[Any, Any]
        self.provider: Provider
        self.ledger: Ledger

    async def start(self) -> None:
        self.open_shop()
        server = TestServer(self.provider.app())
        await server.start_server(shutdown_timeout=0.1)
        self.client = TestClient(server)

    def open_shop(self) -> None:
        """The provider as it starts: ledger, model, and a desk where there are payees."""
        self.ledger = Ledger(self.path / "provider.sqlite")
        served = Served(self.serving, PRICE, PACE, UnixTime(1_800_000_000), places=self.places)
        desk, models = None, self.models or Models([served])
        if self.payees is not None:
            provenance = self.payees.provenance
            models.swap(
                replace(
                    served,
                    model=provenance.model,
                    weights_root=provenance.weights_root,
                    shares=SHARES,
                )
            )
            desk = self.payees.desk(self.ledger, models, self.clock)
        self.provider = Provider(
            self.ledger,
            self.node,
            Keys(b"k" * 32),
            self.settings,
            "regtest",
            models,
            {"node_id": self.node_id.hex(), "address": "127.0.0.1:9735"},
            self.clock,
            desk=desk,
            upstreams=self.upstreams,
        )

    async def stop(self) -> None:
        await self.client.close()
        self.ledger.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def killed(self, to: Path) -> World:
        """The provider after a kill -9: what was durable, and nothing else."""
        to.mkdir()
        for file in self.path.iterdir():
            shutil.copy(file, to / file.name)
        again = World(to)
        again.node, again.clock, again.engine = self.node, self.clock, self.engine
        again.serving = self.serving
        return again

    async def settled(self) -> None:
        """Let everything that is ready run."""
        for _ in range(20):
            await asyncio.sleep(0)

    def return_invoice(self, number: int = 0) -> str:
        payment_hash = sha256(b"return %d" % number).digest()
        return FakeNode(self.clock, secret=b"\x33" * 32).text(None, payment_hash, 10**7)

    @property
    def node_id(self) -> bytes:
        return keys.public_key(self.node.secret)
