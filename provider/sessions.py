"""The money of sessions: deposits, charges, refunds. PURE.

Functions take states and return new states and effects. The caller stores the new states in one
transaction and then carries out the effects in their order; `recover` and `due` derive again from
a stored state what was not carried out, so nothing is lost between any two steps.

    credited = spent + held + moved + refund + rest     for every session, to the msat

A deposit is credited once, when the Lightning node says that its invoice has settled; a
credential only says which session it is for. Charge and L402 payments are sessions too, of
another kind: what an answer did not use stays to their credit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from channels.errors import LocalProtocolError
from channels.http.session import Known, Terms
from channels.units import Msat, UnixTime

NOTHING: Final = Msat(0)
NEVER: Final = UnixTime(0)

RETRY_FIRST: Final = 30
RETRY_MOST: Final = 3600
"""Seconds between attempts at a refund; they double."""


class DepositStatus(StrEnum):
    OFFERED = "offered"
    SETTLED = "settled"
    """Paid, and waiting for a credential to say which session it is for."""
    CREDITED = "credited"
    DELETED = "deleted"
    """It was unpaid when the node deleted it: it can't be paid any more."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """One invoice of ours. `session` is what it tops up (when offered) or was credited to."""

    payment_hash: bytes
    session: bytes | None = None
    status: DepositStatus = DepositStatus.OFFERED
    received: Msat = NOTHING


class Kind(StrEnum):
    SESSION = "session"
    CHARGE = "charge"
    """Paid for one request, through a charge or an L402 token."""


class Phase(StrEnum):
    OPEN = "open"
    CLOSING = "closing"
    """No more is spent; outstanding top-up invoices are being deleted."""
    CLOSED = "closed"


class RefundStatus(StrEnum):
    NONE = "none"
    PENDING = "pending"
    """It was decided to pay; the payment may be under way."""
    UNKNOWN = "unknown"
    COMPLETE = "complete"
    FAILED = "failed"
    """Certainly not paid. The amount is to the session's credit again."""
    SKIPPED = "skipped"


SET_ASIDE: Final = (RefundStatus.PENDING, RefundStatus.UNKNOWN, RefundStatus.COMPLETE)


@dataclass(frozen=True, slots=True)
class Session:
    """The account of one session.

    held: taken for input before the engine sees it; becomes spent with the first event that is
    delivered, and comes back if there is none.
    moved: given to another session as credit.
    refund: the amount that is being paid, may have been, or was paid to the return invoice.
    outstanding: the one top-up invoice that was offered and is neither settled nor deleted.
    """

    id: bytes
    kind: Kind
    terms: Terms
    last_active: UnixTime
    return_invoice: str | None = None
    return_hash: bytes | None = None
    return_expires: UnixTime | None = None
    bearer_hash: bytes | None = field(default=None, repr=False)
    phase: Phase = Phase.OPEN
    credited: Msat = NOTHING
    spent: Msat = NOTHING
    held: Msat = NOTHING
    moved: Msat = NOTHING
    refund: Msat = NOTHING
    refund_status: RefundStatus = RefundStatus.NONE
    refund_attempts: int = 0
    refund_next: UnixTime = NEVER
    outstanding: bytes | None = None

    @property
    def rest(self) -> Msat:
        """What is unspent and not on its way back."""
        return Msat(self.credited - self.spent - self.held - self.moved - self.refund)

    @property
    def known(self) -> Known:
        """What the protocol needs to check a credential against it."""
        closed = self.phase is not Phase.OPEN
        return Known(self.id, closed, self.bearer_hash or self.id)


# Effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wake:
    """There is more to spend, or there never will be: let waiting streams look again."""

    session: bytes


@dataclass(frozen=True, slots=True)
class DeleteInvoice:
    """Delete an unpaid invoice on the node, then call `deleted`; `settled` if it was paid."""

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class PayRefund:
    """Pay a return invoice once; then refund_complete, refund_failed or refund_unknown."""

    session: bytes
    return_invoice: str
    amount: Msat


@dataclass(frozen=True, slots=True)
class CheckRefund:
    """Ask the node (listpays) what became of a refund, and report it as for PayRefund."""

    session: bytes
    return_hash: bytes


Effect = Wake | DeleteInvoice | PayRefund | CheckRefund
Step = tuple[Session, tuple[Effect, ...]]


# Deposits ----------------------------------------------------------------------------------------


def settled(
    deposit: Deposit, session: Session | None, received: Msat, now: UnixTime
) -> tuple[Deposit, Session | None, tuple[Effect, ...]]:
    """The node says that an invoice was paid; saying it twice changes nothing.

    session: the one that `deposit.session` names.
    """
    if deposit.status in (DepositStatus.SETTLED, DepositStatus.CREDITED):
        return deposit, session, ()
    if session is None or session.phase is Phase.CLOSED:
        # Too late for the session it was for: whoever has the challenge may open one with it.
        free = replace(deposit, session=None, status=DepositStatus.SETTLED, received=received)
        return free, session, ()
    credited = replace(deposit, status=DepositStatus.CREDITED, received=received)
    session, effects = _credit(session, credited, now)
    return credited, session, effects


def claim(
    deposit: Deposit, session: Session, now: UnixTime
) -> tuple[Deposit, Session, tuple[Effect, ...]]:
    """A top-up credential: credit a settled deposit to the session that it names.

    Claiming again what was credited to it changes nothing. Raises LocalProtocolError.
    """
    if deposit.status is DepositStatus.CREDITED and deposit.session == session.id:
        return deposit, session, ()
    if deposit.status is not DepositStatus.SETTLED:
        raise LocalProtocolError("deposit-not-free", "This deposit was claimed or is not paid.")
    _must_be_open(session)
    credited = replace(deposit, session=session.id, status=DepositStatus.CREDITED)
    session, effects = _credit(session, credited, now)
    return credited, session, effects


def open_session(
    deposit: Deposit,
    kind: Kind,
    terms: Terms,
    now: UnixTime,
    *,
    return_invoice: str | None = None,
    return_hash: bytes | None = None,
    return_expires: UnixTime | None = None,
    bearer_hash: bytes | None = None,
) -> tuple[Deposit, Session]:
    """A session begins with a settled deposit; its payment hash is the session's id.

    Raises LocalProtocolError.
    """
    if deposit.status is not DepositStatus.SETTLED:
        raise LocalProtocolError("deposit-not-free", "This deposit was claimed or is not paid.")
    session = Session(
        id=deposit.payment_hash,
        kind=kind,
        terms=terms,
        last_active=now,
        return_invoice=return_invoice,
        return_hash=return_hash,
        return_expires=return_expires,
        bearer_hash=bearer_hash,
        credited=deposit.received,
    )
    return replace(deposit, session=session.id, status=DepositStatus.CREDITED), session


def offer_topup(session: Session, payment_hash: bytes) -> tuple[Session, Deposit]:
    """Bind a new invoice to a session, which may have one outstanding. Raises
    LocalProtocolError."""
    _must_be_open(session)
    if session.outstanding is not None:
        raise LocalProtocolError("topup-outstanding", "This session has a top-up outstanding.")
    return replace(session, outstanding=payment_hash), Deposit(payment_hash, session.id)


def deleted(
    deposit: Deposit, session: Session | None, now: UnixTime
) -> tuple[Deposit, Session | None, tuple[Effect, ...]]:
    """An unpaid invoice is certainly gone from the node."""
    if deposit.status is not DepositStatus.OFFERED:
        return deposit, session, ()
    deposit = replace(deposit, status=DepositStatus.DELETED)
    if session is None or session.outstanding != deposit.payment_hash:
        return deposit, session, ()
    session = replace(session, outstanding=None)
    if session.phase is Phase.CLOSING:
        session, effects = _finish(session)
        return deposit, session, effects
    return deposit, session, ()


def _credit(session: Session, deposit: Deposit, now: UnixTime) -> Step:
    session = replace(session, credited=Msat(session.credited + deposit.received), last_active=now)
    if session.outstanding == deposit.payment_hash:
        session = replace(session, outstanding=None)
    if session.phase is Phase.CLOSING and session.outstanding is None:
        # It was paid before it could be deleted: it is credited first, then all is refunded.
        return _finish(session)
    return session, (Wake(session.id),)


# Spending ----------------------------------------------------------------------------------------


def hold(session: Session, amount: Msat, now: UnixTime) -> Session:
    """Take the price of input before the engine sees it. Raises LocalProtocolError where the
    rest doesn't cover it: never more than was paid."""
    _must_cover(session, amount)
    return replace(session, held=Msat(session.held + amount), last_active=now)


def release(session: Session, amount: Msat) -> Session:
    """Give back what was held for an answer of which nothing was delivered."""
    return replace(session, held=Msat(session.held - min(amount, session.held)))


def deliver(session: Session, held: Msat, cost: Msat, now: UnixTime) -> Session:
    """Charge for an event that is delivered: its tokens, and with the first one the input that
    was held for it. Raises LocalProtocolError where the rest doesn't cover it."""
    _must_cover(session, cost)
    return replace(
        session,
        held=Msat(session.held - held),
        spent=Msat(session.spent + held + cost),
        last_active=now,
    )


def give_back(session: Session, amount: Msat) -> Session:
    """Take back a charge: the engine counted fewer tokens in the end than came in pieces. Raises
    LocalProtocolError where the session is closed."""
    _must_be_open(session)
    return replace(session, spent=Msat(session.spent - amount))


def touch(session: Session, now: UnixTime) -> Session:
    """It was used just now."""
    return replace(session, last_active=now)


def is_idle(session: Session, now: UnixTime, timeout: int) -> bool:
    return (
        session.kind is Kind.SESSION
        and session.phase is Phase.OPEN
        and now - session.last_active >= timeout
    )


def move_credit(source: Session, target: Session) -> tuple[Session, Session]:
    """Spend what can't be refunded, or what an answer left of its payment, in another session.

    Raises LocalProtocolError where it is not free: nothing that is still being refunded, whose
    refund may have arrived, or that is open for answers may be spent twice.
    """
    _must_be_open(target)
    is_spent_there = source.kind is Kind.SESSION and source.phase is not Phase.CLOSED
    may_be_on_its_way = source.refund_status in (RefundStatus.PENDING, RefundStatus.UNKNOWN)
    if is_spent_there or may_be_on_its_way or source.held or source.id == target.id:
        raise LocalProtocolError("credit-not-free", "This credit is in use or being refunded.")
    amount = source.rest
    return (
        replace(source, moved=Msat(source.moved + amount)),
        replace(target, credited=Msat(target.credited + amount)),
    )


def _must_cover(session: Session, amount: Msat) -> None:
    _must_be_open(session)
    if amount > session.rest:
        raise LocalProtocolError("insufficient-balance", "The session's rest doesn't cover this.")


def _must_be_open(session: Session) -> None:
    if session.phase is not Phase.OPEN:
        raise LocalProtocolError("session-closed", "This session is closed; open a new one.")


# Closing and refunds -----------------------------------------------------------------------------


def close(session: Session) -> Step:
    """No more is spent. The outstanding top-up is deleted first, because a session that was
    refunded must not be paid into. Closing again changes nothing."""
    if session.phase is not Phase.OPEN:
        return session, ()
    session = replace(session, phase=Phase.CLOSING, held=Msat(0))
    wake = Wake(session.id)
    if session.outstanding is not None:
        return session, (wake, DeleteInvoice(session.outstanding))
    session, effects = _finish(session)
    return session, (wake, *effects)


def _finish(session: Session) -> Step:
    session = replace(session, phase=Phase.CLOSED)
    if session.rest == 0:
        # draft-lightning-session-00, section "Close Action": never pay a refund of zero.
        return replace(session, refund_status=RefundStatus.SKIPPED), ()
    return _pay(session)


def _pay(session: Session) -> Step:
    if session.return_invoice is None:
        return replace(session, refund_status=RefundStatus.FAILED), ()
    amount = session.rest
    session = replace(
        session,
        refund=amount,
        refund_status=RefundStatus.PENDING,
        refund_attempts=session.refund_attempts + 1,
    )
    return session, (PayRefund(session.id, str(session.return_invoice), amount),)


def refund_complete(session: Session) -> Session:
    if session.refund_status not in (RefundStatus.PENDING, RefundStatus.UNKNOWN):
        return session
    return replace(session, refund_status=RefundStatus.COMPLETE)


def refund_failed(session: Session, now: UnixTime) -> Session:
    """It is certain that nothing was paid and that nothing is under way."""
    if session.refund_status not in (RefundStatus.PENDING, RefundStatus.UNKNOWN):
        return session
    wait = min(RETRY_MOST, RETRY_FIRST << min(session.refund_attempts - 1, 10))
    return replace(
        session,
        refund=Msat(0),
        refund_status=RefundStatus.FAILED,
        refund_next=UnixTime(now + wait),
    )


def refund_unknown(session: Session) -> Session:
    """Nobody can say whether it was paid. It stays set aside until somebody can."""
    if session.refund_status is not RefundStatus.PENDING:
        return session
    return replace(session, refund_status=RefundStatus.UNKNOWN)


def due(session: Session, now: UnixTime) -> Step:
    """What is to be done about a session from time to time."""
    if session.phase is Phase.CLOSING:
        if session.outstanding is None:
            return _finish(session)
        return session, (DeleteInvoice(session.outstanding),)
    if session.refund_status is RefundStatus.UNKNOWN and session.return_hash is not None:
        return session, (CheckRefund(session.id, session.return_hash),)
    can_still_arrive = session.return_expires is not None and now < session.return_expires
    if (
        session.refund_status is RefundStatus.FAILED
        and session.rest > 0
        and can_still_arrive
        and now >= session.refund_next
    ):
        return _pay(session)
    return session, ()


def recover(session: Session, now: UnixTime) -> Step:
    """What is to be done about a session after a restart: a refund that was about to be paid may
    have been, so its outcome is unknown; what was held for answers that ended with the process
    comes back."""
    session = replace(refund_unknown(session), held=Msat(0))
    return due(session, now)
