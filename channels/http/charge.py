"""The intent `charge` of the method `lightning`: one invoice, one answer. PURE.

Source: draft-lightning-charge-00.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from channels.errors import RemoteProtocolError
from channels.http import method
from channels.http.method import METHOD, Issued, Limits, Payable
from channels.http.scheme import Challenge, Credential, Problem, Receipt, malformed, rfc3339
from channels.units import Sat, UnixTime

INTENT: Final = "charge"

# Server ------------------------------------------------------------------------------------------


def offer(
    secret: bytes,
    *,
    realm: str,
    network: str,
    invoice: str,
    amount: Sat,
    payment_hash: bytes,
    expires: UnixTime,
    digest: str | None = None,
    description: str | None = None,
    opaque: Mapping[str, str] | None = None,
) -> Challenge:
    """A challenge for an invoice of `amount`; `digest` binds it to one request body.

    Raises LocalProtocolError where the invoice says something else.
    """
    method.check_own_invoice(invoice, payment_hash, amount, expires)
    request: dict[str, object] = {
        "amount": str(amount),
        "currency": "sat",
        "methodDetails": {
            "invoice": invoice,
            "paymentHash": payment_hash.hex(),
            "network": network,
        },
    }
    if description is not None:
        request["description"] = description
    return Challenge.create(
        secret,
        realm=realm,
        method=METHOD,
        intent=INTENT,
        request=request,
        expires=expires,
        digest=digest,
        opaque=opaque,
    )


def verify(
    credential: Credential, stored: Issued | None, now: UnixTime, digest: str | None
) -> Issued:
    """Section "Verification Procedure"; `digest` is that of the request body. Raises Problem.

    Whether it was consumed before is for the ledger to say: a replay gets the original answer.
    """
    preimage = method.hex32(credential.payload.get("preimage"), "preimage")
    issued = method.check_echo(credential, stored)
    if issued.challenge.intent != INTENT:
        raise malformed("This challenge is not for a charge.")
    method.check_paid(issued, preimage, now, "lightning/expired-invoice")
    if issued.challenge.digest is not None and issued.challenge.digest != digest:
        # draft-httpauth-payment-00, sections "Request Body Digest Binding" and "Status Codes": it
        # is paid, so it is refused without another challenge; the payment keeps its worth.
        raise Problem("verification-failed", "This payment was for another request body.", 403)
    return issued


def receipt(issued: Issued, now: UnixTime) -> Receipt:
    extensions = {"challengeId": issued.challenge.id}
    return Receipt(METHOD, issued.payment_hash.hex(), rfc3339(now), extensions=extensions)


# Client ------------------------------------------------------------------------------------------


def check(challenge: Challenge, limits: Limits, now: UnixTime) -> Payable:
    """Decide about a charge offer. Raises RemoteProtocolError where it contradicts itself or the
    user's limits; nothing may be paid then."""
    if (challenge.method, challenge.intent) != (METHOD, INTENT):
        raise method.bad_offer("it is not a lightning charge")
    request = method.of_offer(challenge.request_object)
    details = request.get("methodDetails")
    if not isinstance(details, dict) or request.get("currency") != "sat":
        raise method.bad_offer("it has no methodDetails, or its currency is not sat")
    if details.get("network", "mainnet") != limits.network:
        raise RemoteProtocolError("wrong-network", f"The offer is not for {limits.network}.")
    payment_hash = details.get("paymentHash")
    return method.check_invoice(
        challenge,
        details.get("invoice"),
        None if payment_hash is None else method.offered_hash(payment_hash),
        Sat(method.offered_number(request.get("amount"), "amount")),
        limits,
        now,
    )


def credential(payable: Payable, preimage: bytes) -> Credential:
    return Credential(payable.challenge, {"preimage": preimage.hex()})
