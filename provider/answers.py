"""Answers while they are paid for: generate, charge, store, send, in this order.

An answer is a log of events in the ledger. Whoever repeats its credential gets the log again,
uncharged, and the rest as it would have been: the engine goes on from the stored tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final

import msgspec

from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from channels.http import session as session_intent
from channels.http.scheme import Problem
from channels.http.session import PREFILL_STEP
from channels.units import Msat, msat
from provider import api, sessions
from provider.api import ApiError, Usage
from provider.cashier import Cashier
from provider.decoding import Token, merged, merged_objects
from provider.ledger import Answer, AnswerStatus, Event
from provider.metrics import Metrics
from provider.places import Places
from provider.pricing import prefill_steps
from provider.serving import Models, Served
from provider.sessions import NOTHING, Kind, Session
from provider.settings import ProviderSettings
from provider.share_book import ShareBook
from provider.work import Work

log = logging.getLogger(__name__)

BYTES_PER_TOKEN: Final = 4
"""Of a question, about: only for what has to be there before the engine has counted it."""

Write = Callable[[bytes], Awaitable[None]]


class AnswerFailed(OdaError):
    """The engine failed. What was not delivered costs nothing."""


class TopupTimeout(OdaError):
    """Nobody paid for the rest of a stream in time."""


class Answers:
    def __init__(
        self,
        cashier: Cashier,
        settings: ProviderSettings,
        metrics: Metrics,
        models: Models,
        book: ShareBook | None = None,
    ) -> None:
        self._cashier = cashier
        self._ledger = cashier.ledger
        self._settings = settings
        self._metrics = metrics
        self._models = models
        self._book = book
        self._places = Places(settings.capacity)
        self._taken: dict[str, Places] = {}
        """By answer: where it has a place now."""
        self._owners: dict[str, asyncio.Task[object]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def is_full(self, served: Served) -> bool:
        return (served.places or self._places).is_full

    # Streams -------------------------------------------------------------------------------------

    async def stream(self, answer_id: str, work: Work, write: Write, after: int) -> None:
        """Write the events after number `after`: first those that were delivered before, then
        new ones as they are paid for. Raises AnswerFailed, TopupTimeout, LocalProtocolError."""
        async with self._alone(answer_id):
            answer = self._answer(answer_id)
            logged = self._ledger.events(answer_id)
            for event in logged:
                if event.seq > after:
                    await write(frame(answer, event))
            if answer.status is AnswerStatus.FINISHED:
                return
            already = [token for event in logged for token in event.tokens]
            if answer.events > len(work.builder(answer).opening()):
                self._must_go_on(work)
            work, answer = self._as_it_began(work, answer)
            async with self._place(answer_id, work.served):
                with self._models.using(work.served):
                    await self._go_on(answer, work, already, write)

    @staticmethod
    def _must_go_on(work: Work) -> None:
        if not work.served.engine.goes_on:
            raise AnswerFailed(
                "interrupted",
                "This answer was interrupted, and its engine can't take it up in the middle; "
                "nothing is charged for what was not delivered. Ask again.",
            )

    def _as_it_began(self, work: Work, answer: Answer) -> tuple[Work, Answer]:
        """An answer ends with the weights that it began with, whatever is served by now, and all
        of it is counted under one provenance."""
        if answer.completion_tokens == 0:
            period = None
            if self._book is not None:
                period = self._book.begin(self._session(answer), work.served)
            answer = replace(answer, weights=work.served.engine.weights_id, period=period)
            self._ledger.save_answer(answer)
            return work, answer
        served = self._models.with_weights(work.request.model, answer.weights)
        if served is None:
            raise AnswerFailed(
                "model-replaced",
                "The model was replaced in the middle of this answer and can't finish it; nothing "
                "is charged for what was not delivered. Ask again.",
            )
        return replace(work, served=served), answer

    async def _go_on(self, answer: Answer, work: Work, already: list[int], write: Write) -> None:
        builder = work.builder(answer)
        try:
            if answer.events == 0 and (opening := builder.opening()):
                answer = await self._deliver(answer, opening, (), write)
            if answer.completion_tokens == 0:
                if not work.served.engine.goes_on:
                    # It must see the input to count it: about what that costs must be there.
                    guess = min(work.prompt_tokens // BYTES_PER_TOKEN, PREFILL_STEP)
                    await self._cover(answer, self._session(answer).terms.cost(guess, 0), write)
                answer = await self._counted(answer, work)
                answer = await self._hold_input(answer, write)
            if (last := self._end(work, answer, already)) is not None:
                # It stopped between its last text and its last events.
                await self._finish(answer, work, last, write)
                return
            pending: list[int] = []
            async with aclosing(self._tokens(work, answer, already)) as tokens:
                async for token in tokens:
                    pending += [token.id] * token.count
                    if token.brings:
                        data = builder.text(token.text, token.delta, token.logprobs)
                        answer = await self._send(answer, work, data, pending, write)
                        pending.clear()
                    if token.finish_reason is not None:
                        await self._finish(answer, work, token, write)
        finally:
            self._release(answer.id)

    async def _send(
        self, answer: Answer, work: Work, data: bytes, tokens: Sequence[int], write: Write
    ) -> Answer:
        """One event, and where it stands for more tokens than half a deposit pays, further ones
        that have no text: nobody has to pay for more than that at once."""
        terms = self._session(answer).terms
        step = max(1, msat(terms.deposit) // terms.output_msat // 2)
        for start in range(0, max(1, len(tokens)), step):
            part = tuple(tokens[start : start + step])
            await self._cover(answer, self._output_cost(answer, len(part)), write)
            sent = data if start == 0 else work.builder(answer).text("")
            answer = await self._deliver(answer, (sent,), part, write)
        return answer

    async def _settle(self, answer: Answer, work: Work, total: int, write: Write) -> Answer:
        """Charge what the engine says in the end, which is more or less than came in pieces."""
        more = total - answer.completion_tokens
        if more > 0:
            data = work.builder(answer).text("")
            return await self._send(answer, work, data, (0,) * more, write)
        stored = self._session(answer)
        # What a closed session spent may have been signed: its user left before this answer's end.
        if more < 0 and stored.phase is sessions.Phase.OPEN:
            input_tokens = 0 if total else answer.prompt_tokens
            over = stored.terms.cost(input_tokens, -more)
            self._ledger.save_session(sessions.give_back(stored, over))
            answer = replace(answer, spent=Msat(answer.spent - over), completion_tokens=total)
            self._ledger.save_answer(answer)
        return answer

    async def _finish(self, answer: Answer, work: Work, token: Token, write: Write) -> None:
        """The last events. Tokens that brought no text are not charged."""
        if token.total is not None:
            answer = await self._settle(answer, work, token.total, write)
        builder = work.builder(answer)
        usage = _usage(answer)
        assert token.finish_reason is not None  # it is the last one
        last = [builder.finish(token.finish_reason)]
        if work.request.include_usage:
            last.append(builder.usage(usage))
        self._release(answer.id)
        answer = replace(self._answer(answer.id), status=AnswerStatus.FINISHED)
        end = Event(answer.events + len(last), api.DONE, (), answer.completion_tokens)
        self._ledger.append_event(answer, end)
        # One transaction with the above: no answer ends between its last event and [DONE].
        answer = await self._deliver(answer, tuple(last), (), write, 1)
        stored = self._session(answer)
        if stored.kind is Kind.SESSION:
            now = self._cashier.now()
            units = answer.completion_tokens
            await write(
                named_event(
                    "payment-receipt",
                    session_intent.stream_receipt(stored.id, now, answer.spent, units),
                )
            )
        await write(frame(answer, end))

    async def _deliver(
        self,
        answer: Answer,
        data: tuple[bytes, ...],
        tokens: tuple[int, ...],
        write: Write,
        more: int = 0,
    ) -> Answer:
        """Charge and store, then send. The tokens belong to the first of the events."""
        answer, events = self._store(answer, data, tokens, more)
        await self._ledger.committed()
        for event in events:
            await write(frame(answer, event))
        return answer

    def _store(
        self, answer: Answer, data: tuple[bytes, ...], tokens: tuple[int, ...], more: int
    ) -> tuple[Answer, list[Event]]:
        held = answer.held if tokens else NOTHING
        cost = self._output_cost(answer, len(tokens))
        completion_tokens = answer.completion_tokens + len(tokens)
        events = [
            Event(answer.events + i, text, tokens if i == 0 else (), completion_tokens)
            for i, text in enumerate(data)
        ]
        # The events first: were one of them there already, nothing would be charged for it.
        for event in events:
            self._ledger.append_event(answer, event)
        if tokens:
            stored = sessions.deliver(self._session(answer), held, cost, self._cashier.now())
            self._ledger.save_session(stored)
            self._count(answer, len(tokens))
            spent = Msat(answer.spent + held + cost)
            answer = replace(answer, held=NOTHING, spent=spent, completion_tokens=completion_tokens)
        answer = replace(answer, events=answer.events + len(events) + more)
        self._ledger.save_answer(answer)
        return answer, events

    def _count(self, answer: Answer, tokens: int) -> None:
        if answer.completion_tokens == 0:
            self._metrics.input_tokens.inc(answer.prompt_tokens)
        self._metrics.delivered(tokens)

    async def _counted(self, answer: Answer, work: Work) -> Answer:
        """With the tokens of its input as the engine counts them, for which it may have to read
        them: once."""
        if answer.prompt_tokens != work.prompt_tokens:
            return answer
        try:
            async with asyncio.timeout(self._settings.engine_timeout):
                tokens = await work.served.engine.prompt_tokens(
                    work.generation(answer), work.prompt_tokens
                )
        except Exception as error:
            raise self._failed(answer, error) from error
        answer = replace(answer, prompt_tokens=tokens)
        self._ledger.save_answer(answer)
        return answer

    async def _hold_input(self, answer: Answer, write: Write) -> Answer:
        """Take the price of the input before the engine sees it."""
        for step in prefill_steps(answer.prompt_tokens):
            cost = self._session(answer).terms.cost(step, 0)
            await self._cover(answer, cost, write)
            answer = self._hold(answer, cost)
            await self._ledger.committed()
        return answer

    def _hold(self, answer: Answer, cost: Msat) -> Answer:
        self._ledger.save_session(sessions.hold(self._session(answer), cost, self._cashier.now()))
        answer = replace(answer, held=Msat(answer.held + cost))
        self._ledger.save_answer(answer)
        return answer

    def _release(self, answer_id: str) -> None:
        """Give back what is still held: nothing was delivered for it."""
        answer = self._answer(answer_id)
        if answer.held:
            stored = sessions.release(self._session(answer), answer.held)
            self._ledger.save_session(stored)
            self._ledger.save_answer(replace(answer, held=NOTHING))
            self._ledger.commit()

    async def _cover(self, answer: Answer, cost: Msat, write: Write) -> None:
        """Return when the session's rest covers `cost`; asks for top-ups meanwhile.

        draft-lightning-session-00, section "Streaming and Per-Chunk Billing".
        """
        while True:
            stored = self._session(answer)
            if stored.phase is not sessions.Phase.OPEN:
                raise LocalProtocolError("session-closed", "The session was closed.")
            if stored.rest >= cost:
                return
            if stored.kind is not Kind.SESSION:
                raise LocalProtocolError("insufficient-balance", "The payment is used up.")
            self._metrics.topup_waits.inc()
            document = session_intent.need_topup(stored.id, stored.spent, cost)
            unpaid = answer.prompt_tokens if answer.completion_tokens == 0 else 0
            extra: dict[str, object] = {"promptTokens": unpaid}
            challenge = await self._cashier.next_challenge(stored.id)
            if challenge is not None:
                extra["challenge"] = challenge.to_header()
            stored = self._session(answer)
            if stored.rest >= cost:
                continue  # it was paid while the offer was being made
            await write(named_event("payment-need-topup", document | extra))
            if self._session(answer) != stored:
                continue
            # Its place is free for others meanwhile: waiting costs us nothing, blocking them would.
            places = self._taken[answer.id]
            places.release()
            try:
                paid = await self._cashier.wait_for_change(stored.id, self._settings.topup_wait)
            finally:
                await places.acquire()
            if not paid:
                await write(named_event("session-timeout", document))
                raise TopupTimeout("topup-timeout", "No top-up arrived in time.")

    # Whole answers -------------------------------------------------------------------------------

    async def whole(self, answer_id: str, work: Work) -> bytes:
        """An answer that is not streamed: all of it is covered first, what it took is charged.

        Raises AnswerFailed, or Problem(`lightning/insufficient-balance`).
        """
        async with self._alone(answer_id):
            answer = self._answer(answer_id)
            if answer.status is AnswerStatus.FINISHED:
                return self._ledger.events(answer_id)[0].data
            work, answer = self._as_it_began(work, answer)
            async with self._place(answer_id, work.served):
                stored = self._session(answer)
                if stored.rest < (answers_alone := stored.terms.cost(0, work.max_tokens)):
                    raise insufficient(answers_alone, stored.rest)
                if work.kind != "embeddings":
                    answer = await self._counted(answer, work)
                stored = self._session(answer)
                most = stored.terms.cost(answer.prompt_tokens, work.max_tokens)
                if stored.rest < most:
                    raise insufficient(most, stored.rest)
                answer = self._hold(answer, most)
                await self._ledger.committed()
                try:
                    with self._models.using(work.served):
                        if work.kind == "embeddings":
                            return await self._embed(answer, work)
                        return await self._generate_whole(answer, work)
                finally:
                    self._release(answer.id)

    async def _generate_whole(self, answer: Answer, work: Work) -> bytes:
        tokens: list[int] = []
        texts: list[str] = []
        more: Mapping[str, object] = {}
        logprobs: object = None
        charged = 0
        reason: api.FinishReason = "stop"
        async with aclosing(self._tokens(work, answer, ())) as generated:
            async for token in generated:
                tokens += [token.id] * token.count
                texts.append(token.text)
                more = merged_objects(more, token.delta or {})
                logprobs = merged(logprobs, token.logprobs)
                if token.brings:
                    charged = len(tokens)
                reason = token.finish_reason or reason
                if token.total is not None:
                    tokens += [0] * (token.total - len(tokens))
                    charged = token.total
        self._release(answer.id)
        answer = self._answer(answer.id)
        if charged:
            cost = self._session(answer).terms.cost(answer.prompt_tokens, 0)
            answer = self._hold(answer, cost)
        answer = replace(answer, status=AnswerStatus.FINISHED)
        done = replace(answer, completion_tokens=charged)
        text = work.builder(answer).whole("".join(texts), reason, _usage(done), more, logprobs)
        answer, _ = self._store(answer, (text,), tuple(tokens[:charged]), 0)
        await self._ledger.committed()
        return text

    async def _embed(self, answer: Answer, work: Work) -> bytes:
        """Embeddings have no output tokens: their input is what they cost."""
        try:
            async with asyncio.timeout(self._settings.engine_timeout):
                made = await work.served.engine.embed(work.generation(answer))
        except Exception as error:
            raise self._failed(answer, error) from error
        self._release(answer.id)
        answer, stored = self._answer(answer.id), self._session(answer)
        tokens = min(made.prompt_tokens, answer.prompt_tokens)
        cost = stored.terms.cost(tokens, 0)
        self._ledger.append_event(answer, Event(answer.events, made.body, (), 0))
        self._ledger.save_session(sessions.deliver(stored, NOTHING, cost, self._cashier.now()))
        done = replace(answer, status=AnswerStatus.FINISHED, events=answer.events + 1)
        self._ledger.save_answer(replace(done, prompt_tokens=tokens, spent=cost))
        self._metrics.input_tokens.inc(tokens)
        await self._ledger.committed()
        return made.body

    # Parts ---------------------------------------------------------------------------------------

    async def _tokens(
        self, work: Work, answer: Answer, already: Sequence[int]
    ) -> AsyncGenerator[Token, None]:
        """The engine's tokens. Whatever goes wrong in it, or takes too long, is AnswerFailed."""
        generation: AsyncGenerator[Token, None] = work.served.engine.generate(
            work.generation(answer), already
        )
        self._metrics.running.inc()
        try:
            async with aclosing(generation):
                while True:
                    try:
                        async with asyncio.timeout(self._settings.engine_timeout):
                            token = await anext(generation)
                    except StopAsyncIteration:
                        return
                    except Exception as error:
                        raise self._failed(answer, error) from error
                    yield token
        finally:
            self._metrics.running.dec()

    def _end(self, work: Work, answer: Answer, already: list[int]) -> Token | None:
        """The last token of an answer of these, None when it is not at its end."""
        if not already:
            return None
        try:
            last = work.served.engine.replay(work.generation(answer), already)[-1]
        except Exception as error:
            raise self._failed(answer, error) from error
        return last if last.finish_reason is not None else None

    def _failed(self, answer: Answer, error: Exception) -> OdaError:
        if isinstance(error, ApiError) and error.status < 500:
            return error  # the request's fault
        self._metrics.failures.inc()
        if isinstance(error, ApiError | RemoteProtocolError):
            log.warning("The engine failed in answer %s: %s", answer.id, error)
            sentence = f"{error} Nothing is charged for what was not delivered."
            return ApiError(error.reason, sentence, status=503, type_="server_error")
        log.error("The engine failed in answer %s", answer.id, exc_info=error)
        return AnswerFailed(
            "engine-failed",
            "The engine failed; nothing is charged for what was not delivered. "
            "Send the same request again to go on.",
        )

    @asynccontextmanager
    async def _alone(self, answer_id: str) -> AsyncIterator[None]:
        """One connection per answer: a newer one takes over from one that may be dead."""
        if (owner := self._owners.get(answer_id)) is not None:
            owner.cancel()
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine
        self._owners[answer_id] = task
        lock = self._locks.setdefault(answer_id, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if self._owners.get(answer_id) is task:
                del self._owners[answer_id]
                self._locks.pop(answer_id, None)

    @asynccontextmanager
    async def _place(self, answer_id: str, served: Served) -> AsyncIterator[None]:
        places = served.places or self._places
        async with places:
            self._taken[answer_id] = places
            try:
                yield
            finally:
                del self._taken[answer_id]

    def _output_cost(self, answer: Answer, tokens: int) -> Msat:
        return self._session(answer).terms.cost(0, tokens)

    def _answer(self, answer_id: str) -> Answer:
        answer = self._ledger.answer(answer_id)
        if answer is None:
            raise LocalProtocolError("unknown-answer", "There is no such answer in the ledger.")
        return answer

    def _session(self, answer: Answer) -> Session:
        stored = self._ledger.session(answer.session)
        if stored is None:
            raise LocalProtocolError("unknown-session", "There is no such session in the ledger.")
        return stored


def insufficient(most: Msat, rest: Msat) -> Problem:
    return Problem(
        "lightning/insufficient-balance",
        f"The longest answer costs {most} msat and {rest} are left; top up, or ask for less.",
    )


def _usage(answer: Answer) -> Usage:
    return Usage.of(answer.prompt_tokens, answer.completion_tokens)


def event_id(answer: Answer, event: Event) -> str:
    """`answer.number.input.output`: the tokens that were charged up to and including it."""
    charged = answer.prompt_tokens if event.completion_tokens else 0
    return f"{answer.id}.{event.seq}.{charged}.{event.completion_tokens}"


def last_event(answer_id: str, header: str | None) -> int:
    """The event number in a `Last-Event-ID`; -1 where it is not of this answer."""
    parts = (header or "").split(".")
    if len(parts) == 4 and parts[0] == answer_id and parts[1].isdecimal() and len(parts[1]) < 10:
        return int(parts[1])
    return -1


def frame(answer: Answer, event: Event) -> bytes:
    return api.event(event.data, event_id(answer, event))


def named_event(name: str, document: dict[str, object]) -> bytes:
    """A `payment-*` event. It has no `id`: it is not part of the answer."""
    return f"event: {name}\n".encode() + api.event(msgspec.json.encode(document))
