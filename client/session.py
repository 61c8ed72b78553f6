"""One session with one provider: the effects of `ClientSession`, carried out in their order.

What to pay, and when, is decided in channels.http.payer. Here a new value is stored before the
rest of its step is done, so a crash at any point leaves a value from which `settle` goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from channels import lightning_answers as answers
from channels.errors import OdaError, RemoteProtocolError, UserError
from channels.http.payer import (
    OUTSTANDING,
    AskForOffer,
    CheckPayment,
    Deposit,
    DepositStatus,
    Effect,
    PayInvoice,
    Persist,
    Phase,
    SendCredential,
    Step,
)
from channels.http.scheme import Challenge, Credential
from channels.http.session import Provenance
from channels.lightning import (
    PaymentComplete,
    PaymentFailed,
    PaymentOutcome,
    PaymentUnknown,
)
from channels.terminal import EXIT_CODES, ExitCode
from channels.units import Msat, Sat, UnixTime, msat
from client.budget import Budget
from client.provider import Provider, ProviderRefused, ProviderUnreachable, Reply, spent_msat
from client.question import Question
from client.store import AnswerRow, SessionRow, Store

PATIENCE: Final = 120.0
"""Seconds that the outcome of a payment is asked for."""
BACK_OFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
REFUND_SECONDS: Final = 20.0
TRACE_SECONDS: Final = 60
"""An expired invoice of which the node knows nothing after so long will never be paid."""

CLOSED: Final = "lightning/session-closed"
UNKNOWN_CHALLENGE: Final = "lightning/unknown-challenge"

EXIT_CODES.update(
    {
        "session-cap-reached": ExitCode.NOT_ENOUGH_FUNDS,
        "request-cap-reached": ExitCode.NOT_ENOUGH_FUNDS,
        "hour-cap-reached": ExitCode.NOT_ENOUGH_FUNDS,
        "day-cap-reached": ExitCode.NOT_ENOUGH_FUNDS,
        "total-cap-reached": ExitCode.NOT_ENOUGH_FUNDS,
        "session-in-use": ExitCode.IN_USE,
        CLOSED: ExitCode.REFUSED,
    }
)

T = TypeVar("T")


class Node(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def getinfo(self) -> answers.NodeInfo: ...

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]: ...

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
    ) -> answers.NewInvoice: ...

    async def listinvoices(self, *, label: str | None = None) -> list[answers.Invoice]: ...

    async def waitinvoice(self, label: str) -> answers.Invoice: ...

    async def listpays(self, *, bolt11: str | None = None) -> list[answers.Pay]: ...

    async def pay_once(self, bolt11: str, *, maxfee: Msat) -> PaymentOutcome: ...

    async def payment_outcome(self, bolt11: str) -> PaymentOutcome: ...


@dataclass(frozen=True, slots=True)
class Refund:
    """The end of a session.

    promised: what the provider says it sends; received: what has arrived on our node.
    unaccounted: what is missing although every token of every answer was counted; 0 where an
    answer was left, because tokens that were on their way then were delivered and cost.
    """

    session: int
    paid_msat: Msat
    spent_msat: Msat
    promised_msat: Msat
    received_msat: Msat
    unaccounted_msat: Msat
    status: str


class PaidSession:
    """budget: the user's caps over all sessions; routing_fee_percent: 0 pays no routing fee.

    check_tip: raises for a provenance that is not as of our own chain's tip. patience: seconds that
    the provider may be away in the middle of something.
    """

    def __init__(
        self,
        row: SessionRow,
        store: Store,
        node: Node,
        provider: Provider,
        *,
        budget: Budget,
        routing_fee_percent: int,
        check_tip: Callable[[Provenance], None] = lambda provenance: None,
        patience: float,
    ) -> None:
        self.number = row.number
        self.value = row.value
        self.label = row.label
        self.provider = provider
        self._store = store
        self._node = node
        self._budget = budget
        self._most_paid = budget.max_request
        self._routing_fee_percent = routing_fee_percent
        self._check_tip = check_tip
        self.patience = patience

    @staticmethod
    def now() -> UnixTime:
        return UnixTime(int(time.time()))

    @property
    def topups(self) -> int:
        return sum(
            d.action == "topUp" and d.status in (DepositStatus.PAID, DepositStatus.CLAIMED)
            for d in self.value.deposits
        )

    @property
    def claimed(self) -> Msat:
        """What the provider has acknowledged."""
        paid = [d.amount for d in self.value.deposits if d.status is DepositStatus.CLAIMED]
        return Msat(sum(paid))

    def save(self, answer: AnswerRow | None = None) -> None:
        self._store.save(self.number, self.value, self.now(), answer=answer)

    def apply(self, step: Step, answer: AnswerRow | None = None) -> tuple[Effect, ...]:
        """Take a step's value, stored where it says so together with how far an answer was read;
        the effects that are left to do.

        Raises UserError with the reason of a cap; the session stays as it was then.
        """
        value, effects = step
        if value.paid > max(self.value.paid, self._most_paid):
            raise UserError(
                "request-cap-reached",
                f"Another deposit would pass your cap of {self._budget.max_request // 1000} sat "
                "for one answer: raise client.max_request_sat.",
            )
        if effects and isinstance(effects[0], Persist):
            caps = self._budget.caps(self.now())
            self._store.save(self.number, value, self.now(), answer=answer, caps=caps)
            effects = effects[1:]
        self.value = value
        return effects

    def offered(self, challenges: Sequence[Challenge]) -> None:
        value = self.value.offered(challenges, self.now())
        is_new = value.provenances != self.value.provenances
        if is_new:
            self._check_tip(value.provenances[-1])
        self.value = value
        if is_new:
            self.save()  # a receipt is held against it, also after a kill

    # Opening and asking --------------------------------------------------------------------------

    async def credential(self, question: Question) -> SendCredential:
        """What authorizes the next request; pays the first deposit where nothing was paid yet."""
        await self.settle()
        # What was served before is none of this answer's; what is left over may be used up by it.
        self._most_paid = Msat(self.value.served + self._budget.max_request)
        if self.value.phase is Phase.NEW:
            await self._open(question)
        if self.value.phase is Phase.OPENING:
            paid = [e for e in self.value.resume() if isinstance(e, SendCredential)]
            if not paid:
                raise payment_unknown()
            return paid[0]
        for _ in range(2):
            for effect in self.apply(self.value.bearer()):
                if isinstance(effect, SendCredential):
                    return effect
            self.offered(await self.provider.offers(question))
        raise RemoteProtocolError("no-offer", "The provider made no offer for a session.")

    async def _open(self, question: Question) -> None:
        for _ in range(2):
            self.offered(await self.provider.offers(question))
            if self.value.terms is None:
                raise RemoteProtocolError("no-offer", "The provider made no offer for a session.")
            effects = self.apply(self.value.open(self.now()))
            if effects == (AskForOffer(),):
                continue
            await self.carry_out(effects)
            return
        raise RemoteProtocolError("offer-expired", "The provider's offers have always expired.")

    def answered(self, sent: SendCredential, challenges: Sequence[Challenge]) -> None:
        """The provider answered a request's credential with a 2xx."""
        if sent.payment_hash is not None:
            self.apply(self.value.claimed(sent.payment_hash))
        self.offered(challenges)

    def forget_challenge(self) -> None:
        """The provider doesn't know the latest challenge any more: ask for another."""
        self.value = replace(self.value, fresh=False)

    # Paying --------------------------------------------------------------------------------------

    async def top_up(self, effects: Sequence[Effect], question: Question) -> Msat:
        """Carry out a top-up; what was paid when the provider has acknowledged it, 0 where none
        was due any more."""
        for _ in range(3):
            if AskForOffer() not in effects:
                await self.carry_out(effects)
                return Msat(sum(e.amount for e in effects if isinstance(e, PayInvoice)))
            self.offered(await patiently(lambda: self.provider.offers(question), self.patience))
            effects = self.apply(self.value.top_up(self.now()))
        raise RemoteProtocolError("no-offer", "The provider gives no offer to top up with.")

    def has_paid(self, offer: Challenge) -> bool:
        """Whether its invoice was paid, or may have been."""
        payment_hash = offer.request_object().get("paymentHash")
        return any(
            d.payable.payment_hash.hex() == payment_hash and d.status is not DepositStatus.FAILED
            for d in self.value.deposits
        )

    async def carry_out(self, effects: Sequence[Effect]) -> None:
        """Payments and the claims that follow from them, in their order.

        Raises OdaError `payment-failed` and `payment-unknown`. Cancelled, it leaves a payment to
        the node: `settle` learns later what became of it.
        """
        todo = list(effects)
        while todo:
            effect = todo.pop(0)
            match effect:
                case PayInvoice(invoice, payment_hash, amount):
                    outcome = await self._node.pay_once(invoice, maxfee=self._maxfee(amount))
                    todo[:0] = self._report(payment_hash, outcome)
                case CheckPayment(payment_hash):
                    outcome = await self._find_out(self._deposit(payment_hash))
                    todo[:0] = self._report(payment_hash, outcome)
                case SendCredential("topUp", credential, payment_hash) if payment_hash:
                    reply = await self._claim(credential)
                    self.apply(self.value.claimed(payment_hash))
                    self.offered(reply.challenges)

    async def _claim(self, credential: Credential) -> Reply:
        return await patiently(lambda: self.provider.claim(credential), self.patience)

    def _maxfee(self, amount: Msat) -> Msat:
        if self.value.caps.direct or not self._routing_fee_percent:
            return Msat(0)
        return Msat(max(msat(Sat(1)), amount * self._routing_fee_percent // 100))

    def _report(self, payment_hash: bytes, outcome: PaymentOutcome) -> tuple[Effect, ...]:
        match outcome:
            case PaymentComplete(preimage):
                step = self.value.payment_succeeded(payment_hash, bytes.fromhex(preimage))
                return self.apply(step)
            case PaymentFailed(reason):
                self.apply(self.value.payment_failed(payment_hash))
                raise OdaError("payment-failed", f"The deposit could not be paid: {reason}")
            case _:
                return self.apply(self.value.payment_unknown(payment_hash))

    async def _find_out(self, deposit: Deposit) -> PaymentOutcome:
        """Ask until it is known. Raises OdaError `payment-unknown` when patience ends."""
        invoice = deposit.payable.invoice
        deadline = time.monotonic() + PATIENCE
        for wait in (*BACK_OFF, *[BACK_OFF[-1]] * int(PATIENCE)):
            outcome = await self._node.payment_outcome(invoice)
            if isinstance(outcome, PaymentUnknown) and not await self._has_trace(invoice):
                if self.now() > deposit.payable.expires_at + TRACE_SECONDS:
                    return PaymentFailed("it never left, and its invoice has expired", 0)
                # The same invoice again: the node pays it once, whatever it was asked before.
                outcome = await self._node.pay_once(invoice, maxfee=self._maxfee(deposit.amount))
            if isinstance(outcome, PaymentComplete | PaymentFailed):
                return outcome
            if time.monotonic() + wait > deadline:
                break
            await asyncio.sleep(wait)
        raise payment_unknown()

    async def _has_trace(self, invoice: str) -> bool:
        """Raises LightningUnreachable rather than say no."""
        return bool(await self._node.listpays(bolt11=invoice))

    def _deposit(self, payment_hash: bytes) -> Deposit:
        return next(d for d in self.value.deposits if d.payable.payment_hash == payment_hash)

    async def settle(self) -> None:
        """Find out about every payment whose outcome a crash or a Ctrl-C left open, and claim
        what was paid. A deposit that failed after all is simply not there."""
        for effect in self.value.resume():
            is_answer = isinstance(effect, SendCredential) and effect.action != "topUp"
            if is_answer:
                continue
            try:
                await self.carry_out([effect])
            except OdaError as error:
                if error.reason != "payment-failed":
                    raise

    # What was delivered --------------------------------------------------------------------------

    def served(self, input_tokens: int, output_tokens: int) -> None:
        """Count what arrived. Unlike `ClientSession.received` this pays nothing, so that a cap
        which forbids the next deposit does not lose the count of what is here."""
        value = self.value
        assert value.terms is not None  # an answer is for a session that was offered
        cost = value.terms.cost(input_tokens, output_tokens)
        value = replace(value, served=Msat(value.served + cost), prefill=Msat(0))
        if value.exposure < 0:
            raise RemoteProtocolError("overcharged", "More was counted than was ever paid for.")
        self.value = value

    def spent_is(self, spent: Msat, answer: str) -> None:
        """Check what the provider says it has charged in this session, during an answer. Where an
        earlier one was left, our own count is a lower bound, and this takes its place.

        Raises RemoteProtocolError `overcharged`.
        """
        value = self.value
        if spent <= value.served:
            return
        if not self._store.uncounted(self.number, answer) or spent > value.paid:
            raise RemoteProtocolError(
                "overcharged",
                f"The provider charged {spent} msat; what it delivered costs {value.served} msat.",
            )
        self.value = replace(value, served=spent)
        self._store.settle_answers(self.number, answer)
        self.save()

    # Closing -------------------------------------------------------------------------------------

    async def close(self) -> Refund:
        """Close, and wait for the refund. Closing again looks for a refund that is still due.

        Raises OdaError `payment-unknown` where a deposit may still be on its way.
        """
        if self.value.phase is not Phase.CLOSED:
            # A deposit that was begun and never reached our node can only be made certain by paying
            # it: it is then credited, and comes back with the rest.
            await self.settle()
            if self.value.phase is Phase.OPENING:
                await self._open_without_answer()
            if any(d.status in OUTSTANDING for d in self.value.deposits):
                raise payment_unknown()
            if self.value.phase is Phase.NEW:
                self.apply(self.value.closed(Msat(0), "skipped"))
            else:
                await self._ask_to_close()
        received = await self._received(wait=(self.value.refund or 0) > 0)
        if received and received >= (self.value.refund or 0):
            self.value = replace(self.value, refund=received, refund_status="succeeded")
            self.save()
        return self._refund(received)

    async def _open_without_answer(self) -> None:
        """A deposit that was paid just before a crash: the session opens only to be refunded."""
        for effect in self.value.resume():
            if isinstance(effect, SendCredential):
                reply = await self._claim(effect.credential)
                self.answered(effect, reply.challenges)

    async def _ask_to_close(self) -> None:
        for effect in self.apply(self.value.close()):
            if not isinstance(effect, SendCredential):
                continue
            try:
                reply = await self._claim(effect.credential)
            except ProviderRefused as refusal:
                if refusal.reason != CLOSED:
                    raise
                await self.was_closed()
                return
            promised = spent_msat(reply.document, "refundMsat")
            if promised is None or promised > self.value.paid:
                raise RemoteProtocolError("bad-refund", "The provider's refund makes no sense.")
            status = str(reply.document.get("refundStatus", "pending"))[:32]
            self.apply(self.value.closed(promised, status))

    async def was_closed(self) -> None:
        """The provider closed it by itself (idle): its refund is on our return invoice."""
        received = await self._received(wait=False)
        self.apply(self.value.closed(received, "succeeded" if received else "pending"))

    async def _received(self, wait: bool) -> Msat:
        if wait:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFUND_SECONDS):
                    paid = await self._node.waitinvoice(self.label)
                    return paid.amount_received_msat or Msat(0)
        found = await self._node.listinvoices(label=self.label)
        received = [i.amount_received_msat or Msat(0) for i in found if i.status == "paid"]
        return received[0] if received else Msat(0)

    def _refund(self, received: Msat) -> Refund:
        value = self.value
        promised = value.refund or Msat(0)
        missing = max(0, value.paid - value.served - max(promised, received))
        counted = not self._store.uncounted(self.number)
        return Refund(
            session=self.number,
            paid_msat=value.paid,
            spent_msat=Msat(value.paid - max(promised, received)),
            promised_msat=promised,
            received_msat=received,
            unaccounted_msat=Msat(missing if counted else 0),
            status=value.refund_status or "pending",
        )


async def patiently(call: Callable[[], Awaitable[T]], patience: float) -> T:
    """Repeat what may be repeated while the provider is away."""
    deadline = time.monotonic() + patience
    attempt = 0
    while True:
        try:
            return await call()
        except ProviderUnreachable:
            wait = BACK_OFF[min(attempt, len(BACK_OFF) - 1)]
            if time.monotonic() + wait > deadline:
                raise
            attempt += 1
            await asyncio.sleep(wait)


def payment_unknown() -> OdaError:
    return OdaError(
        "payment-unknown",
        "Nobody can say yet whether a deposit was paid; nothing is paid again before that is "
        "known. Try again in a minute.",
    )
