"""The payer's half of the intent `session`: what to pay, when, and how much is at risk. PURE.

A `ClientSession` is a value. Each method returns the next one and effects, which the caller
carries out in their order; what follows `Persist` rests on the new value being on disk. So a
challenge is on disk before its invoice is paid, and a preimage before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Final

from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.http import method
from channels.http.method import METHOD, Limits, Payable
from channels.http.scheme import Challenge, Credential
from channels.http.session import INTENT, MAX_MODEL, MAX_PACE, MAX_PRICE, UNIT, Provenance, Terms
from channels.units import Msat, Sat, UnixTime, msat


@dataclass(frozen=True, slots=True)
class Caps:
    """What the user allows. An offer beyond it is refused and nothing is paid.

    payee: the node that must be paid (33 bytes), None where the user can't know it.
    direct: whether deposits go over one channel, with nobody in between who sees a preimage.
    max_exposure: the most that the provider may owe at any instant: D, and what a question costs
        beyond its first step of prefill.
    max_session: the most that is paid into one session.
    min_trainer_ppm, min_producers_ppm: the least that must be passed on to those who made the
    model, in millionths of what is spent.
    """

    network: str
    payee: bytes | None
    direct: bool
    max_input_msat: Msat
    max_output_msat: Msat
    max_exposure: Msat
    max_session: Msat
    min_trainer_ppm: int = 0
    min_producers_ppm: int = 0


class DepositStatus(StrEnum):
    PAYING = "paying"
    UNKNOWN = "unknown"
    """Counts as paid until it is known not to be: it is never paid again meanwhile."""
    PAID = "paid"
    CLAIMED = "claimed"
    FAILED = "failed"


NOTHING: Final = Msat(0)
MAX_PROVENANCES: Final = 1000
MAX_HEIGHT: Final = 0xFFFFFFFF
MAX_PPM: Final = 1_000_000

OUTSTANDING: Final = (DepositStatus.PAYING, DepositStatus.UNKNOWN, DepositStatus.PAID)


@dataclass(frozen=True, slots=True)
class Deposit:
    payable: Payable
    action: str  # "open" or "topUp"
    status: DepositStatus
    preimage: bytes | None = field(default=None, repr=False)

    @property
    def amount(self) -> Msat:
        return msat(self.payable.amount)


class Phase(StrEnum):
    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


# Effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Store the session durably before the effects that follow."""


@dataclass(frozen=True, slots=True)
class PayInvoice:
    """Pay once; report the outcome by payment_succeeded, payment_failed or payment_unknown."""

    invoice: str
    payment_hash: bytes
    amount: Msat


@dataclass(frozen=True, slots=True)
class CheckPayment:
    """Ask the node (listpays) what became of a payment, and report as for PayInvoice.

    A payment that the node never heard of is reported as failed.
    """

    payment_hash: bytes


@dataclass(frozen=True, slots=True)
class SendCredential:
    """Send a request with this credential: an answer's for open and bearer, else a bodiless GET.

    payment_hash: the deposit that a 2xx claims; report it by `claimed`.
    """

    action: str
    credential: Credential
    payment_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class AskForOffer:
    """Send an unpaid request and hand the 402's challenges to `offered`."""


Effect = Persist | PayInvoice | CheckPayment | SendCredential | AskForOffer
Step = tuple["ClientSession", tuple[Effect, ...]]


# The state machine -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientSession:
    """One session with one provider, for one model.

    served: the price of everything received so far.
    prefill: input that was asked for, must be covered first and was not charged yet.
    max_exposure: the highest `exposure` there ever was.
    latest: the last challenge seen; `fresh`: whether no bearer request has used it.
    provenances: those of all challenges, in the order in which they were first seen.
    """

    caps: Caps
    model: str
    return_invoice: str
    bearer_secret: bytes = field(repr=False)
    phase: Phase = Phase.NEW
    terms: Terms | None = None
    offer: Payable | None = None
    latest: Challenge | None = None
    fresh: bool = False
    deposits: tuple[Deposit, ...] = ()
    served: Msat = NOTHING
    prefill: Msat = NOTHING
    max_exposure: Msat = NOTHING
    refund: Msat | None = None
    refund_status: str | None = None
    provenances: tuple[Provenance, ...] = ()

    # Figures -------------------------------------------------------------------------------------

    @property
    def id(self) -> bytes | None:
        """The session id: the payment hash of the deposit that opens it."""
        opening = [d for d in self.deposits if d.action == "open"]
        live = [d for d in opening if d.status is not DepositStatus.FAILED]
        return live[0].payable.payment_hash if live else None

    @property
    def paid(self) -> Msat:
        """Everything paid, also what may have been."""
        return Msat(sum(d.amount for d in self.deposits if d.status is not DepositStatus.FAILED))

    @property
    def exposure(self) -> Msat:
        """What the provider holds of ours beyond what it has served."""
        return Msat(self.paid - self.served - (self.refund or 0))

    @property
    def exposure_limit(self) -> Msat:
        """D, plus the input that is being waited for."""
        return Msat((self.terms.exposure_limit if self.terms else 0) + self.prefill)

    @property
    def outstanding(self) -> Deposit | None:
        """The one deposit that is on its way; unknown counts."""
        return next((d for d in self.deposits if d.status in OUTSTANDING), None)

    @property
    def is_topup_due(self) -> bool:
        """Whether the unspent rest is down to D/2 (above the prefill that will take its part)."""
        if self.phase is not Phase.OPEN or self.terms is None or self.outstanding is not None:
            return False
        return self.exposure - self.prefill <= msat(self.terms.deposit)

    # Offers --------------------------------------------------------------------------------------

    def offered(self, challenges: Iterable[Challenge], now: UnixTime) -> ClientSession:
        """Take the session offer among the challenges of a 402 or a 2xx.

        Raises RemoteProtocolError where it is contradictory, beyond the caps, or not the price
        that this session was opened at; the session stays as it is then.
        """
        found = [c for c in challenges if (c.method, c.intent) == (METHOD, INTENT)]
        if not found:
            return self
        challenge = found[0]
        request = method.of_offer(challenge.request_object)
        if "depositInvoice" not in request:
            return replace(self, latest=challenge, fresh=True)
        terms = read_terms(challenge)
        self._check_terms(terms, request)
        provenances = self._with_provenance(read_provenance(request))
        amount = Sat(method.offered_number(request.get("depositAmount"), "depositAmount"))
        if amount > terms.deposit:
            raise RemoteProtocolError(
                "deposit-too-large",
                f"The provider asks for {amount} sat at once; half of what may be at risk is "
                f"{terms.deposit}.",
            )
        payable = method.check_invoice(
            challenge,
            request.get("depositInvoice"),
            method.offered_hash(request.get("paymentHash")),
            amount,
            Limits(self.caps.network, amount, self.caps.payee),
            now,
        )
        return replace(
            self,
            terms=terms,
            offer=payable,
            latest=challenge,
            fresh=True,
            provenances=provenances,
        )

    def _with_provenance(self, seen: Provenance | None) -> tuple[Provenance, ...]:
        if seen is None or seen in self.provenances:
            return self.provenances
        if len(self.provenances) >= MAX_PROVENANCES:
            raise RemoteProtocolError(
                "too-many-provenances", "This session has seen too many blocks; open a new one."
            )
        return (*self.provenances, seen)

    def _check_terms(self, terms: Terms, request: dict[str, object]) -> None:
        if terms.model != self.model:
            raise RemoteProtocolError("wrong-model", "The offer is for another model.")
        if self.terms is not None and self.deposits and terms != self.terms:
            raise RemoteProtocolError("price-changed", "The offer is not at this session's price.")
        caps = self.caps
        if terms.input_msat > caps.max_input_msat or terms.output_msat > caps.max_output_msat:
            raise RemoteProtocolError(
                "too-expensive", f"The price, {terms.unit} per token, is above your caps."
            )
        if terms.trainer_ppm < caps.min_trainer_ppm or terms.producers_ppm < caps.min_producers_ppm:
            raise RemoteProtocolError(
                "share-below-floor",
                f"The provider passes on {terms.trainer_ppm} and {terms.producers_ppm} millionths "
                f"to trainer and producers; you ask for {caps.min_trainer_ppm} and "
                f"{caps.min_producers_ppm}.",
            )
        if terms.exposure_limit > caps.max_exposure:
            raise RemoteProtocolError(
                "too-much-exposure",
                f"The offer would put {terms.exposure_limit} msat at risk at a time; "
                f"your cap is {caps.max_exposure}.",
            )
        # Every hop of a deposit learns its preimage: only a secret of our own keeps the session.
        if not caps.direct and request.get("bearerHash") != "accepted":
            raise RemoteProtocolError(
                "no-bearer-hash", "The provider can't protect a deposit that crosses other nodes."
            )

    # Paying --------------------------------------------------------------------------------------

    def open(self, now: UnixTime) -> Step:
        """Pay the first deposit; the credential follows when it has settled."""
        if self.phase is not Phase.NEW:
            raise LocalProtocolError("already-open", "This session was opened before.")
        session, effects = self._pay("open", now)
        phase = Phase.OPENING if session.outstanding is not None else Phase.NEW
        return replace(session, phase=phase), effects

    def top_up(self, now: UnixTime) -> Step:
        """Pay the next deposit if it is due. Otherwise nothing happens."""
        if not self.is_topup_due:
            return self, ()
        return self._pay("topUp", now)

    def _pay(self, action: str, now: UnixTime) -> Step:
        offer = self.offer
        used = offer and any(d.payable.payment_hash == offer.payment_hash for d in self.deposits)
        if offer is None or used or now >= offer.expires_at:
            return self, (AskForOffer(),)
        amount = msat(offer.amount)
        if self.paid + amount > self.caps.max_session:
            raise LocalProtocolError(
                "session-cap-reached",
                f"Another {offer.amount} sat would pass your cap for this session.",
            )
        if self.exposure + amount > self.exposure_limit:
            raise LocalProtocolError("exposure-limit", "Another deposit would be too much at risk.")
        deposit = Deposit(offer, action, DepositStatus.PAYING)
        session = replace(self, deposits=(*self.deposits, deposit), offer=None)
        session = replace(session, max_exposure=max(session.max_exposure, session.exposure))
        return session, (Persist(), PayInvoice(offer.invoice, offer.payment_hash, amount))

    def payment_succeeded(self, payment_hash: bytes, preimage: bytes) -> Step:
        deposit = self._deposit(payment_hash)
        if deposit.status is DepositStatus.CLAIMED:
            return self, ()
        if sha256(preimage).digest() != payment_hash:
            raise LocalProtocolError("wrong-preimage", "The node gave a preimage that is not one.")
        session = self._with(replace(deposit, status=DepositStatus.PAID, preimage=preimage))
        return session, (Persist(), session._claim(session._deposit(payment_hash)))

    def payment_failed(self, payment_hash: bytes) -> Step:
        """It is certain that the payment failed and that nothing of it is under way."""
        deposit = self._deposit(payment_hash)
        if deposit.status not in (DepositStatus.PAYING, DepositStatus.UNKNOWN):
            return self, ()
        session = self._with(replace(deposit, status=DepositStatus.FAILED))
        if session.phase is Phase.OPENING:
            session = replace(session, phase=Phase.NEW)
        return session, (Persist(),)

    def payment_unknown(self, payment_hash: bytes) -> Step:
        deposit = self._deposit(payment_hash)
        if deposit.status is not DepositStatus.PAYING:
            return self, ()
        session = self._with(replace(deposit, status=DepositStatus.UNKNOWN))
        return session, (Persist(), CheckPayment(payment_hash))

    def claimed(self, payment_hash: bytes) -> Step:
        """The provider answered the deposit's credential with a 2xx."""
        deposit = self._deposit(payment_hash)
        session = self._with(replace(deposit, status=DepositStatus.CLAIMED))
        if deposit.action == "open" and session.phase is Phase.OPENING:
            session = replace(session, phase=Phase.OPEN)
        return session, (Persist(),)

    def resume(self) -> tuple[Effect, ...]:
        """What is due after a restart. Nothing is paid again."""
        effects: list[Effect] = []
        for deposit in self.deposits:
            if deposit.status in (DepositStatus.PAYING, DepositStatus.UNKNOWN):
                effects.append(CheckPayment(deposit.payable.payment_hash))
            elif deposit.status is DepositStatus.PAID:
                effects.append(self._claim(deposit))
        if self.phase is Phase.CLOSING:
            effects.append(self._close())
        return tuple(effects)

    # Using ---------------------------------------------------------------------------------------

    def need_topup(self, input_tokens: int, now: UnixTime) -> Step:
        """The provider sent `payment-need-topup`.

        input_tokens: the input of this request that is still to be paid, by our own bound on it;
        0 once the answer has begun. Raises RemoteProtocolError where the provider wants more
        though more than D/2 is unspent: leave it; LocalProtocolError where the input costs more
        than may be at risk.
        """
        if self.terms is None or self.phase is not Phase.OPEN:
            raise LocalProtocolError("not-open", "This session is not open.")
        whole = self.terms.cost(input_tokens, 0)
        # One step always, and the rest as far as the user's cap allows.
        room = self.caps.max_exposure - self.terms.exposure_limit
        allowed = Msat(min(whole, max(self.terms.prefill_cost(input_tokens), room)))
        session = replace(self, prefill=allowed)
        if session.outstanding is None and not session.is_topup_due:
            if allowed < whole:
                raise LocalProtocolError(
                    "exposure-limit",
                    f"The question may cost {whole} msat before it is answered, which is more "
                    "than your cap on what may be at risk allows.",
                )
            raise RemoteProtocolError(
                "topup-not-due",
                f"The provider asks for a top-up though {session.exposure} msat are unspent.",
            )
        return session.top_up(now)

    def received(self, input_tokens: int, output_tokens: int, now: UnixTime) -> Step:
        """Count what arrived since the last call; pays the next deposit ahead of need."""
        if self.terms is None:
            raise LocalProtocolError("not-open", "This session is not open.")
        cost = self.terms.cost(input_tokens, output_tokens)
        session = replace(self, served=Msat(self.served + cost), prefill=Msat(0))
        if session.exposure < 0:
            raise RemoteProtocolError("overcharged", "More was counted than was ever paid for.")
        return session.top_up(now)

    def bearer(self) -> Step:
        """The credential of the next request; asks for a challenge where none is fresh, because
        a repeated one means a repeated request."""
        if self.phase is not Phase.OPEN:
            raise LocalProtocolError("not-open", "This session is not open.")
        if self.latest is None or not self.fresh:
            return self, (AskForOffer(),)
        credential = Credential(self.latest, {"action": "bearer", **self._proof()})
        session = replace(self, fresh=False)
        return session, (Persist(), SendCredential("bearer", credential))

    def close(self) -> Step:
        """Leave: whatever is unspent comes back through the return invoice."""
        if self.phase not in (Phase.OPEN, Phase.CLOSING):
            raise LocalProtocolError("not-open", "This session is not open.")
        session = replace(self, phase=Phase.CLOSING)
        return session, (Persist(), session._close())

    def closed(self, refund: Msat, status: str) -> Step:
        """The provider's answer to close. `refund` is what it says it sends; whether it arrived,
        the return invoice tells."""
        session = replace(self, phase=Phase.CLOSED, refund=refund, refund_status=status)
        return session, (Persist(),)

    # Parts ---------------------------------------------------------------------------------------

    def _close(self) -> SendCredential:
        assert self.latest is not None  # an open session was offered something
        return SendCredential(
            "close", Credential(self.latest, {"action": "close", **self._proof()})
        )

    def _claim(self, deposit: Deposit) -> SendCredential:
        assert deposit.preimage is not None  # it is PAID
        preimage = deposit.preimage.hex()
        if deposit.action == "open":
            payload = {
                "action": "open",
                "preimage": preimage,
                "returnInvoice": self.return_invoice,
                "bearerHash": sha256(self.bearer_secret).hexdigest(),
            }
        else:
            assert self.id is not None  # only an open session is topped up
            payload = {"action": "topUp", "sessionId": self.id.hex(), "topUpPreimage": preimage}
        credential = Credential(deposit.payable.challenge, payload)
        return SendCredential(deposit.action, credential, deposit.payable.payment_hash)

    def _proof(self) -> dict[str, str]:
        opening = next(d for d in self.deposits if d.payable.payment_hash == self.id)
        assert self.id is not None  # the line above found it
        assert opening.preimage is not None  # it was claimed
        proof = {"sessionId": self.id.hex(), "bearerSecret": self.bearer_secret.hex()}
        if self.caps.direct:
            # For providers that know only the draft; nobody else has seen this preimage.
            proof["preimage"] = opening.preimage.hex()
        return proof

    def _deposit(self, payment_hash: bytes) -> Deposit:
        for deposit in self.deposits:
            if deposit.payable.payment_hash == payment_hash:
                return deposit
        raise LocalProtocolError("unknown-deposit", "This session never paid that invoice.")

    def _with(self, deposit: Deposit) -> ClientSession:
        payment_hash = deposit.payable.payment_hash
        deposits = tuple(
            deposit if d.payable.payment_hash == payment_hash else d for d in self.deposits
        )
        return replace(self, deposits=deposits)


def read_terms(challenge: Challenge) -> Terms:
    """The price in a session offer. Raises RemoteProtocolError.

    An offer of the bare draft, whole sats per unit and nothing else, is refused: it doesn't say
    what a unit is.
    """
    request = method.of_offer(challenge.request_object)
    model = request.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL:
        raise method.bad_offer("it names no model")
    if request.get("currency") != "sat" or request.get("amount") != str(UNIT):
        raise method.bad_offer("its unit is not 1 sat")
    number = method.offered_number
    return Terms(
        model,
        Msat(number(request.get("inputMsat"), "inputMsat", least=0, most=MAX_PRICE)),
        Msat(number(request.get("outputMsat"), "outputMsat", most=MAX_PRICE)),
        number(request.get("tokensPerSecond"), "tokensPerSecond", least=0, most=MAX_PACE),
        number(request.get("trainerPpm", "0"), "trainerPpm", least=0, most=MAX_PPM),
        number(request.get("producersPpm", "0"), "producersPpm", least=0, most=MAX_PPM),
    )


def read_provenance(request: dict[str, object]) -> Provenance | None:
    """That of a session offer, None where it has none. Raises RemoteProtocolError."""
    given = request.get("provenance")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise method.bad_offer("its provenance is no object")
    model, root = (
        None if given.get(name) is None else method.offered_hash(given[name])
        for name in ("model", "weightsRoot")
    )
    return Provenance(
        method.offered_number(given.get("height"), "height", least=0, most=MAX_HEIGHT),
        method.offered_hash(given.get("block")),
        model,
        root,
    )
