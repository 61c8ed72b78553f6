"""Payees and their Lightning nodes in memory, and a payer whose payments go every way they can."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count

from channels.bolt import invoice as bolt11
from channels.bolt import keys, signmessage
from channels.errors import RemoteProtocolError
from channels.http.session import Provenance
from channels.lightning import PaymentComplete, PaymentFailed, PaymentOutcome, PaymentUnknown
from channels.receipts import description
from channels.sum_tree import Sum
from channels.units import Msat, UnixTime
from provider.ledger import Answer, AnswerStatus, Ledger
from provider.serving import Models
from provider.settlement import PayTo, Rules
from provider.share_book import Backing
from provider.share_desk import ShareDesk
from provider.share_ledger import ShareLedger
from sidechain.fees import Beneficiaries, Terms
from sidechain.state import Version
from tests.provider.clock import Clock

SHARES = Terms(50_000, 10_000)
PROVIDER = b"\x11" * 32


@dataclass
class Payee:
    """One key of the sidechain with its node and endpoint."""

    name: str
    clock: Clock
    down: bool = False
    registered: bool = True
    received: Msat = Msat(0)
    invoices: dict[str, bytes] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        return sha256(b"key" + self.name.encode()).digest()

    @property
    def secret(self) -> bytes:
        return PROVIDER if self.name == "self" else sha256(self.name.encode()).digest()

    @property
    def pay_to(self) -> PayTo | None:
        if not self.registered:
            return None
        return PayTo(keys.public_key(self.secret), f"http://{self.name}/invoice")

    def invoice(
        self, amount: Msat, root: bytes, *, secret: bytes | None = None, text: str | None = None
    ) -> str:
        preimage = sha256(f"{self.name} {len(self.invoices)}".encode()).digest()
        described = text or description(Sum(root, amount))
        value = bolt11.Invoice(
            "bcrt",
            amount,
            UnixTime(int(self.clock())),
            sha256(preimage).digest(),
            payment_secret=bytes(32),
            description_hash=sha256(described.encode()).digest(),
            features=frozenset({8, 14}),
        )
        written = bolt11.encode(value, secret or self.secret)
        self.invoices[written] = preimage
        return written


_numbers = count()


def spend(shares: ShareLedger, session: bytes, period: int, amount: Msat) -> Answer:
    """An answer that cost so much, and is at its end."""
    name = f"{session.hex()}-{next(_numbers)}"
    answer = Answer(name, session, "chat", b"", 0, UnixTime(0), 0, AnswerStatus.FINISHED)
    answer = replace(answer, spent=amount, period=period)
    shares.ledger.save_answer(answer)
    return answer


class PayeeWorld:
    """Implements settlement's Payees, Payer and Ask, and is a sidechain on which the people are
    trainer, producer of the last block and producer of the one that took the weights."""

    provenance = Provenance(7, b"\x81" * 32, b"\x61" * 32, b"\x71" * 32)

    trouble: str | None = None

    def backing(self, model: bytes | None, weights_root: bytes | None) -> Backing | None:
        keys = [person.key for person in self.people]
        return Backing(self.provenance, Beneficiaries(keys[0], keys[1], keys[2]))

    def version(self, model: bytes) -> Version | None:
        return None

    async def signmessage(self, message: str) -> str:
        return signmessage.sign(PROVIDER, message)[1]

    def desk(self, ledger: Ledger, models: Models, clock: Clock) -> ShareDesk:
        rules = Rules("regtest", keys.public_key(PROVIDER), b"\x77" * 32, seconds=600)
        return ShareDesk(ledger, models, self, self, self, self.ask, rules, clock)

    def __init__(self, *names: str, seed: int = 0) -> None:
        self.clock = Clock()
        self.people = [Payee(name, self.clock) for name in names]
        self.outcomes: list[str] = []
        """What the next payments come to; "complete" when it is empty."""
        self.paid: dict[str, Msat] = {}
        self.attempts = 0
        self.asked = 0
        self.draw = random.Random(seed)

    def by_key(self, key: bytes) -> Payee:
        return next(each for each in self.people if each.key == key)

    async def payee(self, key: bytes) -> PayTo | None:
        return self.by_key(key).pay_to

    async def ask(self, endpoint: str, amount: Msat, root: bytes) -> str:
        self.asked += 1
        person = next(each for each in self.people if endpoint == f"http://{each.name}/invoice")
        if person.down:
            raise RemoteProtocolError("payee-unreachable", "It is down.")
        return person.invoice(amount, root)

    async def pay_once(
        self, invoice: str, *, maxfee: Msat, amount_msat: Msat | None = None
    ) -> PaymentOutcome:
        self.attempts += 1
        person = next(each for each in self.people if invoice in each.invoices)
        complete = PaymentComplete(person.invoices[invoice].hex(), Msat(0))
        if invoice in self.paid:
            return complete
        outcome = self.outcomes.pop(0) if self.outcomes else "complete"
        if outcome == "failed":
            return PaymentFailed("no route", 205)
        if outcome == "unknown":
            return PaymentUnknown("nobody knows")
        amount = bolt11.decode(invoice).amount_msat
        assert amount is not None
        person.received = Msat(person.received + amount)
        self.paid[invoice] = amount
        return PaymentUnknown("paid, but nobody knows") if outcome == "arrived" else complete
