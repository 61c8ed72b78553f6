"""The till: offers, deposits and refunds, between the ledger and the Lightning node.

What to do with money is decided in sessions.py; here it is stored and carried out. Every method
stores before it acts, and whatever is lost in between is found again by `recover` or the clock.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from hashlib import sha256
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from channels import lightning_answers as answers
from channels.errors import LocalProtocolError, OdaError
from channels.http import charge, l402, session
from channels.http.scheme import Challenge, Problem
from channels.http.session import Terms
from channels.lightning import (
    LightningError,
    PaymentComplete,
    PaymentFailed,
    PaymentOutcome,
)
from channels.units import Msat, Sat, UnixTime, msat
from provider import sessions
from provider.ledger import Ledger, Offer
from provider.sessions import (
    CheckRefund,
    DeleteInvoice,
    Deposit,
    Effect,
    Kind,
    PayRefund,
    Phase,
    RefundStatus,
    Session,
    Wake,
)
from provider.settings import Keys, ProviderSettings
from provider.share_book import Backing

log = logging.getLogger(__name__)

TICK: Final = 5
"""Seconds between looks at idle sessions, failed refunds and expired offers."""
RETENTION: Final = 24 * 3600
"""Seconds that an unpaid offer is remembered after it has expired."""
STALE: Final = 60
"""An offer with fewer seconds to live is not made again."""
WAIT: Final = 60
BACK_OFF: Final = 5

# lightningd's error codes of delinvoice.
INVOICE_NOT_FOUND: Final = 905
INVOICE_STATUS_UNEXPECTED: Final = 906

# The draft's words for the outcome of a refund.
REFUND_WORDS: Final = {
    RefundStatus.NONE: "pending",
    RefundStatus.PENDING: "pending",
    RefundStatus.UNKNOWN: "pending",
    RefundStatus.COMPLETE: "succeeded",
    RefundStatus.FAILED: "failed",
    RefundStatus.SKIPPED: "skipped",
}


class Node(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
        preimage: str | None = None,
    ) -> answers.NewInvoice: ...

    async def delinvoice(self, label: str, status: str) -> answers.Invoice: ...

    async def listinvoices(
        self, *, label: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Invoice]: ...

    async def waitanyinvoice(
        self,
        lastpay_index: int,
        timeout: int | None = None,  # noqa: ASYNC109  # lightningd's own parameter
    ) -> answers.Invoice | None: ...

    async def pay_once(
        self,
        bolt11: str,
        *,
        maxfee: Msat,
        amount_msat: Msat | None = None,
    ) -> PaymentOutcome: ...


class Provenances(Protocol):
    """What is used of share_desk.ShareDesk."""

    def backing(self, model: str) -> Backing | None:
        """What the sidechain says now of the model of a name."""

    def sent(self, session: bytes, backing: Backing) -> None:
        """A challenge that says so goes to a session."""


class Cashier:
    """network: of the node, in the draft's words ("regtest", "signet", "mainnet").

    desk: knows the provenance that challenges name; None for a provider on no sidechain.
    """

    def __init__(
        self,
        ledger: Ledger,
        node: Node,
        keys: Keys,
        settings: ProviderSettings,
        network: str,
        clock: Callable[[], float] = time.time,
        desk: Provenances | None = None,
    ) -> None:
        self.ledger = ledger
        self._desk = desk
        self._node = node
        self._keys = keys
        self._settings = settings
        self._network = network
        self._clock = clock
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._offering: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def now(self) -> UnixTime:
        return UnixTime(int(self._clock()))

    # Running -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what a crash or a stop left, then watch the node and the clock."""
        self.ledger.release_held()
        effects: list[Effect] = []
        for stored in self.ledger.restless_sessions():
            recovered, more = sessions.recover(stored, self.now())
            self.ledger.save_session(recovered)
            effects += more
        await self.ledger.committed()
        self._spawn(self.carry_out(effects))
        self._spawn(self._for_ever(self._watch_node))
        self._spawn(self._for_ever(self._watch_clock))

    async def stop(self) -> None:
        """Stop watching. Refunds under way are found again by `recover`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A task of the till failed; it is due again.", exc_info=error)

    @staticmethod
    async def _for_ever(watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A till that stopped watching would silently credit and refund nothing more."""
        while True:
            try:
                await watch()
            except OdaError as error:
                log.warning("The till is held up: %s", error)
            except Exception:
                log.exception("The till stumbled and tries again.")
            await asyncio.sleep(BACK_OFF)

    async def _watch_node(self) -> None:
        """Credit what settles, in the node's order."""
        while True:
            paid = await self._node.waitanyinvoice(self.ledger.mark("pay_index"), WAIT)
            if paid is None or paid.pay_index is None:
                continue
            effects = self._settle(paid)
            self.ledger.set_mark("pay_index", paid.pay_index)
            await self.ledger.committed()
            self._spawn(self.carry_out(effects))

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await self.tick()

    async def tick(self) -> None:
        """Close what is idle, try refunds again, delete expired offers."""
        now = self.now()
        effects: list[Effect] = []
        for stored in self.ledger.restless_sessions():
            if sessions.is_idle(stored, now, self._settings.idle_timeout):
                changed, more = sessions.close(stored)
            else:
                changed, more = sessions.due(stored, now)
            if changed != stored:
                self.ledger.save_session(changed)
            effects += more
        effects += [DeleteInvoice(o.payment_hash) for o in self.ledger.expired_offers(now)]
        self.ledger.forget(UnixTime(now - RETENTION))
        await self.ledger.committed()
        await self.carry_out(effects)

    # Offers --------------------------------------------------------------------------------------

    async def offers(
        self, terms: Terms, price: Sat | None, digest: str | None, *, single: bool = False
    ) -> tuple[str, list[Challenge]]:
        """For an unpaid request: an L402 line (empty where there is no price) and challenges.

        price: of this one answer; None where there is no request to be paid for. single: no session
        is offered.
        One invoice serves both L402 and charge: the ledger knows a payment by its hash.
        """
        amounts = ([] if price is None else [price]) + ([] if single else [terms.deposit])
        made = await asyncio.gather(*(self._new_offer(terms, amount) for amount in amounts))
        line, challenges = "", [] if single else [self._session_challenge(made[-1], None)]
        if price is not None:
            whole = made[0]
            line = l402.offer(l402.token_for(self._keys.l402, whole.payment_hash), whole.bolt11)
            challenges.insert(0, self._charge_challenge(whole, digest))
        for challenge, offer in zip(challenges, made, strict=True):
            self.ledger.add_offer(offer, Deposit(offer.payment_hash))
            self.ledger.add_challenge(challenge, offer.payment_hash)
        await self.ledger.committed()
        return line, challenges

    async def next_challenge(self, session_id: bytes) -> Challenge | None:
        """The challenge that goes with a 2xx of a session: its outstanding top-up, or a new one.

        None where the node gives no invoice now; the client can still ask for one.
        """
        lock = self._offering.setdefault(session_id, asyncio.Lock())
        try:
            async with lock:
                offer = await self._topup_offer(session_id)
        except OdaError as error:
            log.warning("No offer for the next top-up: %s", error)
            return None
        challenge = self._session_challenge(offer, session_id)
        self.ledger.add_challenge(challenge, offer.payment_hash)
        await self.ledger.committed()
        return challenge

    async def _topup_offer(self, session_id: bytes) -> Offer:
        stored = self._session(session_id)
        if stored.phase is not Phase.OPEN:
            raise LocalProtocolError("session-closed", "This session is closed.")
        if stored.outstanding is not None:
            offer = self.ledger.offer(stored.outstanding)
            if offer is not None and offer.expires_at - self.now() > STALE:
                return offer
            await self._delete_invoice(stored.outstanding)
        offer = await self._new_offer(stored.terms, stored.terms.deposit)
        changed, deposit = sessions.offer_topup(self._session(session_id), offer.payment_hash)
        self.ledger.add_offer(offer, deposit)
        self.ledger.save_session(changed)
        return offer

    async def _new_offer(self, terms: Terms, amount: Sat) -> Offer:
        nonce = secrets.token_bytes(16)
        preimage = self._keys.preimage(nonce)
        payment_hash = sha256(preimage).digest()
        expires_at = UnixTime(self.now() + self._settings.offer_lifetime)
        label = f"oda-{nonce.hex()}"
        made = await self._node.invoice(
            msat(amount),
            label,
            f"{terms.model} at {terms.unit} per token",
            # The challenge must not outlive the invoice, whose clock started a moment later.
            expiry=self._settings.offer_lifetime + 5,
            preimage=preimage.hex(),
        )
        return Offer(payment_hash, label, made.bolt11, amount, expires_at, terms)

    def _session_challenge(self, offer: Offer, session_id: bytes | None) -> Challenge:
        backing = None if self._desk is None else self._desk.backing(offer.terms.model)
        if self._desk is not None and backing is not None and session_id is not None:
            self._desk.sent(session_id, backing)
        return session.offer(
            self._keys.challenges,
            realm=self._settings.realm,
            terms=offer.terms,
            invoice=offer.bolt11,
            amount=offer.amount,
            payment_hash=offer.payment_hash,
            expires=offer.expires_at,
            idle_timeout=self._settings.idle_timeout,
            nonce=secrets.token_hex(8),
            session=session_id,
            provenance=None if backing is None else backing.provenance,
        )

    def _charge_challenge(self, offer: Offer, digest: str | None) -> Challenge:
        return charge.offer(
            self._keys.challenges,
            realm=self._settings.realm,
            network=self._network,
            invoice=offer.bolt11,
            amount=offer.amount,
            payment_hash=offer.payment_hash,
            expires=offer.expires_at,
            digest=digest,
            opaque={"model": offer.terms.model, "unit": offer.terms.unit},
        )

    # Deposits ------------------------------------------------------------------------------------

    async def confirm(self, payment_hash: bytes) -> None:
        """Ask the node about an invoice whose preimage somebody has: they may be faster than its
        report. Raises OdaError where the node does not answer."""
        deposit = self.ledger.deposit(payment_hash)
        if deposit is None or deposit.status is not sessions.DepositStatus.OFFERED:
            return
        effects: list[Effect] = []
        for invoice in await self._node.listinvoices(payment_hash=payment_hash.hex()):
            if invoice.status == "paid":
                effects += self._settle(invoice)
        await self.ledger.committed()
        await self.carry_out(effects)

    def _settle(self, invoice: answers.Invoice) -> tuple[Effect, ...]:
        deposit = self.ledger.deposit(bytes.fromhex(invoice.payment_hash))
        if deposit is None:
            return ()  # an invoice of somebody else who uses this node
        received = invoice.amount_received_msat
        if received is None:
            raise LocalProtocolError("no-amount", "The node calls an invoice paid with nothing.")
        credited, changed, effects = sessions.settled(
            deposit, self._session_or_none(deposit.session), received, self.now()
        )
        self.ledger.save_deposit(credited)
        if changed is not None:
            self.ledger.save_session(changed)
        return effects

    def open(self, verified: session.Open) -> Session:
        """Open a session with its deposit, or give the one that it opened already."""
        payment_hash = verified.issued.payment_hash
        if (known := self.ledger.session(payment_hash)) is not None:
            return known
        return self._open(
            payment_hash,
            Kind.SESSION,
            return_invoice=verified.return_invoice,
            return_hash=verified.return_hash,
            return_expires=verified.return_expires,
            bearer_hash=verified.bearer_hash,
        )

    def open_charge(self, payment_hash: bytes) -> Session:
        """The account of a payment for one answer."""
        known = self.ledger.session(payment_hash)
        return known or self._open(payment_hash, Kind.CHARGE)

    def _open(self, payment_hash: bytes, kind: Kind, **given: Any) -> Session:
        offer, deposit = self.ledger.offer(payment_hash), self.ledger.deposit(payment_hash)
        if offer is None or deposit is None:
            raise Problem("lightning/unknown-challenge", "No such invoice was made here.")
        try:
            deposit, opened = sessions.open_session(deposit, kind, offer.terms, self.now(), **given)
        except LocalProtocolError as error:
            raise Problem("lightning/unknown-challenge", str(error)) from None
        self.ledger.save_deposit(deposit)
        self.ledger.save_session(opened)
        return opened

    def spend_credit(self, credit: session.Credit, target: Session) -> Session:
        """Move the credit of an earlier session into a new one. Raises Problem."""
        source = self.ledger.session(credit.session)
        if source is None or sha256(credit.secret).digest() != source.known.secret_hash:
            raise Problem("lightning/session-not-found", "There is no such credit of yours.")
        try:
            source, target = sessions.move_credit(source, target)
        except LocalProtocolError as error:
            raise Problem("verification-failed", str(error)) from None
        self.ledger.save_session(source)
        self.ledger.save_session(target)
        return target

    def claim(self, verified: session.TopUp) -> tuple[Effect, ...]:
        deposit = self.ledger.deposit(verified.issued.payment_hash)
        assert deposit is not None  # it was issued with its challenge
        try:
            deposit, changed, effects = sessions.claim(
                deposit, self._session(verified.session), self.now()
            )
        except LocalProtocolError as error:
            raise Problem("lightning/unknown-challenge", str(error)) from None
        self.ledger.save_deposit(deposit)
        self.ledger.save_session(changed)
        return effects

    # Waiting for money ---------------------------------------------------------------------------

    async def wait_for_change(self, session_id: bytes, seconds: float) -> bool:
        """Until a session is credited or closed; False when the time is over."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(session_id, set())
        waiting.add(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(session_id, None)
        return True

    # Closing -------------------------------------------------------------------------------------

    async def close(self, session_id: bytes) -> None:
        """Close, delete what is outstanding and refund; returns when as much as can be known is.

        Closing again does what is still to be done.
        """
        changed, effects = sessions.close(self._session(session_id))
        self.ledger.save_session(changed)
        await self.ledger.committed()
        # Shielded: a client that hangs up does not stop its refund.
        task = asyncio.create_task(self.carry_out(effects))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    async def carry_out(self, effects: Iterable[Effect]) -> None:
        """What can't be done now stays to be done, and is due again at the next tick."""
        for effect in effects:
            try:
                await self._carry_out(effect)
            except OdaError as error:
                log.warning("%s is put off: %s", type(effect).__name__, error)

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Wake(session_id):
                for future in self._waiting.get(session_id, set()):
                    if not future.done():
                        future.set_result(None)
            case DeleteInvoice(payment_hash):
                await self._delete_invoice(payment_hash)
            case PayRefund(session_id, return_invoice, amount):
                await self._refund(session_id, return_invoice, amount)
            case CheckRefund(session_id):
                stored = self._session(session_id)
                # pay_once asks what became of it before it does anything.
                await self._refund(session_id, str(stored.return_invoice), stored.refund)

    async def _delete_invoice(self, payment_hash: bytes) -> None:
        offer = self.ledger.offer(payment_hash)
        if offer is None:
            raise LocalProtocolError("unknown-offer", "There is no such invoice in the ledger.")
        paid = await self._delete_or_see_paid(offer.label)
        if paid is not None:
            effects = self._settle(paid)
        else:
            deposit = self.ledger.deposit(payment_hash)
            assert deposit is not None  # written with its offer
            gone, changed, effects = sessions.deleted(
                deposit, self._session_or_none(deposit.session), self.now()
            )
            self.ledger.save_deposit(gone)
            if changed is not None:
                self.ledger.save_session(changed)
        await self.ledger.committed()
        await self.carry_out(effects)

    async def _delete_or_see_paid(self, label: str) -> answers.Invoice | None:
        """None when the invoice is gone; the invoice when it was paid first."""
        while True:
            found = await self._node.listinvoices(label=label)
            if not found:
                return None
            if found[0].status == "paid":
                return found[0]
            try:
                await self._node.delinvoice(label, found[0].status)
            except LightningError as error:
                # Its status changed just now, or it is gone: look again.
                if error.code not in (INVOICE_NOT_FOUND, INVOICE_STATUS_UNEXPECTED):
                    raise

    async def _refund(self, session_id: bytes, return_invoice: str, amount: Msat) -> None:
        maxfee = self._settings.refund_maxfee_msat
        outcome = await self._node.pay_once(return_invoice, maxfee=maxfee, amount_msat=amount)
        stored = self._session(session_id)
        match outcome:
            case PaymentComplete():
                stored = sessions.refund_complete(stored)
            case PaymentFailed(reason):
                log.warning("A refund of %d msat failed: %s", amount, reason)
                stored = sessions.refund_failed(stored, self.now())
            case _:
                stored = sessions.refund_unknown(stored)
        self.ledger.save_session(stored)
        await self.ledger.committed()

    # Parts ---------------------------------------------------------------------------------------

    def _session(self, session_id: bytes) -> Session:
        stored = self.ledger.session(session_id)
        if stored is None:
            raise LocalProtocolError("unknown-session", "There is no such session in the ledger.")
        return stored

    def _session_or_none(self, session_id: bytes | None) -> Session | None:
        return None if session_id is None else self.ledger.session(session_id)


def headers(line: str, challenges: Iterable[Challenge]) -> list[tuple[str, str]]:
    """`WWW-Authenticate` lines: L402 first, because some clients read only the first one."""
    lines = [line] if line else []
    lines += [challenge.to_header() for challenge in challenges]
    return [("WWW-Authenticate", text) for text in lines]
