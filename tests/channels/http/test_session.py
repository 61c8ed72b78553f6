"""draft-lightning-session-00, the server's half: which credential is what."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from channels.errors import LocalProtocolError
from channels.http import session
from channels.http.method import Issued
from channels.http.scheme import Challenge, Credential, Problem
from channels.http.session import Bearer, Close, Known, Open, Terms, TopUp
from channels.units import Msat, Sat, UnixTime
from tests.channels.http.payees import NOW, Payee

TERMS = Terms("bytes-1", Msat(50), Msat(250), 10)
PROVIDER, USER = Payee(), Payee(secret=b"\x33" * 32)
DEPOSIT = PROVIDER.invoice(TERMS.deposit)
RETURN = USER.invoice(None, expiry=10**7)
EXPIRES = UnixTime(NOW + 600)
SECRET = b"\x44" * 32


def an_offer(**more: Any) -> Challenge:
    given: dict[str, Any] = {
        "realm": "oda",
        "terms": TERMS,
        "invoice": DEPOSIT.text,
        "amount": TERMS.deposit,
        "payment_hash": DEPOSIT.payment_hash,
        "expires": EXPIRES,
        "idle_timeout": 300,
        "nonce": "1",
    }
    return session.offer(b"key", **(given | more))


def issued(**more: Any) -> Issued:
    kept = Issued(an_offer(), DEPOSIT.payment_hash, TERMS.deposit, EXPIRES, settled=True)
    return replace(kept, **more)


def credential(action: str, challenge: Challenge | None = None, **payload: Any) -> Credential:
    return Credential(challenge or an_offer(), {"action": action, **payload})


OPEN: dict[str, Any] = {"preimage": DEPOSIT.preimage.hex(), "returnInvoice": RETURN.text}
MINE: dict[str, Any] = {
    "sessionId": DEPOSIT.payment_hash.hex(),
    "preimage": DEPOSIT.preimage.hex(),
}
KNOWN = Known(DEPOSIT.payment_hash, False, DEPOSIT.payment_hash)


def refusal(
    sent: Credential,
    stored: Issued | None = None,
    known: Known | None = KNOWN,
    now: UnixTime = NOW,
) -> str:
    with pytest.raises(Problem) as refused:
        session.verify(sent, stored or issued(), known, now)
    assert refused.value.status == 402
    return refused.value.reason


def test_what_is_at_risk() -> None:
    # 64 tokens at 250 msat are 16 sat; 20 tokens (2 s) would be fewer.
    assert (TERMS.deposit, TERMS.exposure_limit) == (8, 16_000)
    fast = replace(TERMS, tokens_per_second=100)
    assert (fast.deposit, fast.exposure_limit) == (25, 50_000)
    cheap = replace(TERMS, output_msat=Msat(1))
    assert (cheap.deposit, cheap.exposure_limit) == (1, 2_000)
    assert TERMS.prefill_cost(10) == 500
    assert TERMS.prefill_cost(5000) == 2048 * 50


def test_offer_is_the_drafts_and_binds_session_model_and_unit() -> None:
    challenge = an_offer(session=b"\x01" * 32)
    request = challenge.request_object()
    assert request["amount"] == "1"
    assert request["currency"] == "sat"
    assert request["depositInvoice"] == DEPOSIT.text
    assert request["paymentHash"] == DEPOSIT.payment_hash.hex()
    assert request["depositAmount"] == "8"
    assert challenge.opaque_object() == {
        "session": "01" * 32,
        "model": "bytes-1",
        "unit": "50/250 msat",
        "nonce": "1",
    }
    assert all(isinstance(value, str) for value in request.values())
    assert challenge.is_bound_to(b"key")
    assert an_offer(nonce="2").id != an_offer().id


def test_an_offer_must_match_its_invoice() -> None:
    with pytest.raises(LocalProtocolError):
        an_offer(amount=Sat(9))


def test_open() -> None:
    verified = session.verify(credential("open", **OPEN), issued(), None, NOW)
    expires = UnixTime(NOW + 10**7)
    assert verified == Open(issued(), RETURN.text, RETURN.payment_hash, expires, None, None)
    more: dict[str, Any] = {
        "bearerHash": sha256(SECRET).hexdigest(),
        "credit": {"sessionId": "aa" * 32, "secret": "bb" * 32},
        "unknown": 1,
    }
    verified = session.verify(credential("open", **OPEN, **more), issued(), None, NOW)
    assert isinstance(verified, Open)
    assert verified.bearer_hash == sha256(SECRET).digest()
    assert verified.credit == session.Credit(b"\xaa" * 32, b"\xbb" * 32)
    assert "bb" * 8 not in repr(verified)


def test_open_is_refused() -> None:
    sent = credential("open", **OPEN)
    unpaid = issued(settled=False)
    assert refusal(sent, unpaid) == "verification-failed"
    assert refusal(sent, unpaid, now=EXPIRES) == "lightning/challenge-expired"
    assert refusal(sent, issued(session=b"\x01" * 32)) == "lightning/unknown-challenge"
    wrong = credential("open", **(OPEN | {"preimage": "00" * 32}))
    assert refusal(wrong) == "lightning/invalid-preimage"
    with pytest.raises(Problem) as refused:
        session.verify(sent, None, None, NOW)
    assert refused.value.reason == "lightning/unknown-challenge"
    forged = credential("open", replace(an_offer(), request=an_offer().request[:-4]), **OPEN)
    assert refusal(forged) == "lightning/unknown-challenge"
    for name in ("preimage", "returnInvoice"):
        less = {key: value for key, value in OPEN.items() if key != name}
        assert refusal(credential("open", **less)) == "lightning/malformed-credential"
    wrong_members: list[dict[str, Any]] = [
        {"bearerHash": "x"},
        {"credit": 1},
        {"credit": {}},
        {"credit": {"sessionId": "aa" * 32}},
    ]
    for more in wrong_members:
        assert refusal(credential("open", **OPEN, **more)) == "lightning/malformed-credential"


@pytest.mark.parametrize(
    "invoice",
    [
        "lnbcrt1nonsense",
        USER.invoice(Sat(1)).text,
        Payee(currency="tbs").invoice(None, expiry=10**7).text,
        USER.invoice(None, now=UnixTime(NOW - 1000)).text,
    ],
    ids=["malformed", "amount", "network", "expired"],
)
def test_return_invoices_that_could_not_be_paid(invoice: str) -> None:
    sent = credential("open", **(OPEN | {"returnInvoice": invoice}))
    assert refusal(sent) == "lightning/invalid-return-invoice"


def test_a_deposit_that_settled_late_still_opens() -> None:
    late = UnixTime(EXPIRES + 10_000)
    assert session.verify(credential("open", **OPEN), issued(), None, late)


def test_bearer_and_close_with_the_preimage() -> None:
    for action, kind in (("bearer", Bearer), ("close", Close)):
        sent = credential(action, **MINE)
        assert session.requested_session(sent) == KNOWN.id
        assert session.verify(sent, issued(), KNOWN, NOW) == kind(issued(), KNOWN.id)
        assert refusal(sent, known=None) == "lightning/session-not-found"
        assert refusal(sent, known=replace(KNOWN, closed=True)) == "lightning/session-closed"
        wrong = credential(action, **(MINE | {"preimage": "00" * 32}))
        assert refusal(wrong) == "lightning/invalid-preimage"
        # Whether a session is closed is told to its owner only.
        assert refusal(wrong, known=replace(KNOWN, closed=True)) == "lightning/invalid-preimage"


def test_with_a_bearer_hash_the_preimage_is_not_enough() -> None:
    """Every hop of the deposit knows the preimage."""
    known = replace(KNOWN, secret_hash=sha256(SECRET).digest())
    for action in ("bearer", "close"):
        thief = credential(action, **MINE)
        assert refusal(thief, known=known) == "lightning/malformed-credential"
        thief = credential(action, **MINE, bearerSecret=DEPOSIT.preimage.hex())
        assert refusal(thief, known=known) == "lightning/invalid-preimage"
        owner = credential(action, sessionId=KNOWN.id.hex(), bearerSecret=SECRET.hex())
        assert session.verify(owner, issued(), known, NOW)


def test_topup() -> None:
    more = PROVIDER.invoice(TERMS.deposit, 1)
    challenge = an_offer(invoice=more.text, payment_hash=more.payment_hash, session=KNOWN.id)
    stored = Issued(challenge, more.payment_hash, TERMS.deposit, EXPIRES, KNOWN.id, True)
    payload = {"sessionId": KNOWN.id.hex(), "topUpPreimage": more.preimage.hex()}
    sent = credential("topUp", challenge, **payload)
    assert session.verify(sent, stored, KNOWN, NOW) == TopUp(stored, KNOWN.id)
    anybody = replace(stored, session=None)
    assert session.verify(sent, anybody, KNOWN, NOW) == TopUp(anybody, KNOWN.id)
    other = replace(stored, session=b"\x01" * 32)
    assert refusal(sent, other) == "lightning/unknown-challenge"
    assert refusal(sent, replace(stored, settled=False)) == "verification-failed"
    assert refusal(sent, stored, replace(KNOWN, closed=True)) == "lightning/session-closed"
    assert refusal(sent, stored, None) == "lightning/session-not-found"
    old = credential("topUp", challenge, **(payload | {"topUpPreimage": DEPOSIT.preimage.hex()}))
    assert refusal(old, stored) == "lightning/invalid-preimage"


def test_unknown_actions_and_intents() -> None:
    assert refusal(credential("steal", **MINE)) == "lightning/malformed-credential"
    assert refusal(Credential(an_offer(), {})) == "lightning/malformed-credential"
    assert session.requested_session(credential("open")) is None
    with pytest.raises(Problem):
        session.requested_session(credential("bearer", sessionId=7))
    charged = replace(an_offer(), intent="charge")
    sent = credential("open", charged, **OPEN)
    assert refusal(sent, issued(challenge=charged)) == "lightning/malformed-credential"


def test_documents() -> None:
    event = session.need_topup(KNOWN.id, Msat(300_999), Msat(1_001))
    assert (event["balanceSpent"], event["balanceRequired"]) == (300, 2)
    assert (event["balanceSpentMsat"], event["balanceRequiredMsat"]) == (300_999, 1_001)
    assert session.closed(Msat(140_999), "pending") == {
        "status": "closed",
        "refundSats": 140,
        "refundMsat": 140_999,
        "refundStatus": "pending",
    }
    last = session.stream_receipt(KNOWN.id, NOW, Msat(202_500), 101)
    assert (last["spent"], last["units"], last["method"]) == (202, 101, "lightning")
    receipt = session.receipt(KNOWN.id, NOW, refundSats=140, refundStatus="succeeded").document()
    assert (receipt["reference"], receipt["refundSats"]) == (KNOWN.id.hex(), 140)
