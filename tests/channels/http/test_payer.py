"""The payer's half of a session: it never pays twice, too much or to the wrong one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from channels.http import payer, session
from channels.http.payer import (
    AskForOffer,
    Caps,
    CheckPayment,
    ClientSession,
    Deposit,
    DepositStatus,
    PayInvoice,
    Persist,
    Phase,
    SendCredential,
)
from channels.http.scheme import Challenge, pack
from channels.http.session import Terms
from channels.units import Msat, Sat, UnixTime, msat
from tests.channels.http.payees import NOW, Made, Payee

TERMS = Terms("bytes-1", Msat(50), Msat(250), 10)  # D is 16 sat
PROVIDER = Payee()
CAPS = Caps("regtest", PROVIDER.node_id, True, Msat(50), Msat(250), Msat(16_000), Msat(10**9))
NEW = ClientSession(CAPS, "bytes-1", "lnbcrt1return", b"\x44" * 32)


def made(number: int) -> Made:
    return PROVIDER.invoice(TERMS.deposit, number)


def an_offer(number: int, **more: Any) -> Challenge:
    given: dict[str, Any] = {
        "realm": "oda",
        "terms": TERMS,
        "invoice": made(number).text,
        "amount": TERMS.deposit,
        "payment_hash": made(number).payment_hash,
        "expires": UnixTime(NOW + 600),
        "idle_timeout": 300,
        "nonce": str(number),
    }
    return session.offer(b"key", **(given | more))


def opened() -> ClientSession:
    value, _ = NEW.offered([an_offer(0)], NOW).open(NOW)
    value, _ = value.payment_succeeded(made(0).payment_hash, made(0).preimage)
    value, _ = value.claimed(made(0).payment_hash)
    return value.offered([an_offer(1)], NOW)


def test_opening_persists_before_it_pays_and_pays_before_it_claims() -> None:
    value, effects = NEW.offered([an_offer(0)], NOW).open(NOW)
    assert effects == (Persist(), PayInvoice(made(0).text, made(0).payment_hash, Msat(8_000)))
    assert (value.phase, value.exposure, value.id) == (
        Phase.OPENING,
        8_000,
        made(0).payment_hash,
    )
    value, effects = value.payment_succeeded(made(0).payment_hash, made(0).preimage)
    assert effects[0] == Persist()
    assert isinstance(effects[1], SendCredential)
    payload = effects[1].credential.payload
    assert payload["preimage"] == made(0).preimage.hex()
    assert payload["returnInvoice"] == "lnbcrt1return"
    assert "bearerHash" in payload
    value, effects = value.claimed(made(0).payment_hash)
    assert (value.phase, effects) == (Phase.OPEN, (Persist(),))


def test_tops_up_at_half_of_d_and_one_at_a_time() -> None:
    value = opened()
    # A fresh session has exactly D/2 left: the next deposit is due.
    value, effects = value.top_up(NOW)
    assert isinstance(effects[1], PayInvoice)
    assert (value.exposure, value.exposure_limit) == (16_000, 16_000)
    value = value.offered([an_offer(2)], NOW)
    assert value.received(0, 60, NOW)[1] == ()  # 15 sat served, one top-up outstanding
    value, _ = value.payment_unknown(made(1).payment_hash)
    assert value.received(0, 60, NOW)[1] == ()  # unknown is outstanding
    value, _ = value.payment_succeeded(made(1).payment_hash, made(1).preimage)
    value, _ = value.claimed(made(1).payment_hash)
    value, effects = value.received(0, 31, NOW)
    assert effects == ()
    value, effects = value.received(0, 1, NOW)
    assert isinstance(effects[1], PayInvoice)
    assert value.max_exposure == 16_000


SHARED = replace(TERMS, trainer_ppm=50_000, producers_ppm=10_000)
FIRST = session.Provenance(7, b"\x81" * 32, b"\x61" * 32, b"\x71" * 32)
SECOND = replace(FIRST, height=8, block=b"\x82" * 32)


def test_remembers_every_provenance_once() -> None:
    value = NEW
    for number, provenance in enumerate((FIRST, FIRST, SECOND, None)):
        terms = SHARED if provenance else TERMS
        value = value.offered([an_offer(number, terms=terms, provenance=provenance)], NOW)
    assert value.provenances == (FIRST, SECOND)
    unregistered = session.Provenance(0, bytes(32))
    value = value.offered([an_offer(4, terms=SHARED, provenance=unregistered)], NOW)
    assert value.provenances[-1] == unregistered
    encoded = msgspec.json.encode(value)
    assert msgspec.json.decode(encoded, type=ClientSession) == value


def test_too_many_provenances_are_refused() -> None:
    many = tuple(replace(FIRST, height=height) for height in range(payer.MAX_PROVENANCES))
    value = replace(NEW, provenances=many)
    assert value.offered([an_offer(0, terms=SHARED, provenance=many[5])], NOW).offer is not None
    with pytest.raises(RemoteProtocolError) as caught:
        value.offered([an_offer(0, terms=SHARED, provenance=SECOND)], NOW)
    assert caught.value.reason == "too-many-provenances"


@pytest.mark.parametrize("terms", [TERMS, replace(SHARED, trainer_ppm=49_999)])
def test_less_than_the_floor_is_refused(terms: Terms) -> None:
    value = replace(NEW, caps=replace(CAPS, min_trainer_ppm=50_000, min_producers_ppm=1))
    value.offered([an_offer(0, terms=SHARED, provenance=FIRST)], NOW)
    with pytest.raises(RemoteProtocolError) as caught:
        value.offered([an_offer(0, terms=terms, provenance=FIRST)], NOW)
    assert caught.value.reason == "share-below-floor"


def test_shares_may_not_change_in_a_session() -> None:
    value = opened()
    with pytest.raises(RemoteProtocolError) as caught:
        value.offered([an_offer(2, terms=SHARED, provenance=FIRST)], NOW)
    assert caught.value.reason == "price-changed"


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        {"height": 7, "block": "81" * 32},
        {"height": "-1", "block": "81" * 32},
        {"height": "4294967296", "block": "81" * 32},
        {"height": "7", "block": "81"},
        {"height": "7"},
        {"height": "7", "block": "81" * 32, "model": "61"},
        {"height": "7", "block": "81" * 32, "weightsRoot": 7},
    ],
)
def test_a_bad_provenance_is_a_bad_offer(bad: object) -> None:
    request = an_offer(0).request_object() | {"provenance": bad}
    challenge = replace(an_offer(0), request=pack(request))
    with pytest.raises(RemoteProtocolError) as caught:
        NEW.offered([challenge], NOW)
    assert caught.value.reason == "bad-offer"


def test_needs_an_offer_that_is_neither_used_nor_expired() -> None:
    value = replace(opened(), offer=None)
    assert value.top_up(NOW)[1] == (AskForOffer(),)
    assert value.offered([an_offer(0)], NOW).top_up(NOW)[1] == (AskForOffer(),)
    value = value.offered([an_offer(2)], NOW)
    assert value.top_up(UnixTime(NOW + 600))[1] == (AskForOffer(),)


def test_a_failed_topup_may_be_tried_again_and_an_unknown_may_not() -> None:
    value, _ = opened().top_up(NOW)
    unknown, effects = value.payment_unknown(made(1).payment_hash)
    assert effects == (Persist(), CheckPayment(made(1).payment_hash))
    assert not unknown.offered([an_offer(2)], NOW).is_topup_due
    failed, _ = unknown.payment_failed(made(1).payment_hash)
    assert failed.offered([an_offer(2)], NOW).is_topup_due
    assert failed.exposure == 8_000
    # A late success of what was called failed would be the node's mistake; it still counts.
    late, effects = failed.payment_succeeded(made(1).payment_hash, made(1).preimage)
    assert late.exposure == 16_000
    assert isinstance(effects[1], SendCredential)


def test_failing_to_open_goes_back_to_the_start() -> None:
    value, _ = NEW.offered([an_offer(0)], NOW).open(NOW)
    value, _ = value.payment_failed(made(0).payment_hash)
    assert (value.phase, value.id, value.exposure) == (Phase.NEW, None, 0)
    value, effects = value.offered([an_offer(1)], NOW).open(NOW)
    assert isinstance(effects[1], PayInvoice)
    assert value.id == made(1).payment_hash


def test_prefill_may_be_covered_beyond_d() -> None:
    value, effects = opened().need_topup(200, NOW)  # 10 sat of input
    assert isinstance(effects[1], PayInvoice)
    assert value.exposure_limit == 26_000
    value, _ = value.payment_succeeded(made(1).payment_hash, made(1).preimage)
    value, _ = value.claimed(made(1).payment_hash)
    value, effects = value.offered([an_offer(2)], NOW).need_topup(200, NOW)
    assert isinstance(effects[1], PayInvoice)
    assert value.exposure == 24_000
    value, _ = value.payment_succeeded(made(2).payment_hash, made(2).preimage)
    value, _ = value.claimed(made(2).payment_hash)
    with pytest.raises(RemoteProtocolError) as refused:
        value.need_topup(200, NOW)
    assert refused.value.reason == "topup-not-due"
    value, _ = value.received(200, 1, NOW)
    assert value.exposure_limit == 16_000


def test_a_long_question_is_covered_as_far_as_the_cap_allows() -> None:
    asked = TERMS.cost(5000, 0)
    value = replace(opened(), caps=replace(CAPS, max_exposure=Msat(16_000 + asked)))
    value, effects = value.need_topup(5000, NOW)
    assert isinstance(effects[1], PayInvoice)
    assert value.exposure_limit == 16_000 + asked
    # With less it is one step, and when that is covered there, the question is too long.
    value = replace(opened(), caps=replace(CAPS, max_exposure=Msat(15_999 + asked)))
    assert value.need_topup(5000, NOW)[0].exposure_limit == 15_999 + asked
    value, _ = opened().need_topup(5000, NOW)
    assert value.exposure_limit == 16_000 + TERMS.prefill_cost(5000)
    (first, second) = value.deposits
    paid = replace(second.payable, amount=Sat(111))
    rest = Deposit(paid, "topUp", DepositStatus.CLAIMED)
    value = replace(value, deposits=(first, rest))
    with pytest.raises(LocalProtocolError) as refused:
        value.need_topup(5000, NOW)
    assert refused.value.reason == "exposure-limit"


def test_a_provider_that_asks_for_more_than_is_due() -> None:
    value = opened()
    value, _ = value.top_up(NOW)
    value, _ = value.payment_succeeded(made(1).payment_hash, made(1).preimage)
    value, _ = value.claimed(made(1).payment_hash)
    with pytest.raises(RemoteProtocolError) as refused:
        value.need_topup(0, NOW)
    assert refused.value.reason == "topup-not-due"


def test_a_provider_that_counts_more_than_was_paid() -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        opened().received(0, 33, NOW)
    assert refused.value.reason == "overcharged"


def test_bearer_uses_each_challenge_once() -> None:
    value, effects = opened().bearer()
    assert isinstance(effects[1], SendCredential)
    assert effects[1].credential.challenge == an_offer(1)
    assert effects[1].credential.payload["bearerSecret"] == (b"\x44" * 32).hex()
    assert value.bearer() == (value, (AskForOffer(),))
    # The top-up invoice in it may still be paid.
    assert isinstance(value.top_up(NOW)[1][1], PayInvoice)
    value = value.offered([an_offer(1, nonce="9")], NOW)
    assert isinstance(value.bearer()[1][1], SendCredential)


def test_a_preimage_that_others_saw_is_never_the_proof() -> None:
    value = replace(opened(), caps=replace(CAPS, direct=False))
    _, effects = value.bearer()
    assert isinstance(effects[1], SendCredential)
    assert "preimage" not in effects[1].credential.payload


def test_close() -> None:
    value, effects = opened().close()
    assert isinstance(effects[1], SendCredential)
    assert value.resume() == (effects[1],)
    value, _ = value.closed(Msat(8_000), "succeeded")
    assert (value.phase, value.exposure, value.refund_status) == (Phase.CLOSED, 0, "succeeded")
    for call in (value.close, value.bearer, lambda: value.open(NOW)):
        with pytest.raises(LocalProtocolError):
            call()


def test_restart_pays_nothing_again() -> None:
    paying, _ = NEW.offered([an_offer(0)], NOW).open(NOW)
    again = msgspec.json.decode(msgspec.json.encode(paying), type=ClientSession)
    assert again == paying
    assert again.resume() == (CheckPayment(made(0).payment_hash),)
    paid, effects = again.payment_succeeded(made(0).payment_hash, made(0).preimage)
    assert paid.resume() == (effects[1],)
    claimed, _ = paid.claimed(made(0).payment_hash)
    assert claimed.resume() == ()
    assert claimed.payment_succeeded(made(0).payment_hash, made(0).preimage) == (claimed, ())


def test_secrets_stay_out_of_sight() -> None:
    text = repr(opened())
    assert made(0).preimage.hex() not in text
    assert str(made(0).preimage) not in text
    assert str(b"\x44" * 32) not in text


def with_request(**changes: Any) -> Challenge:
    request = an_offer(0).request_object() | changes
    return replace(an_offer(0), request=pack({k: v for k, v in request.items() if v is not None}))


@pytest.mark.parametrize(
    ("challenge", "caps", "reason"),
    [
        (with_request(model=None), CAPS, "bad-offer"),
        (with_request(model="gpt"), CAPS, "wrong-model"),
        (with_request(amount="2"), CAPS, "bad-offer"),
        (with_request(currency="BTC"), CAPS, "bad-offer"),
        (with_request(outputMsat="0"), CAPS, "bad-offer"),
        (with_request(outputMsat=250), CAPS, "bad-offer"),
        (with_request(inputMsat="-1"), CAPS, "bad-offer"),
        (with_request(tokensPerSecond="9" * 9), CAPS, "bad-offer"),
        (with_request(tokensPerSecond="33"), CAPS, "too-much-exposure"),
        (with_request(depositAmount="9"), CAPS, "deposit-too-large"),
        (with_request(depositAmount="7"), CAPS, "wrong-amount"),
        (with_request(depositInvoice=made(1).text), CAPS, "wrong-payment-hash"),
        (with_request(paymentHash=None), CAPS, "bad-offer"),
        (with_request(bearerHash=None), replace(CAPS, direct=False), "no-bearer-hash"),
        (an_offer(0), replace(CAPS, max_input_msat=Msat(49)), "too-expensive"),
        (an_offer(0), replace(CAPS, max_output_msat=Msat(249)), "too-expensive"),
        (an_offer(0), replace(CAPS, max_exposure=Msat(15_999)), "too-much-exposure"),
        (an_offer(0), replace(CAPS, payee=b"\x02" * 33), "wrong-payee"),
        (an_offer(0), replace(CAPS, network="mainnet"), "wrong-network"),
    ],
)
def test_offers_that_are_refused(challenge: Challenge, caps: Caps, reason: str) -> None:
    value = replace(NEW, caps=caps)
    with pytest.raises(RemoteProtocolError) as refused:
        value.offered([challenge], NOW)
    assert refused.value.reason == reason


def test_an_offer_at_another_price_later() -> None:
    dearer = an_offer(2, terms=replace(TERMS, input_msat=Msat(49)))
    with pytest.raises(RemoteProtocolError) as refused:
        opened().offered([dearer], NOW)
    assert refused.value.reason == "price-changed"


def test_the_session_cap() -> None:
    value = replace(opened(), caps=replace(CAPS, max_session=Msat(15_999)))
    with pytest.raises(LocalProtocolError) as refused:
        value.top_up(NOW)
    assert refused.value.reason == "session-cap-reached"


def test_offers_of_other_schemes_are_left_alone() -> None:
    assert NEW.offered([replace(an_offer(0), intent="charge")], NOW) == NEW
    assert NEW.offered([], NOW) == NEW


class Interleavings(RuleBasedStateMachine):
    """Any order of answers of the node and the provider, crashes included."""

    def __init__(self) -> None:
        super().__init__()
        self.session = NEW
        self.number = 0
        self.attempts: dict[bytes, int] = {}
        self.served = 0
        self.limit = 0

    def apply(self, step: payer.Step) -> None:
        self.session, effects = step
        kinds = [type(effect) for effect in effects]
        if PayInvoice in kinds or SendCredential in kinds:
            assert kinds[0] is Persist
        for effect in effects:
            if isinstance(effect, PayInvoice):
                self.attempts[effect.payment_hash] = self.attempts.get(effect.payment_hash, 0) + 1

    def of(self, *statuses: DepositStatus) -> Deposit | None:
        return next((d for d in self.session.deposits if d.status in statuses), None)

    @rule()
    def offer(self) -> None:
        self.number += 1
        self.session = self.session.offered([an_offer(self.number)], NOW)

    @rule()
    def open(self) -> None:
        if self.session.phase is Phase.NEW:
            self.apply(self.session.open(NOW))

    @rule()
    def top_up(self) -> None:
        self.apply(self.session.top_up(NOW))

    @rule(outcome=st.sampled_from(["succeeded", "failed", "unknown"]))
    def node_answers(self, outcome: str) -> None:
        deposit = self.of(DepositStatus.PAYING, DepositStatus.UNKNOWN)
        if deposit is None:
            return
        payment_hash = deposit.payable.payment_hash
        if outcome == "succeeded":
            preimage = next(
                m.preimage
                for m in map(made, range(self.number + 1))
                if m.payment_hash == payment_hash
            )
            self.apply(self.session.payment_succeeded(payment_hash, preimage))
        elif outcome == "failed":
            self.apply(self.session.payment_failed(payment_hash))
        else:
            self.apply(self.session.payment_unknown(payment_hash))

    @rule()
    def provider_credits(self) -> None:
        deposit = self.of(DepositStatus.PAID)
        if deposit is not None:
            self.apply(self.session.claimed(deposit.payable.payment_hash))

    @precondition(lambda self: self.session.phase is Phase.OPEN)
    @rule(tokens=st.integers(1, 64))
    def provider_serves(self, tokens: int) -> None:
        credited = sum(d.amount for d in self.session.deposits if d.status is DepositStatus.CLAIMED)
        tokens = min(tokens, (credited - self.session.served) // TERMS.output_msat)
        self.apply(self.session.received(0, tokens, NOW))

    @precondition(lambda self: self.session.phase is Phase.OPEN)
    @rule(tokens=st.integers(0, 4000))
    def provider_asks_for_more(self, tokens: int) -> None:
        try:
            self.apply(self.session.need_topup(tokens, NOW))
        except RemoteProtocolError as error:
            assert error.reason == "topup-not-due"

    @rule()
    def crash(self) -> None:
        self.session = msgspec.json.decode(msgspec.json.encode(self.session), type=ClientSession)
        assert not any(isinstance(effect, PayInvoice) for effect in self.session.resume())

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        assert all(count == 1 for count in self.attempts.values())

    @invariant()
    def at_most_one_is_outstanding(self) -> None:
        assert sum(d.status in payer.OUTSTANDING for d in self.session.deposits) <= 1

    @invariant()
    def exposure_is_bounded(self) -> None:
        step = TERMS.prefill_cost(2048)
        assert 0 <= self.session.exposure <= TERMS.exposure_limit + step
        assert self.session.max_exposure <= TERMS.exposure_limit + step


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_every_error_has_a_reason() -> None:
    with pytest.raises(OdaError) as refused:
        NEW.claimed(bytes(32))
    assert refused.value.reason == "unknown-deposit"
    with pytest.raises(OdaError) as refused:
        opened().top_up(NOW)[0].payment_succeeded(made(1).payment_hash, bytes(32))
    assert refused.value.reason == "wrong-preimage"
    assert msat(Sat(1)) == 1000
