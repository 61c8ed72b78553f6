"""What is owed to trainers and producers, and how it is settled: values and rules. PURE.

Two equations hold after every step, to the msat:

  spent = provider + trainer + producers            for every period (sidechain.fees.split)
  owed  = in batches + carried over                 for every session and key

What a session spends under one provenance is a period, and who is owed for it is fixed when the
period begins. Settling puts what is owed and in no batch yet into one batch per payee, whose
invoice commits to a Merkle-sum tree over its leaves (channels.receipts). A batch never changes
once it is made; it is paid once, by one invoice at a time.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from channels.http.session import Provenance
from channels.sum_tree import Leaf, Sum, SumTree
from channels.units import Msat, UnixTime
from sidechain.fees import Beneficiaries, Terms, by_key, split

RETRY_FIRST: Final = 10
RETRY_MOST: Final = 3600
"""Seconds between attempts at a payee that can't be reached or paid; they double."""


@dataclass(frozen=True, slots=True)
class Period:
    """What a session spent under one provenance, and whose keys are owed for it."""

    session: bytes
    provenance: Provenance
    beneficiaries: Beneficiaries
    terms: Terms
    spent: Msat = Msat(0)

    @property
    def owed(self) -> dict[bytes, Msat]:
        """By key; together with the provider's own part it is all that was spent."""
        return by_key(split(self.spent, self.beneficiaries, self.terms), self.beneficiaries)


def owed(periods: Iterable[Period]) -> dict[bytes, Msat]:
    """What one session owes in all, by key."""
    amounts: dict[bytes, Msat] = {}
    for period in periods:
        for key, amount in period.owed.items():
            amounts[key] = Msat(amounts.get(key, 0) + amount)
    return amounts


def carried(owed: Mapping[bytes, Msat], batched: Mapping[bytes, Msat]) -> dict[bytes, Msat]:
    """What one session owes beyond what is in batches.

    Where shares take all that is spent, a key's part may shrink by 1 msat as the sum grows; a
    batch that has it already stays, and the next one has that much less.
    """
    left = {key: Msat(amount - batched.get(key, 0)) for key, amount in owed.items()}
    return {key: amount for key, amount in left.items() if amount > 0}


# Batches -----------------------------------------------------------------------------------------


class BatchStatus(StrEnum):
    OPEN = "open"
    """It has no invoice; the payee is to be asked for one."""
    INVOICED = "invoiced"
    """Its invoice is being paid, may have been, or failed in a way that nobody knows."""
    PAID = "paid"
    OWN = "own"
    """The payee is the provider's own node: there is nobody to pay, and nothing to prove."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One payment to one payee. root: of the sum tree over its leaves, whose total is `amount`."""

    number: int
    key: bytes
    root: bytes
    amount: Msat
    status: BatchStatus = BatchStatus.OPEN
    invoice: str | None = None
    payment_hash: bytes | None = None
    preimage: bytes | None = None
    attempts: int = 0
    next: UnixTime = UnixTime(0)

    @property
    def total(self) -> Sum:
        """The tree's root, as a payee's invoice commits to it."""
        return Sum(self.root, self.amount)


def leaf(secret: bytes, number: int, session: bytes, amount: Msat) -> Leaf:
    """A leaf of batch `number`; its salt is derived, so that nothing more has to be kept."""
    salt = hmac.digest(secret, b"oda/leaf" + number.to_bytes(8, "big") + session, "sha256")
    return Leaf(session, amount, salt)


def gather(
    secret: bytes, number: int, key: bytes, amounts: Mapping[bytes, Msat], smallest: Msat
) -> tuple[Batch, tuple[Leaf, ...]] | None:
    """A batch for one key out of what sessions owe it; None while it is too little to pay."""
    leaves = tuple(
        leaf(secret, number, session, amount) for session, amount in sorted(amounts.items())
    )
    if not leaves or sum(each.amount for each in leaves) < smallest:
        return None
    root = SumTree(leaves).root
    return Batch(number, key, root.hash, root.amount), leaves


def invoiced(batch: Batch, invoice: str, payment_hash: bytes) -> Batch:
    """Store this before the invoice is paid."""
    return replace(batch, status=BatchStatus.INVOICED, invoice=invoice, payment_hash=payment_hash)


def paid(batch: Batch, preimage: bytes) -> Batch:
    return replace(batch, status=BatchStatus.PAID, preimage=preimage)


def own(batch: Batch) -> Batch:
    return replace(batch, status=BatchStatus.OWN)


def failed(batch: Batch, now: UnixTime) -> Batch:
    """It is certain that nothing was paid and nothing is under way: ask for another invoice
    later. The old one is never paid any more."""
    wait = min(RETRY_MOST, RETRY_FIRST << min(batch.attempts, 10))
    return replace(
        batch,
        status=BatchStatus.OPEN,
        invoice=None,
        payment_hash=None,
        attempts=batch.attempts + 1,
        next=UnixTime(now + wait),
    )
