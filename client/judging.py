"""An answer read under a judge's eyes, and spot-checked when it is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from channels.errors import OdaError, RemoteProtocolError
from client.answer import Answer, Chunk, Done, Event, Text
from client.judge import Fault, Judge
from client.question import CHAT, Question
from client.session import PaidSession
from client.spot_check import Asked, OwnCopies

LOOK_EVERY: Final = 0.5
"""Seconds between looks at the clock while nothing comes."""
TEMPERATURE: Final = 1.0
"""OpenAI's default."""


class BadAnswer(RemoteProtocolError):
    """The answer was left, or is worth nothing, because of a fault. What is unspent comes back."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"answer-{fault.kind}", f"{fault.sentence} The session is closed.")
        self.fault = fault


class Watched:
    """latency_ms: until the first text; None before it."""

    def __init__(
        self,
        answer: Answer,
        session: PaidSession,
        judge: Judge,
        copies: OwnCopies,
        question: Question,
    ) -> None:
        self._answer = answer
        self._session = session
        self._judge = judge
        self._copies = copies
        self._question = question
        self._said: list[str] = []
        self._weights_root: bytes | None = None
        self.latency_ms: int | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """The answer's, until a fault. Raises BadAnswer, and what the answer raises."""
        begun, is_first = time.monotonic(), True
        async with (
            aclosing(self._answer.events()) as coming,
            aclosing(judged(coming, self._judge, lambda: self._answer.is_waiting)) as events,
        ):
            async for event in events:
                if is_first:
                    is_first = False
                    # The challenge that came with the answer names the weights that give it.
                    provenances = self._session.value.provenances
                    self._weights_root = provenances[-1].weights_root if provenances else None
                if isinstance(event, Text):
                    self._said.append(event.text)
                    if self.latency_ms is None:
                        self.latency_ms = int(1000 * (time.monotonic() - begun))
                if isinstance(event, Done):
                    await self._spot_check()
                yield event

    async def _spot_check(self) -> None:
        if self._weights_root is None:
            return
        question = self._question
        if question.seed is None:
            return  # nobody can say what it should have been
        asked = Asked(
            self._weights_root,
            question.texts,
            "".join(self._said),
            TEMPERATURE if question.temperature is None else question.temperature,
            question.seed,
            is_chat=question.path == CHAT,
        )
        _check(await self._copies.check(asked))


async def judged(
    events: AsyncGenerator[Event, None],
    judge: Judge,
    is_waiting: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Event, None]:
    """The same events, until a fault. Raises BadAnswer.

    is_waiting: whether the stream waits for our own payment.
    """
    coming: asyncio.Task[Event | None] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.create_task(_next(events))
            await asyncio.wait((coming,), timeout=LOOK_EVERY)
            judge.paying(clock(), waiting=is_waiting())
            if not coming.done():
                _check(judge.tick(clock()))
                continue
            event, coming = coming.result(), None
            if event is None:
                return
            if isinstance(event, Done):
                _check(judge.end(event.cost.output_tokens, is_cut=event.reason == "length"))
            yield event
            if isinstance(event, Chunk) and not event.is_silent:
                judge.alive(clock())
            if isinstance(event, Text):
                _check(judge.text(event.text, clock()))
    finally:
        if coming is not None:
            coming.cancel()
            with suppress(asyncio.CancelledError, OdaError):
                await coming


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


def _check(fault: Fault | None) -> None:
    if fault is not None:
        raise BadAnswer(fault)
