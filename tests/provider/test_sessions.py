"""The money of sessions: nothing is lost and nothing doubled, whatever happens in between."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from channels.errors import LocalProtocolError
from channels.http.session import Terms
from channels.units import Msat, UnixTime, msat
from provider import sessions
from provider.sessions import (
    CheckRefund,
    DeleteInvoice,
    Deposit,
    DepositStatus,
    Effect,
    Kind,
    PayRefund,
    Phase,
    RefundStatus,
    Session,
    Wake,
)

TERMS = Terms("bytes-1", Msat(50), Msat(250), 10)  # deposits of 8 sat, D is 16 sat
HALF = msat(TERMS.deposit)
NOW = UnixTime(1_800_000_000)
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def paid(payment_hash: bytes, received: Msat = HALF) -> Deposit:
    return Deposit(payment_hash, None, DepositStatus.SETTLED, received)


def opened(payment_hash: bytes = A) -> Session:
    _, session = sessions.open_session(
        paid(payment_hash),
        Kind.SESSION,
        TERMS,
        NOW,
        return_invoice="lnbcrt1return",
        return_hash=C,
        return_expires=UnixTime(NOW + 10**6),
    )
    return session


def refused(call: object, *args: object) -> str:
    assert callable(call)
    with pytest.raises(LocalProtocolError) as error:
        call(*args)
    return error.value.reason


def test_a_deposit_is_credited_once() -> None:
    session, deposit = sessions.offer_topup(opened(), B)
    deposit, credited, effects = sessions.settled(deposit, session, HALF, NOW)
    assert credited is not None
    assert (credited.credited, credited.outstanding, effects) == (2 * HALF, None, (Wake(A),))
    assert sessions.settled(deposit, credited, HALF, NOW) == (deposit, credited, ())
    assert sessions.claim(deposit, credited, NOW) == (deposit, credited, ())
    assert refused(sessions.claim, deposit, opened(C), NOW) == "deposit-not-free"
    assert refused(sessions.open_session, deposit, Kind.SESSION, TERMS, NOW) == "deposit-not-free"


def test_an_unbound_deposit_waits_for_its_credential() -> None:
    deposit, nobody, effects = sessions.settled(Deposit(B), None, HALF, NOW)
    assert (deposit.status, nobody, effects) == (DepositStatus.SETTLED, None, ())
    deposit, session, effects = sessions.claim(deposit, opened(), NOW)
    assert (session.credited, deposit.session, effects) == (2 * HALF, A, (Wake(A),))
    assert refused(sessions.open_session, Deposit(B), Kind.SESSION, TERMS, NOW) == (
        "deposit-not-free"
    )


def test_one_topup_is_outstanding() -> None:
    session, _ = sessions.offer_topup(opened(), B)
    assert refused(sessions.offer_topup, session, C) == "topup-outstanding"
    deposit, again, effects = sessions.deleted(Deposit(B, A), session, NOW)
    assert again is not None
    assert (deposit.status, again.outstanding, effects) == (DepositStatus.DELETED, None, ())
    assert sessions.deleted(deposit, again, NOW) == (deposit, again, ())
    sessions.offer_topup(again, C)


def test_input_is_held_before_and_spent_with_the_first_event() -> None:
    session = sessions.hold(opened(), Msat(1_050), NOW)
    assert (session.rest, session.held, session.spent) == (6_950, 1_050, 0)
    session = sessions.deliver(session, Msat(1_050), Msat(250), NOW)
    assert (session.rest, session.held, session.spent) == (6_700, 0, 1_300)
    session = sessions.deliver(session, Msat(0), Msat(250), NOW)
    assert session.spent == 1_550


def test_a_failure_before_the_first_event_costs_nothing() -> None:
    session = sessions.release(sessions.hold(opened(), Msat(1_050), NOW), Msat(1_050))
    assert session == opened()


def test_never_more_than_was_paid() -> None:
    assert refused(sessions.hold, opened(), Msat(8_001), NOW) == "insufficient-balance"
    assert refused(sessions.deliver, opened(), Msat(0), Msat(8_001), NOW) == (
        "insufficient-balance"
    )


def test_close_refunds_to_the_millisatoshi() -> None:
    session = sessions.deliver(opened(), Msat(0), Msat(250), NOW)
    session, effects = sessions.close(session)
    assert effects == (Wake(A), PayRefund(A, "lnbcrt1return", Msat(7_750)))
    assert (session.phase, session.rest) == (Phase.CLOSED, 0)
    assert sessions.close(session) == (session, ())
    done = sessions.refund_complete(session)
    assert done.refund_status is RefundStatus.COMPLETE
    assert sessions.refund_failed(done, NOW) == done
    assert refused(sessions.hold, done, Msat(0), NOW) == "session-closed"


def test_nothing_left_is_nothing_paid() -> None:
    session, effects = sessions.close(sessions.deliver(opened(), Msat(0), HALF, NOW))
    assert (session.refund_status, effects) == (RefundStatus.SKIPPED, (Wake(A),))


def test_closing_waits_for_the_outstanding_topup() -> None:
    session, deposit = sessions.offer_topup(opened(), B)
    closing, effects = sessions.close(session)
    assert (closing.phase, effects) == (Phase.CLOSING, (Wake(A), DeleteInvoice(B)))
    assert sessions.due(closing, NOW)[1] == (DeleteInvoice(B),)
    assert refused(sessions.deliver, closing, Msat(0), Msat(1), NOW) == "session-closed"
    _, gone, effects = sessions.deleted(deposit, closing, NOW)
    assert effects == (PayRefund(A, "lnbcrt1return", HALF),)
    assert gone is not None
    # It was paid before it could be deleted: credited first, then refunded with the rest.
    _, both, effects = sessions.settled(deposit, closing, HALF, NOW)
    assert effects == (PayRefund(A, "lnbcrt1return", Msat(2 * HALF)),)
    assert both is not None
    # Paid after all was over: whoever holds the challenge may open a session with it.
    late, same, effects = sessions.settled(Deposit(B, A), gone, HALF, NOW)
    assert (late.session, late.status, same, effects) == (None, DepositStatus.SETTLED, gone, ())
    assert sessions.open_session(late, Kind.SESSION, TERMS, NOW)[1].credited == HALF


def test_an_unknown_refund_is_checked_and_never_paid_again() -> None:
    session, _ = sessions.close(opened())
    unknown = sessions.refund_unknown(session)
    assert sessions.due(unknown, UnixTime(NOW + 10**5)) == (unknown, (CheckRefund(A, C),))
    assert refused(sessions.move_credit, unknown, opened(B)) == "credit-not-free"
    assert sessions.recover(session, NOW) == (unknown, (CheckRefund(A, C),))
    assert sessions.refund_complete(unknown).refund_status is RefundStatus.COMPLETE


def test_a_failed_refund_is_a_debt_that_is_tried_again_or_spent() -> None:
    failed = sessions.refund_failed(sessions.close(opened())[0], NOW)
    assert (failed.rest, failed.refund_status) == (HALF, RefundStatus.FAILED)
    assert sessions.due(failed, NOW) == (failed, ())
    again, effects = sessions.due(failed, UnixTime(NOW + 30))
    assert effects == (PayRefund(A, "lnbcrt1return", HALF),)
    assert sessions.refund_failed(again, NOW).refund_next == NOW + 60
    # Once the return invoice has expired nothing can arrive; the debt stays.
    assert sessions.due(failed, UnixTime(NOW + 10**6)) == (failed, ())
    source, target = sessions.move_credit(failed, opened(B))
    assert (source.rest, target.rest) == (0, 2 * HALF)
    assert sessions.due(source, UnixTime(NOW + 30)) == (source, ())
    assert sessions.move_credit(source, target) == (source, target)


def test_credit_that_is_not_free() -> None:
    assert refused(sessions.move_credit, opened(A), opened(B)) == "credit-not-free"
    _, charge = sessions.open_session(paid(A), Kind.CHARGE, TERMS, NOW)
    assert sessions.move_credit(charge, opened(B))[1].rest == 2 * HALF
    held = sessions.hold(charge, Msat(1), NOW)
    assert refused(sessions.move_credit, held, opened(B)) == "credit-not-free"
    assert refused(sessions.move_credit, charge, charge) == "credit-not-free"


def test_idleness() -> None:
    session = opened()
    assert not sessions.is_idle(session, UnixTime(NOW + 299), 300)
    assert sessions.is_idle(session, UnixTime(NOW + 300), 300)
    assert not sessions.is_idle(
        sessions.touch(session, UnixTime(NOW + 9)), UnixTime(NOW + 300), 300
    )
    assert not sessions.is_idle(sessions.close(session)[0], UnixTime(NOW + 300), 300)
    _, charge = sessions.open_session(paid(A), Kind.CHARGE, TERMS, NOW)
    assert not sessions.is_idle(charge, UnixTime(NOW + 10**6), 300)


def test_the_owner_is_whoever_has_the_secret() -> None:
    assert opened().known.secret_hash == A
    assert replace(opened(), bearer_hash=B).known.secret_hash == B
    assert sessions.close(opened())[0].known.closed


@dataclass
class Invoice:
    """What the Lightning node knows about one of our invoices."""

    amount: Msat
    paid: bool = False
    deleted: bool = False


class Money(RuleBasedStateMachine):
    """A provider, its node and a payer who keeps the rules, in any order, with crashes.

    `deposits` and `sessions` are what is on disk; `effects` are lost in a crash. `invoices` and
    `refunds` are what is true on the Lightning side, which no crash of ours changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.number = 0
        self.deposits: dict[bytes, Deposit] = {}
        self.sessions: dict[bytes, Session] = {}
        self.effects: list[Effect] = []
        self.invoices: dict[bytes, Invoice] = {}
        self.refunds: dict[bytes, Msat] = {}  # by return hash: what arrived
        self.attempts: dict[bytes, str] = {}  # by return hash: the node's word on the last one

    # The provider's turns

    def store(self, *changed: Deposit | Session | None) -> None:
        for item in changed:
            if isinstance(item, Deposit):
                self.deposits[item.payment_hash] = item
            elif isinstance(item, Session):
                self.sessions[item.id] = item

    def new_invoice(self) -> bytes:
        self.number += 1
        payment_hash = self.number.to_bytes(32, "big")
        self.invoices[payment_hash] = Invoice(HALF)
        return payment_hash

    def an_open(self, data: st.DataObject) -> Session | None:
        found = [s for s in self.sessions.values() if s.phase is Phase.OPEN]
        return data.draw(st.sampled_from(found)) if found else None

    @initialize()
    def begin(self) -> None:
        """One deposit that waits and two open sessions, so that the rules find work."""
        for _ in range(3):
            self.offer_to_anybody()
        for payment_hash in list(self.invoices):
            self.invoices[payment_hash].paid = True
            self.settle(payment_hash)
        for payment_hash in list(self.invoices)[:2]:
            self.open_with(self.deposits[payment_hash])

    @rule()
    def offer_to_anybody(self) -> None:
        self.store(Deposit(self.new_invoice()))

    @rule(data=st.data())
    def offer_topup(self, data: st.DataObject) -> None:
        session = self.an_open(data)
        if session is not None and session.outstanding is None:
            self.store(*sessions.offer_topup(session, self.new_invoice()))

    @rule(data=st.data())
    def pay(self, data: st.DataObject) -> None:
        """The payer pays an invoice that it was offered, if that keeps it within D."""
        open_ = [h for h, i in self.invoices.items() if not i.paid and not i.deleted]
        if not open_:
            return
        payment_hash = data.draw(st.sampled_from(open_))
        session = self.sessions.get(self.deposits[payment_hash].session or b"")
        if session is not None and session.rest + session.held > HALF:
            return
        self.invoices[payment_hash].paid = True

    @rule(data=st.data())
    def node_reports(self, data: st.DataObject) -> None:
        """waitanyinvoice, also of what was reported before."""
        settled = [h for h, i in self.invoices.items() if i.paid]
        if settled:
            self.settle(data.draw(st.sampled_from(settled)))

    def settle(self, payment_hash: bytes) -> None:
        deposit = self.deposits[payment_hash]
        session = self.sessions.get(deposit.session or b"")
        amount = self.invoices[payment_hash].amount
        deposit, session, effects = sessions.settled(deposit, session, amount, self.now)
        self.store(deposit, session)
        self.effects.extend(effects)

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        free = [d for d in self.deposits.values() if d.status is DepositStatus.SETTLED]
        if free:
            self.open_with(data.draw(st.sampled_from(free)))

    def open_with(self, deposit: Deposit) -> None:
        deposit, session = sessions.open_session(
            deposit,
            Kind.SESSION,
            TERMS,
            self.now,
            return_invoice="lnbcrt1return",
            return_hash=b"R" + deposit.payment_hash[1:],
            return_expires=UnixTime(self.now + 3000),
        )
        self.store(deposit, session)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """Any credential for any deposit, repeated ones included."""
        session = self.an_open(data)
        if session is None or session.rest + session.held > HALF:
            return
        if session.outstanding is not None and self.invoices[session.outstanding].paid:
            return  # a payer who keeps the rules has one top-up outstanding
        deposit = data.draw(st.sampled_from(list(self.deposits.values())))
        try:
            deposit, session, effects = sessions.claim(deposit, session, self.now)
        except LocalProtocolError:
            return
        self.store(deposit, session)
        self.effects.extend(effects)

    @rule(data=st.data(), tokens=st.integers(1, 300))
    def prefill_is_held(self, data: st.DataObject, tokens: int) -> None:
        session = self.an_open(data)
        if session is not None and TERMS.prefill_cost(tokens) <= session.rest:
            self.store(sessions.hold(session, TERMS.prefill_cost(tokens), self.now))

    @rule(data=st.data(), tokens=st.integers(0, 40), first=st.booleans())
    def deliver(self, data: st.DataObject, tokens: int, first: bool) -> None:
        session = self.an_open(data)
        if session is not None and TERMS.cost(0, tokens) <= session.rest:
            held = session.held if first else Msat(0)
            self.store(sessions.deliver(session, held, TERMS.cost(0, tokens), self.now))

    @rule(data=st.data(), tokens=st.integers(0, 40))
    def engine_counts_less(self, data: st.DataObject, tokens: int) -> None:
        session = self.an_open(data)
        if session is not None:
            over = Msat(min(TERMS.cost(0, tokens), session.spent))
            self.store(sessions.give_back(session, over))

    @rule(data=st.data())
    def engine_fails(self, data: st.DataObject) -> None:
        session = self.an_open(data)
        if session is not None:
            self.store(sessions.release(session, session.held))

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        session = self.an_open(data)
        if session is not None:
            session, effects = sessions.close(session)
            self.store(session)
            self.effects.extend(effects)

    @rule(seconds=st.integers(1, 2000))
    def time_passes(self, seconds: int) -> None:
        self.now = UnixTime(self.now + seconds)
        for session in list(self.sessions.values()):
            if sessions.is_idle(session, self.now, 1500):
                session, effects = sessions.close(session)
                self.store(session)
                self.effects.extend(effects)
            session, effects = sessions.due(self.sessions[session.id], self.now)
            self.store(session)
            self.effects.extend(effects)

    @rule(data=st.data())
    def spend_credit(self, data: st.DataObject) -> None:
        target = self.an_open(data)
        source = data.draw(st.sampled_from([*self.sessions.values(), None]))
        if source is None or target is None:
            return
        try:
            self.store(*sessions.move_credit(source, target))
        except LocalProtocolError as error:
            assert error.reason == "credit-not-free"

    @rule(data=st.data(), outcome=st.sampled_from(["complete", "failed", "lost", "hangs"]))
    def carry_out(self, data: st.DataObject, outcome: str) -> None:
        """Carry out the next effect; `lost`: it happened, but the answer never came."""
        if self.effects:
            self.carry_out_one(self.effects.pop(0), outcome)

    def carry_out_one(self, effect: Effect, outcome: str) -> None:
        if isinstance(effect, DeleteInvoice):
            invoice = self.invoices[effect.payment_hash]
            if invoice.paid:
                self.settle(effect.payment_hash)
                return
            invoice.deleted = True
            if outcome != "lost":
                self.gone(effect.payment_hash)
        elif isinstance(effect, PayRefund):
            self.pay_refund(effect, outcome)
        elif isinstance(effect, CheckRefund):
            self.check_refund(effect)

    def gone(self, payment_hash: bytes) -> None:
        deposit = self.deposits[payment_hash]
        session = self.sessions.get(deposit.session or b"")
        deposit, session, effects = sessions.deleted(deposit, session, self.now)
        self.store(deposit, session)
        self.effects.extend(effects)

    def pay_refund(self, effect: PayRefund, outcome: str) -> None:
        session = self.sessions[effect.session]
        assert session.return_hash is not None
        assert session.return_hash not in self.refunds, "a return invoice is paid once"
        if outcome in ("complete", "lost"):
            self.refunds[session.return_hash] = effect.amount
        self.attempts[session.return_hash] = {"lost": "complete"}.get(outcome, outcome)
        if outcome == "complete":
            self.store(sessions.refund_complete(session))
        elif outcome == "failed":
            self.store(sessions.refund_failed(session, self.now))
        else:
            self.store(sessions.refund_unknown(session))

    def check_refund(self, effect: CheckRefund) -> None:
        session = self.sessions[effect.session]
        word = self.attempts.get(effect.return_hash, "failed")
        if word == "complete":
            self.store(sessions.refund_complete(session))
        elif word == "failed":
            self.store(sessions.refund_failed(session, self.now))
        else:  # it hangs: the next time the node knows that it failed
            self.attempts[effect.return_hash] = "failed"

    @rule()
    def crash(self) -> None:
        """kill -9: what was not carried out is forgotten; the node goes on."""
        self.effects = []
        for session in list(self.sessions.values()):
            session, effects = sessions.recover(session, self.now)
            self.store(session)
            self.effects.extend(effects)

    # What must always be so

    @invariant()
    def every_account_adds_up(self) -> None:
        for s in self.sessions.values():
            assert min(s.rest, s.held, s.spent, s.moved, s.refund) >= 0
            assert s.credited == s.spent + s.held + s.moved + s.refund + s.rest

    @invariant()
    def nothing_appears_or_disappears(self) -> None:
        known = sum(
            d.received
            for d in self.deposits.values()
            if d.status in (DepositStatus.SETTLED, DepositStatus.CREDITED)
        )
        free = sum(d.received for d in self.deposits.values() if d.status is DepositStatus.SETTLED)
        accounts = self.sessions.values()
        assert known == free + sum(s.spent + s.held + s.refund + s.rest for s in accounts)
        assert known <= sum(i.amount for i in self.invoices.values() if i.paid)

    @invariant()
    def refunds_are_what_was_set_aside(self) -> None:
        for s in self.sessions.values():
            arrived = self.refunds.get(s.return_hash or b"", 0)
            if s.refund_status is RefundStatus.COMPLETE:
                assert arrived == s.refund
            elif s.refund_status in (RefundStatus.PENDING, RefundStatus.UNKNOWN):
                assert arrived in (0, s.refund)
            else:
                assert arrived == 0

    @invariant()
    def exposure_is_bounded(self) -> None:
        """Nothing was moved in: what the provider holds of one session is at most D."""
        for s in self.sessions.values():
            if s.phase is Phase.OPEN and not any(o.moved for o in self.sessions.values()):
                assert s.rest + s.held <= TERMS.exposure_limit

    def teardown(self) -> None:
        """Let everything come to rest: each paid satoshi is served, refunded or still owed."""
        for payment_hash, invoice in self.invoices.items():
            if invoice.paid:
                self.settle(payment_hash)
        for session in list(self.sessions.values()):
            session, effects = sessions.close(self.sessions[session.id])
            self.store(session)
            self.effects.extend(effects)
        for _ in range(6):
            self.crash()
            while self.effects:
                self.carry_out_one(self.effects.pop(0), "complete")
            self.now = UnixTime(self.now + 100)
        accounts = self.sessions.values()
        assert all(s.phase is Phase.CLOSED for s in accounts)
        assert not any(
            s.refund_status in (RefundStatus.PENDING, RefundStatus.UNKNOWN) for s in accounts
        )
        paid_in = sum(i.amount for i in self.invoices.values() if i.paid)
        free = sum(d.received for d in self.deposits.values() if d.status is DepositStatus.SETTLED)
        owed = sum(s.rest for s in accounts)
        assert paid_in == free + sum(s.spent for s in accounts) + sum(self.refunds.values()) + owed


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
