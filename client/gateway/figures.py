"""What the gateway did: one record for each request, and sums of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from channels.units import Msat, UnixTime
from client.answer import Cost

WINDOW: Final = 10.0
"""Seconds that "tokens a second" looks back."""


class Record(msgspec.Struct, kw_only=True):
    """One request; `oda gateway --json` prints it when it has ended.

    status: of HTTP; 499 where the program hung up. reason: of the error, if there was one, also in
    the middle of a stream. switched: why other providers were left.
    """

    request: int
    time: UnixTime
    path: str
    model: str = ""
    provider: str = ""
    stream: bool = False
    status: int = 200
    reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    spent_msat: Msat = Msat(0)
    switched: list[str] = []
    seconds: float = 0.0


class Figures:
    """on_record: told of every request that has ended."""

    def __init__(
        self,
        on_record: Callable[[Record], None] = lambda record: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_record = on_record
        self._clock = clock
        self._tokens: deque[tuple[float, int]] = deque()
        self.requests = 0
        self.running = 0
        self.failed = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.spent = Msat(0)

    @contextmanager
    def request(self, path: str) -> Iterator[Record]:
        self.requests += 1
        self.running += 1
        record = Record(request=self.requests, time=UnixTime(int(time.time())), path=path)
        begun = self._clock()
        try:
            yield record
        finally:
            self.running -= 1
            self.failed += record.reason is not None
            record.seconds = round(self._clock() - begun, 3)
            self._on_record(record)

    def cost(self, record: Record, before: Cost | None, now: Cost) -> None:
        """An answer goes on. before: its cost when this was called last."""
        said = now.output_tokens - (before.output_tokens if before else 0)
        asked = now.input_tokens - (before.input_tokens if before else 0)
        spent = Msat(now.spent_msat - (before.spent_msat if before else 0))
        record.input_tokens += asked
        record.output_tokens += said
        record.spent_msat = Msat(record.spent_msat + spent)
        self.input_tokens += asked
        self.output_tokens += said
        self.spent = Msat(self.spent + spent)
        if said:
            self._forget()
            self._tokens.append((self._clock(), said))

    @property
    def tokens_per_second(self) -> float:
        self._forget()
        return sum(tokens for _, tokens in self._tokens) / WINDOW

    def _forget(self) -> None:
        while self._tokens and self._tokens[0][0] < self._clock() - WINDOW:
            self._tokens.popleft()
