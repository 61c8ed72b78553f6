"""When is an answer bad? PURE: text and times in, a fault or nothing out.

What is looked at here needs no copy of the model; `sidechain.model.spot_check` needs one. A fault
ends the answer: no more is paid, the session is closed for its refund, and the provider is
remembered for it (reputation.py). A limit therefore errs on the provider's side: small models
repeat themselves, and a slow provider is not a dead one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TAIL: Final = 512
"""Characters at the end of an answer that are looked at for repetition and garbage."""
REPEATS: Final = 8
"""A tail that is one piece of text so many times says nothing any more."""
GARBAGE: Final = 8
"""One character in so many may be none."""
_LOOK_EVERY: Final = 64
_CONTROLS: Final = frozenset("\n\r\t")


class FaultKind(StrEnum):
    STALL = "stall"
    EMPTY = "empty"
    REPETITION = "repetition"
    MALFORMED = "malformed"
    WRONG_MODEL = "wrong-model"
    OVERCHARGE = "overcharge"
    UNPAID_SHARES = "unpaid-shares"
    FALSE_RECEIPT = "false-receipt"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an answer, in one sentence for the user."""

    kind: FaultKind
    sentence: str


@dataclass(frozen=True, slots=True)
class Limits:
    """stall: seconds without a token while everything that was asked for is paid.
    wants_json: the request's `response_format` asked for a JSON object."""

    stall: float = 30.0
    wants_json: bool = False


class Judge:
    """One answer. `now` is any clock that only goes forward, in seconds."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._last = now
        self._waiting = False
        self._length = 0
        self._said_something = False
        self._tail = ""
        self._looked = 0
        self._parts: list[str] = []

    def text(self, text: str, now: float) -> Fault | None:
        """A piece of the answer has come."""
        self._last = now
        self._length += len(text)
        self._tail = (self._tail + text)[-TAIL:]
        if self._limits.wants_json:
            self._parts.append(text)
        if self._length - self._looked < _LOOK_EVERY or len(self._tail) < TAIL:
            return None
        self._looked = self._length
        return _garbage(self._tail) or _repetition(self._tail)

    def alive(self, now: float) -> None:
        """Something has come that is more than an empty event; it need not be text."""
        self._last = now
        self._said_something = True

    def paying(self, now: float, *, waiting: bool) -> None:
        """Whether the stream waits for our own payment: that is no stall."""
        if self._waiting and not waiting:
            self._last = now
        self._waiting = waiting

    def tick(self, now: float) -> Fault | None:
        """Time has passed."""
        if self._waiting or now - self._last < self._limits.stall:
            return None
        return Fault(
            FaultKind.STALL, f"Nothing came for {self._limits.stall:g} s although it was paid for."
        )

    @property
    def stalls_at(self) -> float | None:
        """When tick() will find a stall, if nothing comes before."""
        return None if self._waiting else self._last + self._limits.stall

    def end(self, output_tokens: int, *, is_cut: bool = False) -> Fault | None:
        """The answer is complete; output_tokens were charged for it.

        is_cut: it ended because no more tokens were asked for.
        """
        if not self._length and not self._said_something:
            charged = (
                f"{output_tokens} tokens were charged for it" if output_tokens else "it is free"
            )
            return Fault(FaultKind.EMPTY, f"The answer has no text ({charged}).")
        # A model that calls a tool instead has nothing to say in JSON yet.
        wants_json = self._limits.wants_json and self._length and not is_cut
        if wants_json and not _is_object("".join(self._parts)):
            return Fault(FaultKind.MALFORMED, "A JSON object was asked for and none came.")
        return _garbage(self._tail)


def period(text: str) -> int:
    """The length of the shortest piece that gives the text when it is repeated (the last time
    perhaps in part), by Knuth, Morris and Pratt's table of borders."""
    borders = [0] * len(text)
    border = 0
    for i in range(1, len(text)):
        while border and text[i] != text[border]:
            border = borders[border - 1]
        if text[i] == text[border]:
            border += 1
        borders[i] = border
    return len(text) - border


def _repetition(tail: str) -> Fault | None:
    if period(tail) * REPEATS > len(tail):
        return None
    return Fault(
        FaultKind.REPETITION, f"The last {len(tail)} characters are the same few over and over."
    )


def _garbage(tail: str) -> Fault | None:
    bad = sum(
        character == "�" or (not character.isprintable() and character not in _CONTROLS)
        for character in tail
    )
    if bad * GARBAGE <= len(tail):
        return None
    return Fault(FaultKind.MALFORMED, f"{bad} of the last {len(tail)} characters are no text.")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
