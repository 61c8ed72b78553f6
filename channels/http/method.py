"""The method `lightning`: what its intents `charge` and `session` have in common. PURE.

Sources: draft-lightning-charge-00 and draft-lightning-session-00. Departures from them are
marked where they are made.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeVar

from channels.bolt import invoice as bolt11
from channels.errors import LocalProtocolError, RemoteProtocolError, UserError
from channels.http.scheme import Challenge, Credential, Problem, malformed
from channels.units import Sat, UnixTime, msat

METHOD: Final = "lightning"

# The networks of the draft and the invoice prefixes of BOLT 11.
CURRENCIES: Final[Mapping[str, str]] = {"mainnet": "bc", "signet": "tbs", "regtest": "bcrt"}

MAX_SAT: Final = 21_000_000 * 100_000_000

_HEX32: Final = re.compile(r"[0-9a-f]{64}")
_DECIMAL: Final = re.compile(r"[0-9]{1,19}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Issued:
    """What the server stored when it made an offer; this counts, never what is echoed.

    amount: of the invoice; 0 where the challenge has none.
    session: the session that the offer was made for, None for an offer to anybody.
    settled: whether the Lightning node says that the invoice was paid.
    """

    challenge: Challenge
    payment_hash: bytes
    amount: Sat
    expires_at: UnixTime
    session: bytes | None = None
    settled: bool = False


# Reading -----------------------------------------------------------------------------------------


def hex32(value: object, name: str) -> bytes:
    """64 lower-case hex digits from a credential's payload. Raises Problem."""
    if not isinstance(value, str) or not _HEX32.fullmatch(value):
        raise malformed(f"`{name}` must be 64 lower-case hex digits.")
    return bytes.fromhex(value)


def offered_hash(value: object) -> bytes:
    """A hash from an offer. Raises RemoteProtocolError."""
    if not isinstance(value, str) or not _HEX32.fullmatch(value):
        raise bad_offer("a hash in it is not 64 lower-case hex digits")
    return bytes.fromhex(value)


def offered_number(value: object, name: str, *, least: int = 1, most: int = MAX_SAT) -> int:
    """A decimal string from an offer. Raises RemoteProtocolError."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise bad_offer(f"its `{name}` is not a decimal string")
    if not least <= int(value) <= most:
        raise bad_offer(f"its `{name}` is out of range")
    return int(value)


def of_offer(read: Callable[[], T]) -> T:
    """Read a part of a challenge on the client's side, where a malformed one is a bad offer."""
    try:
        return read()
    except Problem as problem:
        raise bad_offer(str(problem)) from None


def bad_offer(what: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-offer", f"The provider's offer can't be used: {what}.")


# Server ------------------------------------------------------------------------------------------


def check_own_invoice(text: str, payment_hash: bytes, amount: Sat, expires: UnixTime) -> None:
    """Section "Method Details": servers verify an invoice before they issue a challenge for it.

    Raises LocalProtocolError.
    """
    invoice = bolt11.decode(text)
    if (invoice.payment_hash, invoice.amount_msat) != (payment_hash, msat(amount)):
        raise LocalProtocolError("wrong-invoice", "The node's invoice is not what was asked for.")
    if expires > invoice.expires_at:
        raise LocalProtocolError("wrong-invoice", "The challenge would outlive its invoice.")


def check_echo(credential: Credential, stored: Issued | None) -> Issued:
    """Section "Verification Procedure": the challenge is known and echoed exactly.

    Raises Problem.
    """
    if stored is None or credential.challenge != stored.challenge:
        raise Problem(
            "lightning/unknown-challenge", "No such challenge was made here; ask for a new one."
        )
    return stored


def check_preimage(preimage: bytes, payment_hash: bytes) -> None:
    """Raises Problem."""
    if not hmac.compare_digest(sha256(preimage).digest(), payment_hash):
        raise Problem(
            "lightning/invalid-preimage", "The preimage does not hash to the payment hash."
        )


def check_paid(issued: Issued, preimage: bytes, now: UnixTime, expired: str) -> None:
    """The proof, then the payment itself. `expired` is the intent's slug. Raises Problem.

    Departure: an expired challenge whose invoice was paid is honoured, because refusing it would
    keep the payer's money. And the settled invoice counts, not the preimage alone, which every
    hop of the payment knows.
    """
    check_preimage(preimage, issued.payment_hash)
    if issued.settled:
        return
    if now >= issued.expires_at:
        raise Problem(expired, "This challenge has expired; ask for a new one.")
    raise Problem("verification-failed", "The invoice of this challenge has not been paid.")


# Client ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows; every invoice is checked against it before it is paid.

    network: "regtest", "signet" or "mainnet".
    max_payment: the most that one invoice may ask for.
    payee: the node that must be paid, where the user knows it (33 bytes).
    """

    network: str
    max_payment: Sat
    payee: bytes | None = None


@dataclass(frozen=True, slots=True)
class Payable:
    """An offer that agrees with itself and with the user's limits."""

    challenge: Challenge
    invoice: str
    payment_hash: bytes
    amount: Sat
    expires_at: UnixTime
    payee: bytes


def check_invoice(
    challenge: Challenge,
    text: object,
    payment_hash: bytes | None,
    amount: Sat,
    limits: Limits,
    now: UnixTime,
) -> Payable:
    """The invoice is authoritative, and everything around it must agree with it.

    Raises RemoteProtocolError; nothing may be paid then.
    """
    if not isinstance(text, str):
        raise bad_offer("it has no invoice")
    try:
        invoice = bolt11.decode(text)
        bolt11.check_payable(invoice, CURRENCIES[limits.network], now)
    except UserError as error:
        raise RemoteProtocolError(error.reason, f"The provider's offer: {error}") from None
    if invoice.amount_msat != msat(amount):
        raise RemoteProtocolError("wrong-amount", "The invoice asks for another amount.")
    if payment_hash is not None and invoice.payment_hash != payment_hash:
        raise RemoteProtocolError("wrong-payment-hash", "The invoice has another payment hash.")
    if limits.payee is not None and invoice.payee != limits.payee:
        raise RemoteProtocolError("wrong-payee", "The invoice would pay another node.")
    if amount > limits.max_payment:
        raise RemoteProtocolError(
            "too-expensive", f"The offer asks for {amount} sat; the cap is {limits.max_payment}."
        )
    # Section "Challenge Expiry and Invoice Expiry": the earlier of the two.
    expires_at = invoice.expires_at
    if (stated := of_offer(lambda: challenge.expires_at)) is not None:
        expires_at = min(expires_at, stated)
    if now >= expires_at:
        raise RemoteProtocolError("offer-expired", "The offer has expired; ask for a new one.")
    return Payable(challenge, text, invoice.payment_hash, amount, expires_at, invoice.payee)
