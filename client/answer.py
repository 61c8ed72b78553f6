"""One answer: read as it comes, counted, and paid for ahead of need.

Everything that arrives is counted here, and the provider's figures are held against it. A
connection that breaks is made again with the same credential and `Last-Event-ID`, so nothing is
shown or charged twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from channels import receipts
from channels.errors import OdaError, RemoteProtocolError
from channels.http.payer import Effect, SendCredential
from channels.http.scheme import parse_challenges
from channels.http.sse import ServerEvent
from channels.units import Msat
from client.budget import CAPS
from client.provider import ProviderRefused, ProviderUnreachable, Stream, spent_msat
from client.question import Question
from client.session import BACK_OFF, PaidSession
from client.store import AnswerRow
from provider.api import DONE

BUSY: Final = 503
CALL_TOKENS: Final = 64
"""What a template may have a model write around one call of a tool, at most."""

# Events ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """The JSON of one event of the answer, as the provider sent it: whatever is in it.

    is_silent: whether it brings nothing of the answer itself, neither text nor a call of a tool.
    """

    data: str
    is_silent: bool


@dataclass(frozen=True, slots=True)
class Text:
    """What a `Chunk` said, if it said something."""

    text: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Where things stand. Tokens and spent_msat are of this answer, the rest of its session.

    left_msat: paid and not used; max_exposure_msat: the most that it ever was;
    exposure_limit_msat: what it may be.
    """

    input_tokens: int
    output_tokens: int
    spent_msat: Msat
    paid_msat: Msat
    left_msat: Msat
    max_exposure_msat: Msat
    exposure_limit_msat: Msat
    topups: int


@dataclass(frozen=True, slots=True)
class TopUp:
    """A deposit was paid while the answer went on. number: of this answer, from 1."""

    amount_msat: Msat
    number: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The connection broke; it is being made again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the answer. reason: "stop" or "length"."""

    reason: str
    cost: Cost


Event = Chunk | Text | Cost | TopUp | Interrupted | Done

# What travels ------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    """text: of a plain completion."""

    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        return self.delta.content or self.text or ""

    @property
    def besides(self) -> int:
        """The most bytes that were generated and are not what it said: one token has at least
        one, so this bounds them."""
        delta = self.delta
        texts = [delta.refusal, delta.reasoning, delta.reasoning_content]
        calls = delta.tool_calls or ()
        texts += [text for call in calls for text in (call.function.name, call.function.arguments)]
        named = sum(call.function.name is not None for call in calls)
        return named * CALL_TOKENS + sum(_bytes(text or "") for text in texts)


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Error(msgspec.Struct):
    message: str = "The provider says nothing about it."
    code: str | int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class Answer:
    """row: how far it was read; `events` goes on from there."""

    def __init__(self, session: PaidSession, question: Question, sent: SendCredential) -> None:
        header = sent.credential.to_header()
        self.row = AnswerRow(sent.credential.challenge.id, header, question.body)
        self._session = session
        self.question = question
        self._sent = sent
        self._input = 0
        self._output = 0
        self._text_bytes = 0
        self._finish: str | None = None
        self._is_done = False
        self._timed_out = False
        self._topups = 0
        self._limit = Msat(0)
        self._topup: asyncio.Task[Msat] | None = None
        self._topup_failure: OdaError | None = None
        self._must_top_up = False

    @property
    def is_waiting(self) -> bool:
        """Whether the stream can't go on before our payment reaches the provider."""
        return self._must_top_up

    @property
    def cost(self) -> Cost:
        value = self._session.value
        self._limit = max(self._limit, value.exposure_limit)
        return Cost(
            input_tokens=self._input,
            output_tokens=self._output,
            spent_msat=self._spent,
            paid_msat=value.paid,
            left_msat=value.exposure,
            max_exposure_msat=value.max_exposure,
            exposure_limit_msat=self._limit,
            topups=self._topups,
        )

    @property
    def _spent(self) -> Msat:
        terms = self._session.value.terms
        return Msat(0) if terms is None else terms.cost(self._input, self._output)

    # Reading -------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[Event, None]:
        """Until the end of the answer. Closed or cancelled, it pays nothing more.

        Raises OdaError: what was not delivered costs nothing, and the rest is still there.
        """
        self._session.save(self.row)
        deadline, attempt = time.monotonic() + self._session.patience, 0
        try:
            while not self._is_done:
                position = self.row.last_event_id
                try:
                    async with aclosing(self._connect()) as events:
                        async for event in events:
                            yield event
                    broken = "the connection ended early"
                except ProviderUnreachable as error:
                    broken = str(error)
                except ProviderRefused as refusal:
                    if refusal.status != BUSY or not position:
                        raise
                    broken = str(refusal)
                if self._is_done:
                    break
                if self._timed_out:
                    raise self._why_not_paid()
                if self.row.last_event_id != position:
                    deadline, attempt = time.monotonic() + self._session.patience, 0
                wait = BACK_OFF[min(attempt, len(BACK_OFF) - 1)]
                attempt += 1
                if time.monotonic() + wait > deadline:
                    raise ProviderUnreachable(
                        "provider-unreachable",
                        "The provider went away in the middle of the answer and did not come "
                        f"back ({broken}). What is unspent is not lost: oda close",
                    )
                yield Interrupted(broken)
                await asyncio.sleep(wait)
            yield Done(self._finish or "stop", self.cost)
        finally:
            await self._stop_paying()
            done = self._is_done
            self.row = replace(self._progress(), counted=done, complete=done)
            self._session.save(self.row)

    def _progress(self) -> AnswerRow:
        """What a receipt is held against, as of now."""
        return replace(self.row, input_tokens=self._input, output_tokens=self._output)

    async def _connect(self) -> AsyncGenerator[Event, None]:
        session, row = self._session, self.row
        async with session.provider.stream(
            self.question, row.authorization, row.last_event_id
        ) as sent:
            if not sent.is_stream:
                raise RemoteProtocolError("not-a-stream", "The provider did not stream its answer.")
            session.answered(self._sent, sent.challenges)
            self._top_up_ahead()
            yield self.cost
            async with aclosing(self._read(sent)) as events:
                async for event in events:
                    yield event

    async def _read(self, stream: Stream) -> AsyncGenerator[Event, None]:
        """Read, while top-ups go on beside it. A consumer that is slow slows the paying too."""
        incoming = stream.events()
        reading: asyncio.Task[ServerEvent | None] | None = None
        try:
            while not self._is_done:
                if reading is None:
                    reading = asyncio.create_task(_next(incoming))
                waiting: set[asyncio.Task[Any]] = {reading}
                if self._topup is not None:
                    waiting.add(self._topup)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self._topup is not None and self._topup.done():
                    if (paid := self._topup_ended(self._topup)) is not None:
                        yield paid
                        yield self.cost
                    continue
                event, reading = reading.result(), None
                if event is None:
                    return
                for told in self._take(event):
                    yield told
        finally:
            if reading is not None:
                reading.cancel()
                with suppress(asyncio.CancelledError, OdaError):
                    await reading

    def _take(self, event: ServerEvent) -> Sequence[Event]:
        match event.name:
            case "payment-need-topup":
                self._need_topup(_object(event.data))
                return (self.cost,)
            case "session-timeout":
                self._timed_out = True
            case "payment-receipt":
                charged = spent_msat(_object(event.data), "spentMsat")
                if charged is not None and charged > self._spent:
                    raise _overcharged(charged, self._spent)
            case "message" if event.data == DONE.decode():
                self._is_done = True
                self._note(event)
            case "message":
                return self._chunk(event)
        return ()  # events that are not known here are no part of the answer

    def _chunk(self, event: ServerEvent) -> Sequence[Event]:
        try:
            chunk = msgspec.json.decode(event.data, type=_Chunk)
        except msgspec.DecodeError:
            raise RemoteProtocolError(
                "bad-chunk", "The provider sent something that is no part of an answer."
            ) from None
        if chunk.error is not None:
            reason = str(chunk.error.code or "answer-failed").replace("_", "-")
            raise ProviderRefused(reason, chunk.error.message[:500], 200)
        text = "".join(choice.said for choice in chunk.choices)
        besides = sum(choice.besides for choice in chunk.choices)
        self._text_bytes += _bytes(text) + besides
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
        self._count(event.id, bool(text or besides), chunk.usage)
        self._note(event)
        passed = Chunk(event.data, is_silent=not text and not besides)
        return (passed, Text(text), self.cost) if text else (passed,)

    def _note(self, event: ServerEvent) -> None:
        """An event of the answer was taken: a receipt will be held against it."""
        is_first = not self.row.read_as
        self.row = replace(
            self.row,
            last_event_id=event.id,
            read_as=event.id.partition(".")[0][:256],
            digest=receipts.digest(self.row.digest, event.data.encode()),
        )
        if is_first:
            self._session.save(self._progress())

    # Counting ------------------------------------------------------------------------------------

    def _count(self, event_id: str, has_text: bool, usage: _Usage | None) -> None:
        """What was charged up to this event: its id says so, else one token per piece of text
        until the usage at the end, which may also be less. Raises RemoteProtocolError where that
        can't be."""
        counted = _position(event_id)
        if usage is not None:
            # The question costs nothing where nothing was answered.
            asked = usage.prompt_tokens if usage.completion_tokens else 0
            counted = (asked, usage.completion_tokens)
        input_tokens, output_tokens = counted or (self._input, self._output + has_text)
        question = self.question
        most = self._text_bytes + question.stop_bytes
        if question.max_tokens is not None:
            most = min(most, question.max_tokens)
        if not 0 <= output_tokens <= most or not 0 <= input_tokens <= question.max_input:
            raise RemoteProtocolError(
                "overcharged",
                f"The provider counts {input_tokens} and {output_tokens} tokens, which is more "
                "than went back and forth.",
            )
        new = (input_tokens - self._input, output_tokens - self._output)
        self._input, self._output = input_tokens, output_tokens
        if any(new):
            self._session.served(*new)
            self._top_up_ahead()

    def _count_input(self, spent: Msat) -> None:
        """Where event ids say nothing, the question's tokens are counted at the end, with the
        usage. What was charged for them before shows in what was spent."""
        value = self._session.value
        if self._input or not self._output or value.terms is None or not value.terms.input_msat:
            return
        tokens, rest = divmod(spent - value.served, value.terms.input_msat)
        if not rest and 0 < tokens <= self.question.max_input:
            self._input = tokens
            self._session.served(tokens, 0)

    def _top_up_ahead(self) -> None:
        """Pay the next deposit if it is due. One that failed, or that a cap forbids, is tried
        again when the provider needs it."""
        if self._topup is not None or self._topup_failure is not None:
            return
        session = self._session
        try:
            # After a kill no more can have come than this deposit pays for.
            step = session.value.top_up(session.now())
            effects = session.apply(step, self._progress())
        except OdaError as error:
            if error.reason not in _CAPS:
                raise
            self._topup_failure = error
        else:
            if effects:
                self._start_topup(effects)

    # Paying --------------------------------------------------------------------------------------

    def _need_topup(self, data: dict[str, Any]) -> None:
        """The stream waits. Its own offer, if it came along, saves asking for one."""
        session = self._session
        spent = spent_msat(data, "balanceSpentMsat")
        if spent is not None:
            self._count_input(spent)
            session.spent_is(spent, self.row.id)
        offers = parse_challenges(str(data.get("challenge", "")))
        if any(session.has_paid(offer) for offer in offers):
            return  # written before our top-up reached the provider, or while it is on its way
        self._must_top_up = True
        if self._topup is not None:
            return
        if offers:
            session.offered(offers)
        told = data.get("promptTokens")
        unpaid = 0 if self._output else self.question.max_input
        if isinstance(told, int):
            unpaid = max(0, min(unpaid, told))
        step = session.value.need_topup(unpaid, session.now())
        effects = session.apply(step, self._progress())
        if effects:
            self._start_topup(effects)

    def _start_topup(self, effects: Sequence[Effect]) -> None:
        self._topup_failure = None
        self._topup = asyncio.create_task(self._session.top_up(effects, self.question))

    def _topup_ended(self, task: asyncio.Task[Msat]) -> TopUp | None:
        """Raises the failure of a top-up where the stream can't go on without it, or where the
        provider broke a rule."""
        self._topup = None
        error = task.exception()
        if error is None:
            self._must_top_up = False
            if not (amount := task.result()):
                return None
            self._topups += 1
            return TopUp(amount, self._topups)
        is_passing = isinstance(error, OdaError) and (
            isinstance(error, ProviderRefused) or not isinstance(error, RemoteProtocolError)
        )
        if not is_passing or self._must_top_up:
            raise error
        self._topup_failure = error if isinstance(error, OdaError) else None
        return None

    def _why_not_paid(self) -> OdaError:
        if self._topup_failure is not None:
            return self._topup_failure
        return OdaError("topup-timeout", "The top-up did not reach the provider in time.")

    async def _stop_paying(self) -> None:
        """A payment that the node has already begun is the node's: its outcome is found out when
        the session is used again."""
        if self._topup is None:
            return
        self._topup.cancel()
        with suppress(asyncio.CancelledError, OdaError):
            await self._topup


_CAPS: Final = CAPS | {"exposure-limit"}


async def _next(events: AsyncIterator[ServerEvent]) -> ServerEvent | None:
    return await anext(events, None)


def _position(event_id: str) -> tuple[int, int] | None:
    """(input, output) tokens charged so far, from an id `answer.number.input.output`."""
    parts = event_id.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts[1:]):
        return None
    return int(parts[2]), int(parts[3])


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _object(data: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise RemoteProtocolError(
            "bad-event", "The provider sent a payment event that is no JSON object."
        ) from None


def _overcharged(charged: int, counted: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        "overcharged",
        f"The provider charged {charged} msat for what costs {counted} msat.",
    )
