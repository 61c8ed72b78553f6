"""A Lightning node as far as invoices go: real BOLT 11 text, keys known to the test."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from channels.bolt import invoice, keys
from channels.units import Msat, Sat, UnixTime, msat

NOW = UnixTime(1_800_000_000)


@dataclass(frozen=True)
class Made:
    text: str
    preimage: bytes
    payment_hash: bytes


@dataclass(frozen=True)
class Payee:
    secret: bytes = b"\x11" * 32
    currency: str = "bcrt"

    @property
    def node_id(self) -> bytes:
        return keys.public_key(self.secret)

    def invoice(
        self, amount: Sat | None, number: int = 0, *, now: UnixTime = NOW, expiry: int = 600
    ) -> Made:
        preimage = sha256(b"%d" % number + self.secret).digest()
        payment_hash = sha256(preimage).digest()
        value = invoice.Invoice(
            self.currency,
            None if amount is None else Msat(msat(amount)),
            now,
            payment_hash,
            payment_secret=bytes(32),
            description="oda",
            expiry=expiry,
            features=frozenset({8, 14}),
        )
        return Made(invoice.encode(value, self.secret), preimage, payment_hash)
