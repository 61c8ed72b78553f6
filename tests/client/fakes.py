"""A user's Lightning node in memory, and a provider on a port that survives its being killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from channels import lightning_answers as answers
from channels.bolt import invoice as bolt11
from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut
from channels.http.scheme import Challenge, parse_challenges
from channels.lightning import (
    LightningError,
    PaymentComplete,
    PaymentFailed,
    PaymentOutcome,
    PaymentPending,
    PaymentUnknown,
)
from channels.units import BlockHeight, Msat, Sat, UnixTime
from tests.provider.fakes import FakeNode, World

LOST = "lost"
"""An outcome: nobody can say, and the node has no trace of it."""


class Shop(World):
    """`World` on one port, so that its client finds it again after a kill."""

    port: int | None = None
    lie: Callable[[Challenge], Challenge | None] | None = None
    """What becomes of each session offer that leaves; None: it does not leave."""

    async def _tamper(self, request: web.Request, response: web.StreamResponse) -> None:
        lines = response.headers.popall("WWW-Authenticate", [])
        for challenge in parse_challenges(lines):
            told = self.lie(challenge) if self.lie and challenge.intent == "session" else challenge
            if told is not None:
                response.headers.add("WWW-Authenticate", told.to_header())

    async def start(self) -> None:
        self.open_shop()
        app = self.provider.app()
        app.on_response_prepare.append(self._tamper)
        server = TestServer(app, port=self.port)
        await server.start_server(shutdown_timeout=0.1)
        self.port = server.port
        self.client = TestClient(server)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def kill(self, to: Path) -> Shop:
        """It is gone in an instant; what comes back has what was durable."""
        again = self.killed(to)
        shop = Shop(again.path)
        shop.node, shop.clock, shop.engine = self.node, self.clock, self.engine
        shop.settings, shop.port, shop.payees = self.settings, self.port, self.payees
        await self.stop()
        return shop


@dataclass
class UserNode:
    """Like channels.lightning.Lightning. It pays the invoices of `shop`, and sees refunds.

    outcomes: what the next payments come to; they succeed when it is empty.
    """

    shop: FakeNode
    outcomes: list[PaymentOutcome | str] = field(default_factory=list)
    paid: dict[str, PaymentOutcome] = field(default_factory=dict)
    invoices: dict[str, answers.Invoice] = field(default_factory=dict)
    network: str = "regtest"
    attempts: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """Payments wait for it, and go on when nobody waits for them any more."""
    channels: list[answers.PeerChannel] = field(default_factory=list)

    async def getinfo(self) -> answers.NodeInfo:
        node_id, none = "02" * 33, Msat(0)
        return answers.NodeInfo(
            node_id, "user", self.network, BlockHeight(101), "1", 0, 0, 0, 0, none
        )

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]:
        return self.channels

    async def invoice(
        self, amount_msat: Msat | None, label: str, description: str, *, expiry: int | None = None
    ) -> answers.NewInvoice:
        payment_hash = sha256(label.encode()).digest()
        lifetime = expiry or 3600
        text = FakeNode(self.shop.clock, secret=b"\x33" * 32).text(None, payment_hash, lifetime)
        expires_at = UnixTime(int(self.shop.clock()) + lifetime)
        self.invoices[label] = answers.Invoice(
            label, payment_hash.hex(), "unpaid", expires_at, 1, bolt11=text
        )
        return answers.NewInvoice(text, payment_hash.hex(), "00" * 32, expires_at, 1)

    async def listinvoices(self, *, label: str | None = None) -> list[answers.Invoice]:
        return [self._seen(i) for i in self.invoices.values() if label in (None, i.label)]

    def _seen(self, invoice: answers.Invoice) -> answers.Invoice:
        received = self.shop.refunds.get(str(invoice.bolt11))
        if received is None:
            return invoice
        values: dict[str, Any] = {n: getattr(invoice, n) for n in invoice.__struct_fields__}
        return answers.Invoice(**values | {"status": "paid", "amount_received_msat": received})

    async def waitinvoice(self, label: str) -> answers.Invoice:
        while self._seen(self.invoices[label]).status != "paid":  # noqa: ASYNC110  # a fake has no event
            await asyncio.sleep(0.01)
        return self._seen(self.invoices[label])

    async def listpays(self, *, bolt11: str | None = None) -> list[answers.Pay]:
        outcome = self.paid.get(str(bolt11))
        return [] if outcome is None else [answers.Pay("00" * 32, "pending", UnixTime(0))]

    async def pay_once(self, bolt11: str, *, maxfee: Msat) -> PaymentOutcome:
        known = self.paid.get(bolt11)
        if isinstance(known, PaymentComplete):
            return known
        self.attempts.append(bolt11)
        if self.hold is not None:
            self.paid[bolt11] = PaymentPending()
            await self.hold.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome == LOST:
            return PaymentUnknown("nobody knows")
        if isinstance(outcome, PaymentFailed):
            self.paid[bolt11] = outcome
            return outcome
        self.finish(bolt11)
        return outcome if isinstance(outcome, PaymentUnknown) else self.paid[bolt11]

    def finish(self, text: str) -> None:
        """The payment arrives."""
        preimage = self.shop.pay(text)
        amount = bolt11.decode(text).amount_msat
        assert amount is not None
        self.paid[text] = PaymentComplete(preimage.hex(), amount)

    async def payment_outcome(self, bolt11: str) -> PaymentOutcome:
        return self.paid.get(bolt11, PaymentUnknown("no trace"))

    # What `oda open` and `oda close --channel` need ----------------------------------------------

    coins: int = 1_000_000
    spends: int = 0
    """What the coin had that went into the last channel."""
    fee: int = 305
    funded: list[dict[str, object]] = field(default_factory=list)
    refuses: LightningError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        return None

    async def listfunds(self, spent: bool | None = None) -> answers.Funds:
        coin = answers.FundsOutput("11" * 32, 0, Msat(self.coins * 1000), "", "confirmed", False)
        old = answers.FundsOutput("00" * 32, 0, Msat(self.spends * 1000), "", "spent", False)
        return answers.Funds([coin, *([old] if spent else [])], [])

    async def connect(
        self, node_id: str, host: str | None = None, port: int | None = None
    ) -> answers.Connected:
        if port == 1:
            raise LightningError(401, "All addresses failed: connection refused")
        return answers.Connected(node_id, "", "out")

    async def fundchannel(
        self, node_id: str, amount: int, **given: object
    ) -> answers.FundedChannel:
        if self.refuses is not None:
            raise self.refuses
        self.funded.append({"node_id": node_id, "amount": amount, **given})
        self.spends = self.coins
        self.coins -= amount + self.fee
        self.channels.append(
            answers.PeerChannel(
                node_id,
                True,
                "CHANNELD_NORMAL",
                "local",
                channel_id="cc" * 32,
                spendable_msat=Msat((amount - 1546) * 1000),
                our_reserve_msat=Msat(1_000_000),
                their_reserve_msat=Msat(546_000),
                to_us_msat=Msat((amount - 546) * 1000),
            )
        )
        script = bytes.fromhex("0014" + "dd" * 20)
        transaction = Transaction(
            version=2,
            inputs=(TxIn(OutPoint(bytes(32), 0)),),
            outputs=(TxOut(Sat(amount), script), TxOut(Sat(self.coins), script)),
            locktime=0,
        )
        return answers.FundedChannel(transaction.serialize().hex(), "aa" * 32, 0, "cc" * 32)

    agrees: bool = True
    """To a mutual close, which its node would otherwise do without."""
    closes: list[answers.Close] = field(default_factory=list)

    async def close(self, channel: str, unilateraltimeout: int = 60) -> answers.Closed:
        txid = "bb" * 32
        if self.agrees:
            self.channels.clear()
            return answers.Closed("mutual", txids=[txid])
        [one] = self.channels
        self.channels[:] = [msgspec.structs.replace(one, state="AWAITING_UNILATERAL")]
        anchor = answers.CloseOutput(txid, 0, "ANCHOR_TO_US", Msat(330_000), "ignored")
        ours = answers.CloseOutput(
            *(txid, 1, "DELAYED_OUTPUT_TO_US", Msat(40_000_000), "waiting"),
            claimable_blockheight=BlockHeight(107),
        )
        close = answers.Close(
            *(one.peer_id, channel, "AWAITING_UNILATERAL", "ours", txid),
            confirmed=False,
            blockheight=BlockHeight(102),
            outputs=[anchor, ours],
        )
        self.closes.append(close)
        return answers.Closed("unilateral", txids=[txid])

    async def listcloses(self, node_id: str | None = None) -> list[answers.Close]:
        return self.closes
