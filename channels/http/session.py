"""The intent `session` of the method `lightning`, as values, and the server's half. PURE.

Source: draft-lightning-session-00. The payer's half is in payer.py.

What ODA adds stands beside the draft's own members, which readers that don't know it ignore: the
price in msat per token, the advertised pace, the model, its `provenance` on the sidechain and the
shares of those who made it in a challenge's `request`, and that `bearerHash` is understood;
`bearerHash` and `credit` in `open`; `bearerSecret` in `bearer` and `close`; exact msat amounts
beside those in sats.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from channels.bolt import invoice as bolt11
from channels.errors import UserError
from channels.http import method
from channels.http.method import METHOD, Issued
from channels.http.scheme import Challenge, Credential, Problem, Receipt, malformed, rfc3339
from channels.units import Msat, Sat, UnixTime, msat, sat_ceil, sat_floor

INTENT: Final = "session"

EXPOSURE_TOKENS: Final = 64
EXPOSURE_SECONDS: Final = 2
PREFILL_STEP: Final = 2048
"""Input tokens that are paid at a time, before the engine sees them."""

UNIT: Final = Sat(1)
"""The draft prices whole sats per unit; ours is a sat's worth of tokens, counted in msat."""

MAX_PRICE: Final = 1_000_000_000
MAX_PACE: Final = 1_000_000
MAX_MODEL: Final = 256


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session buys, fixed when it is opened.

    tokens_per_second: the pace that the provider advertises. trainer_ppm, producers_ppm: the parts
    of what is spent, in millionths, that the provider passes on; 0 where it is on no sidechain.
    """

    model: str
    input_msat: Msat
    output_msat: Msat
    tokens_per_second: int
    trainer_ppm: int = 0
    producers_ppm: int = 0

    def cost(self, input_tokens: int, output_tokens: int) -> Msat:
        return Msat(self.input_msat * input_tokens + self.output_msat * output_tokens)

    def prefill_cost(self, input_tokens: int) -> Msat:
        """The first, and largest, step of prefill for so many input tokens."""
        return self.cost(min(input_tokens, PREFILL_STEP), 0)

    @property
    def deposit(self) -> Sat:
        """Half of D in whole sats: what each deposit invoice asks for."""
        tokens = max(EXPOSURE_TOKENS, EXPOSURE_SECONDS * self.tokens_per_second)
        return sat_ceil(Msat(-(-self.cost(0, tokens) // 2)))

    @property
    def exposure_limit(self) -> Msat:
        """D: the price of 64 tokens or 2 s of stream, rounded up to two whole deposits."""
        return msat(Sat(2 * self.deposit))

    @property
    def unit(self) -> str:
        return f"{self.input_msat}/{self.output_msat} msat"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Whose work is served, as of which block of the sidechain: from it follows who is owed.

    model and weights_root are None for a model that is not on the sidechain.
    """

    height: int
    block: bytes
    model: bytes | None = None
    weights_root: bytes | None = None

    def document(self) -> dict[str, str]:
        named = {"model": self.model, "weightsRoot": self.weights_root}
        known = {name: value.hex() for name, value in named.items() if value is not None}
        return {"height": str(self.height), "block": self.block.hex(), **known}


# Server: offers ----------------------------------------------------------------------------------


def offer(
    secret: bytes,
    *,
    realm: str,
    terms: Terms,
    invoice: str,
    amount: Sat,
    payment_hash: bytes,
    expires: UnixTime,
    idle_timeout: int,
    nonce: str,
    session: bytes | None = None,
    provenance: Provenance | None = None,
) -> Challenge:
    """A challenge for one deposit. `opaque` binds it to session, model and unit.

    What is spent after a challenge was sent is shared as of its `provenance`. Several challenges
    may offer the same invoice; `nonce` tells their ids apart, because a credential is told from a
    repeated one by the id of its challenge.
    """
    method.check_own_invoice(invoice, payment_hash, amount, expires)
    request: dict[str, object] = {
        "amount": str(UNIT),
        "currency": "sat",
        "unitType": "sat of tokens",
        "depositInvoice": invoice,
        "paymentHash": payment_hash.hex(),
        "depositAmount": str(amount),
        "idleTimeout": str(idle_timeout),
        "model": terms.model,
        "inputMsat": str(terms.input_msat),
        "outputMsat": str(terms.output_msat),
        "tokensPerSecond": str(terms.tokens_per_second),
        "bearerHash": "accepted",
    }
    if provenance is not None:
        request["provenance"] = provenance.document()
        request["trainerPpm"] = str(terms.trainer_ppm)
        request["producersPpm"] = str(terms.producers_ppm)
    opaque = {
        "session": "" if session is None else session.hex(),
        "model": terms.model,
        "unit": terms.unit,
        "nonce": nonce,
    }
    return Challenge.create(
        secret,
        realm=realm,
        method=METHOD,
        intent=INTENT,
        request=request,
        expires=expires,
        opaque=opaque,
    )


# Server: credentials -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """A session in the server's store.

    secret_hash: what the secret of `bearer` and `close` must hash to: `bearerHash` where the
    session was opened with one, else the session's id, which is a payment hash.
    """

    id: bytes
    closed: bool
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """What an earlier session or payment still has to its credit, to be moved into a new one."""

    session: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Open:
    issued: Issued
    return_invoice: str
    return_hash: bytes
    return_expires: UnixTime
    bearer_hash: bytes | None
    credit: Credit | None


@dataclass(frozen=True, slots=True)
class Bearer:
    issued: Issued
    session: bytes


@dataclass(frozen=True, slots=True)
class TopUp:
    issued: Issued
    session: bytes


@dataclass(frozen=True, slots=True)
class Close:
    issued: Issued
    session: bytes


Action = Open | Bearer | TopUp | Close


def requested_session(credential: Credential) -> bytes | None:
    """The session that a credential names, for the caller to look up. Raises Problem."""
    if credential.payload.get("action") == "open":
        return None
    return method.hex32(credential.payload.get("sessionId"), "sessionId")


def verify(
    credential: Credential, stored: Issued | None, session: Known | None, now: UnixTime
) -> Action:
    """Section "Verification Procedure". Raises Problem with the draft's slug.

    `lightning/session-closed` is raised last, when everything else is in order: the caller may
    then answer a repeated credential with its original result.
    """
    action = credential.payload.get("action")
    if action not in ("open", "bearer", "topUp", "close"):
        raise malformed("`action` must be open, bearer, topUp or close.")
    issued = method.check_echo(credential, stored)
    if issued.challenge.intent != INTENT:
        raise malformed("This challenge is not for a session.")
    if action == "open":
        return _verify_open(credential.payload, issued, now)
    if session is None:
        raise Problem("lightning/session-not-found", "There is no such session; open one.")
    if action == "topUp":
        verified: Action = _verify_topup(credential.payload, issued, session, now)
    else:
        # Departure: a session opened with `bearerHash` is not owned by whoever knows the
        # deposit's preimage, because every hop of that payment does.
        _check_secret(credential.payload, session)
        verified = (Bearer if action == "bearer" else Close)(issued, session.id)
    if session.closed:
        raise Problem("lightning/session-closed", "This session is closed; open a new one.")
    return verified


def _verify_open(payload: Mapping[str, Any], issued: Issued, now: UnixTime) -> Open:
    preimage = method.hex32(payload.get("preimage"), "preimage")
    if issued.session is not None:
        raise Problem("lightning/unknown-challenge", "This challenge tops up another session.")
    return_invoice = payload.get("returnInvoice")
    bearer_hash = payload.get("bearerHash")
    credit = payload.get("credit")
    method.check_paid(issued, preimage, now, "lightning/challenge-expired")
    returned = read_return_invoice(return_invoice, issued, now)
    return Open(
        issued,
        str(return_invoice),
        returned.payment_hash,
        returned.expires_at,
        None if bearer_hash is None else method.hex32(bearer_hash, "bearerHash"),
        None if credit is None else _read_credit(credit),
    )


def _verify_topup(
    payload: Mapping[str, Any], issued: Issued, session: Known, now: UnixTime
) -> TopUp:
    preimage = method.hex32(payload.get("topUpPreimage"), "topUpPreimage")
    if issued.session not in (None, session.id):
        raise Problem("lightning/unknown-challenge", "This challenge tops up another session.")
    method.check_paid(issued, preimage, now, "lightning/challenge-expired")
    return TopUp(issued, session.id)


def read_return_invoice(text: object, issued: Issued, now: UnixTime) -> bolt11.Invoice:
    """Section "Open Verification", step 7: same network, no amount (or an explicit 0)."""
    if not isinstance(text, str):
        raise malformed("`returnInvoice` must be a BOLT 11 invoice without an amount.")
    try:
        invoice = bolt11.decode(text)
    except UserError as error:
        raise _bad_return_invoice(str(error)) from None
    deposit = bolt11.decode(str(issued.challenge.request_object()["depositInvoice"]))
    if invoice.amount_msat:
        raise _bad_return_invoice("The return invoice must not have an amount.")
    if invoice.currency != deposit.currency:
        raise _bad_return_invoice("The return invoice is for another network.")
    if now >= invoice.expires_at:
        raise _bad_return_invoice("The return invoice has expired.")
    return invoice


def _bad_return_invoice(sentence: str) -> Problem:
    return Problem("lightning/invalid-return-invoice", sentence)


def _check_secret(payload: Mapping[str, Any], session: Known) -> None:
    name = "preimage" if session.secret_hash == session.id else "bearerSecret"
    secret = method.hex32(payload.get(name), name)
    if not hmac.compare_digest(sha256(secret).digest(), session.secret_hash):
        raise Problem("lightning/invalid-preimage", f"`{name}` is not this session's secret.")


def _read_credit(value: object) -> Credit:
    if not isinstance(value, dict):
        raise malformed("`credit` must be an object with sessionId and secret.")
    return Credit(
        method.hex32(value.get("sessionId"), "credit.sessionId"),
        method.hex32(value.get("secret"), "credit.secret"),
    )


# Server: answers ---------------------------------------------------------------------------------


def receipt(session: bytes, now: UnixTime, **extensions: object) -> Receipt:
    return Receipt(METHOD, session.hex(), rfc3339(now), extensions=extensions)


def need_topup(session: bytes, spent: Msat, required: Msat) -> dict[str, object]:
    """The data of `payment-need-topup` and `session-timeout`.

    required: what the next unit costs; the draft's figures are whole sats, ours are exact.
    """
    return {
        "sessionId": session.hex(),
        "balanceSpent": sat_floor(spent),
        "balanceRequired": sat_ceil(required),
        "balanceSpentMsat": spent,
        "balanceRequiredMsat": required,
    }


def stream_receipt(session: bytes, now: UnixTime, spent: Msat, units: int) -> dict[str, object]:
    """The data of `payment-receipt`, which comes before the end of a stream."""
    document = receipt(session, now).document()
    return {**document, "spent": sat_floor(spent), "spentMsat": spent, "units": units}


def closed(refund: Msat, status: str) -> dict[str, object]:
    """The body of an answer to `close`.

    status: the draft's succeeded, failed or skipped, or `pending`: not known yet. An unknown
    outcome is never called failed.
    """
    return {
        "status": "closed",
        "refundSats": sat_floor(refund),
        "refundMsat": refund,
        "refundStatus": status,
    }
