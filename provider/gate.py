"""Who may have an answer: from a credential to an answer in the ledger, or a Problem.

Everything here is stored before anything is answered, and a repeated credential finds what it
made the first time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from channels.http import charge, l402, session
from channels.http.method import Issued
from channels.http.scheme import Credential, Problem, Receipt, body_digest, malformed
from channels.http.session import Bearer, Close, Open, TopUp
from provider.api import ApiError
from provider.cashier import REFUND_WORDS, Cashier
from provider.ledger import Answer, Result
from provider.sessions import DepositStatus, Session
from provider.settings import Keys
from provider.work import Work

MAX_UNPAID_ANSWERS: Final = 16
"""Of one session: each is stored with its request before anything is charged for it."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Admission: an answer to be given, or a document that says what was done."""

    session: Session
    receipt: Receipt
    answer: Answer | None = None
    document: dict[str, object] | None = None


class Gate:
    def __init__(self, cashier: Cashier, keys: Keys) -> None:
        self._cashier = cashier
        self._ledger = cashier.ledger
        self._keys = keys

    # Sessions ------------------------------------------------------------------------------------

    async def session(self, credential: Credential, work: Work | None, body: bytes) -> Ticket:
        """work: the request that came with it, None where there was none. Raises Problem."""
        action = str(credential.payload.get("action"))
        challenge_id = credential.challenge.id
        session_id = session.requested_session(credential)
        stored = None if session_id is None else self._ledger.session(session_id)
        issued = await self._issued(challenge_id, action in ("open", "topUp"))
        known = None if stored is None else stored.known
        try:
            verified = session.verify(credential, issued, known, self._cashier.now())
        except Problem as problem:
            if problem.reason != "lightning/session-closed" or stored is None:
                raise
            # What this very credential did before its session was closed is told again.
            repeated = self._repeated(challenge_id, action, stored, body)
            if repeated is None:
                raise
            return repeated
        match verified:
            case Open():
                return await self._open(verified, work, body)
            case Bearer():
                if work is None:
                    raise malformed("`bearer` needs a request to answer.")
                return await self._bearer(verified, work, body)
            case TopUp():
                return await self._top_up(verified)
            case Close():
                return await self._close(verified)

    async def _issued(self, challenge_id: str, pays: bool) -> Issued | None:
        issued = self._ledger.issued(challenge_id)
        if issued is None or issued.settled or not pays:
            return issued
        # The payer knows of the settlement before we do.
        await self._cashier.confirm(issued.payment_hash)
        return self._ledger.issued(challenge_id)

    async def _open(self, verified: Open, work: Work | None, body: bytes) -> Ticket:
        if work is not None:
            offer = self._ledger.offer(verified.issued.payment_hash)
            self._check_model(work, "" if offer is None else offer.terms.model)
        opened = self._cashier.open(verified)
        if verified.credit is not None and not self._was_done(verified.issued, "open"):
            opened = self._cashier.spend_credit(verified.credit, opened)
        self._done(verified.issued, "open")
        extensions: dict[str, object] = (
            {} if opened.bearer_hash is None else {"bearerHash": "accepted"}
        )
        if work is None:
            await self._ledger.committed()
            document: dict[str, object] = {"status": "open", "sessionId": opened.id.hex()}
            return self._ticket(opened, document=document, extensions=extensions)
        answer = self._answer(opened, work, f"open {verified.issued.challenge.id}", body)
        await self._ledger.committed()
        return self._ticket(opened, answer=answer, extensions=extensions)

    async def _bearer(self, verified: Bearer, work: Work, body: bytes) -> Ticket:
        stored = self._session(verified.session)
        self._check_model(work, stored.terms.model)
        answer = self._answer(stored, work, f"bearer {verified.issued.challenge.id}", body)
        await self._ledger.committed()
        return self._ticket(stored, answer=answer)

    async def _top_up(self, verified: TopUp) -> Ticket:
        effects = self._cashier.claim(verified)
        self._done(verified.issued, "topUp")
        await self._ledger.committed()
        await self._cashier.carry_out(effects)
        return self._ticket(self._session(verified.session), document={"status": "ok"})

    async def _close(self, verified: Close) -> Ticket:
        # Stored with the closing itself, so that the same credential is always told the same.
        self._done(verified.issued, "close")
        await self._cashier.close(verified.session)
        return self._closed(self._session(verified.session))

    def _closed(self, stored: Session) -> Ticket:
        word = REFUND_WORDS[stored.refund_status]
        document = session.closed(stored.refund or stored.rest, word)
        members = {name: value for name, value in document.items() if name != "status"}
        return self._ticket(stored, document=document, extensions=members)

    def _repeated(
        self, challenge_id: str, action: str, stored: Session, body: bytes
    ) -> Ticket | None:
        if action in ("open", "bearer"):
            answer = self._ledger.answer(answer_id(f"{action} {challenge_id}", body))
            return None if answer is None else self._ticket(stored, answer=answer)
        if self._ledger.result(challenge_id, action) is None:
            return None
        if action == "close":
            return self._closed(stored)
        return self._ticket(stored, document={"status": "ok"})

    def _done(self, issued: Issued, action: str) -> None:
        result = Result(200, msgspec.json.encode(action))
        self._ledger.save_result(issued.challenge.id, action, result)

    def _was_done(self, issued: Issued, action: str) -> bool:
        return self._ledger.result(issued.challenge.id, action) is not None

    # Single payments -----------------------------------------------------------------------------

    async def charge(self, credential: Credential, work: Work, body: bytes) -> Ticket:
        issued = await self._issued(credential.challenge.id, True)
        verified = charge.verify(credential, issued, self._cashier.now(), body_digest(body))
        return await self._single(verified.payment_hash, work, body, verified.challenge.id)

    async def l402(self, token: l402.Token, work: Work, body: bytes) -> Ticket:
        payment_hash = l402.verify(self._keys.l402, token, self._cashier.now())
        await self._cashier.confirm(payment_hash)
        deposit = self._ledger.deposit(payment_hash)
        if deposit is None or deposit.status not in (
            DepositStatus.SETTLED,
            DepositStatus.CREDITED,
        ):
            raise Problem("verification-failed", "The invoice of this token has not been paid.")
        return await self._single(payment_hash, work, body, None)

    async def _single(
        self, payment_hash: bytes, work: Work, body: bytes, challenge_id: str | None
    ) -> Ticket:
        offer = self._ledger.offer(payment_hash)
        self._check_model(work, "" if offer is None else offer.terms.model)
        opened = self._cashier.open_charge(payment_hash)
        name = f"payment {payment_hash.hex()}"
        is_new = self._ledger.answer(answer_id(name, body)) is None
        if is_new and opened.rest < work.most(opened.terms):
            # What is left of this payment is too little for another answer.
            raise Problem("payment-insufficient", "This payment is used up; pay another offer.")
        answer = self._answer(opened, work, name, body)
        await self._ledger.committed()
        extensions: dict[str, object] = (
            {} if challenge_id is None else {"challengeId": challenge_id}
        )
        return self._ticket(opened, answer=answer, extensions=extensions)

    # Parts ---------------------------------------------------------------------------------------

    def _answer(self, stored: Session, work: Work, name: str, body: bytes) -> Answer:
        key = answer_id(name, body)
        if (known := self._ledger.answer(key)) is not None:
            return known
        if self._ledger.unpaid_answers(stored.id) >= MAX_UNPAID_ANSWERS:
            raise ApiError(
                "too-many-requests",
                "Too many requests of this session wait to be paid for; take one of them up.",
                status=429,
                type_="rate_limit_error",
            )
        seed = work.request.seed
        answer = Answer(
            id=key,
            session=stored.id,
            api=work.kind,
            body=body,
            # Drawn once and kept: the answer must come out the same when it is taken up again.
            seed=secrets.randbits(63) if seed is None else seed,
            created=self._cashier.now(),
            prompt_tokens=work.prompt_tokens,
        )
        self._ledger.save_answer(answer)
        return answer

    @staticmethod
    def _check_model(work: Work, model: str) -> None:
        if work.served.engine.model_id != model:
            raise ApiError(
                "wrong-model",
                f"This was paid for the model {model!r}; the request names another. "
                "Nothing was charged.",
                param="model",
            )

    def _session(self, session_id: bytes) -> Session:
        stored = self._ledger.session(session_id)
        if stored is None:
            raise Problem("lightning/session-not-found", "There is no such session; open one.")
        return stored

    def _ticket(
        self,
        stored: Session,
        *,
        answer: Answer | None = None,
        document: dict[str, object] | None = None,
        extensions: Mapping[str, object] | None = None,
    ) -> Ticket:
        receipt = session.receipt(stored.id, self._cashier.now(), **(extensions or {}))
        return Ticket(stored, receipt, answer, document)


def answer_id(name: str, body: bytes) -> str:
    """What a request is known by: its credential and its body. The same again is a repetition."""
    return sha256(name.encode() + b"\0" + sha256(body).digest()).hexdigest()[:32]
