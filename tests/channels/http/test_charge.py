"""draft-lightning-charge-00: offers, credentials and what the payer refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.http import charge, scheme
from channels.http.method import Issued, Limits
from channels.http.scheme import Challenge, Credential, Problem
from channels.units import Sat, UnixTime
from tests.channels.http.payees import NOW, Payee

PAYEE = Payee()
MADE = PAYEE.invoice(Sat(10))
LIMITS = Limits("regtest", Sat(10), PAYEE.node_id)
BODY = scheme.body_digest(b"{}")


def an_offer(**more: Any) -> Challenge:
    given: dict[str, Any] = {
        "realm": "oda",
        "network": "regtest",
        "invoice": MADE.text,
        "amount": Sat(10),
        "payment_hash": MADE.payment_hash,
        "expires": UnixTime(NOW + 600),
        "digest": BODY,
        "description": "one answer",
    }
    return charge.offer(b"secret", **(given | more))


def issued(**more: Any) -> Issued:
    kept = Issued(an_offer(), MADE.payment_hash, Sat(10), UnixTime(NOW + 600), settled=True)
    return replace(kept, **more)


def test_offer_is_paid_and_verified() -> None:
    (challenge,) = scheme.parse_challenges(an_offer().to_header())
    payable = charge.check(challenge, LIMITS, NOW)
    assert (payable.amount, payable.payee) == (10, PAYEE.node_id)
    credential = Credential.parse(charge.credential(payable, MADE.preimage).to_header())
    assert charge.verify(credential, issued(), NOW, BODY) == issued()
    receipt = charge.receipt(issued(), NOW).document()
    assert receipt["reference"] == MADE.payment_hash.hex()
    assert receipt["challengeId"] == challenge.id
    assert MADE.preimage.hex() not in str(receipt)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"amount": Sat(11)}, "wrong-invoice"),
        ({"payment_hash": bytes(32)}, "wrong-invoice"),
        ({"expires": UnixTime(NOW + 601)}, "wrong-invoice"),
    ],
)
def test_server_offers_nothing_that_contradicts_its_invoice(
    wrong: dict[str, Any], reason: str
) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        an_offer(**wrong)
    assert refused.value.reason == reason


def test_verify_refuses() -> None:
    good = Credential(an_offer(), {"preimage": MADE.preimage.hex()})
    other = Credential(an_offer(digest=None), good.payload)

    def reason(credential: Credential, stored: Issued | None, now: UnixTime = NOW) -> str:
        with pytest.raises(Problem) as refused:
            charge.verify(credential, stored, now, BODY)
        return refused.value.reason

    assert reason(good, None) == "lightning/unknown-challenge"
    assert reason(other, issued()) == "lightning/unknown-challenge"
    unpaid = issued(settled=False)
    assert reason(good, unpaid) == "verification-failed"
    assert reason(good, unpaid, UnixTime(NOW + 600)) == "lightning/expired-invoice"
    wrong = replace(good, payload={"preimage": "00" * 32})
    assert reason(wrong, issued()) == "lightning/invalid-preimage"
    for preimage in (None, 7, "", "zz" * 32, MADE.preimage.hex().upper(), "00" * 31):
        bad = replace(good, payload={"preimage": preimage})
        assert reason(bad, issued()) == "lightning/malformed-credential"
    with pytest.raises(Problem) as refused:
        charge.verify(good, issued(), NOW, scheme.body_digest(b"another"))
    assert refused.value.reason == "verification-failed"
    session = replace(an_offer(), intent="session")
    assert (
        reason(Credential(session, good.payload), issued(challenge=session))
        == "lightning/malformed-credential"
    )


def test_a_payment_that_settled_in_time_is_honoured_late() -> None:
    credential = Credential(an_offer(), {"preimage": MADE.preimage.hex()})
    assert charge.verify(credential, issued(), UnixTime(NOW + 10_000), BODY)


def tampered(**changes: Any) -> Challenge:
    request = an_offer().request_object()
    for name, value in changes.items():
        target = request["methodDetails"] if name in ("invoice", "network", "paymentHash") else None
        (request if target is None else target)[name] = value
    return replace(an_offer(), request=scheme.pack(request))


@pytest.mark.parametrize(
    ("challenge", "limits", "reason"),
    [
        (tampered(amount="9"), LIMITS, "wrong-amount"),
        (tampered(amount="0"), LIMITS, "bad-offer"),
        (tampered(amount="-1"), LIMITS, "bad-offer"),
        (tampered(amount=10), LIMITS, "bad-offer"),
        (tampered(amount="9" * 19), LIMITS, "bad-offer"),
        (tampered(currency="BTC"), LIMITS, "bad-offer"),
        (tampered(methodDetails=[]), LIMITS, "bad-offer"),
        (tampered(invoice="lnbcrt1"), LIMITS, "bech32-checksum"),
        (tampered(invoice=None), LIMITS, "bad-offer"),
        (tampered(paymentHash="00" * 32), LIMITS, "wrong-payment-hash"),
        (tampered(paymentHash="no"), LIMITS, "bad-offer"),
        (tampered(network="mainnet"), LIMITS, "wrong-network"),
        (an_offer(), replace(LIMITS, network="signet"), "wrong-network"),
        (
            tampered(invoice=Payee(currency="tbs").invoice(Sat(10)).text),
            LIMITS,
            "wrong-network",
        ),
        (
            tampered(invoice=Payee(secret=b"\x22" * 32).invoice(Sat(10)).text, paymentHash=None),
            LIMITS,
            "wrong-payee",
        ),
        (an_offer(), replace(LIMITS, payee=b"\x02" + bytes(32)), "wrong-payee"),
        (an_offer(), replace(LIMITS, max_payment=Sat(9)), "too-expensive"),
        (replace(an_offer(), request="e30!"), LIMITS, "bad-offer"),
        (replace(an_offer(), expires="soon"), LIMITS, "bad-offer"),
        (replace(an_offer(), intent="session"), LIMITS, "bad-offer"),
        (an_offer(expires=NOW), LIMITS, "offer-expired"),
    ],
)
def test_payer_refuses(challenge: Challenge, limits: Limits, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        charge.check(challenge, limits, NOW)
    if reason == "bech32-checksum":
        assert refused.value.reason.startswith(("bech32", "invoice"))
    else:
        assert refused.value.reason == reason


def test_payer_refuses_an_expired_invoice() -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        charge.check(an_offer(), LIMITS, UnixTime(NOW + 601))
    assert refused.value.reason == "invoice-expired"
