"""What a provider streams, as a program expects it from OpenAI: streamed, or in one piece. PURE.

The chunks of an answer travel with whatever is in them. What only a payer needs stays here: named
events, event ids, and the usage where the program did not ask for it. openai-python takes every
named event for a chunk, and breaks on it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from channels.errors import RemoteProtocolError
from client.question import CHAT
from provider.api import DONE, ErrorMember, event
from provider.decoding import merged_objects

WHOLE_NAMES: Final = {"chat.completion.chunk": "chat.completion"}
"""`object` of a whole answer, where it is not that of its chunks."""


class Streamed:
    """The bytes for a program that reads events.

    Chunks that say nothing yet are held back until one does: up to there the answer can begin
    anew with another provider, or become an HTTP error.
    """

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._held: list[bytes] = []
        self.has_begun = False

    def take(self, data: str, *, is_silent: bool) -> bytes:
        """A chunk's JSON. Raises RemoteProtocolError where it is no object."""
        chunk = _object(data)
        if not self._include_usage:
            usage = chunk.pop("usage", None)
            if usage is not None and not chunk.get("choices"):
                return b""  # the extra last chunk
        self._held.append(event(msgspec.json.encode(chunk)))
        if is_silent and not self.has_begun:
            return b""
        self.has_begun = True
        return self._release()

    def end(self) -> bytes:
        return self._release() + event(DONE)

    def failed(self, error: ErrorMember) -> bytes:
        """The last event of an answer that has begun: there is no [DONE] after it."""
        return self._release() + event(msgspec.json.encode({"error": error}))

    def restart(self) -> None:
        """Another provider answers, from the beginning. Only before it has begun."""
        assert not self.has_begun
        self._held.clear()

    def _release(self) -> bytes:
        held, self._held = b"".join(self._held), []
        return held


class Whole:
    """The one JSON document for a program that does not stream."""

    def __init__(self, path: str) -> None:
        self._delta = "message" if path == CHAT else ""
        self.restart()

    def restart(self) -> None:
        self._document: dict[str, Any] = {}
        self._choices: dict[int, dict[str, object]] = {}

    def take(self, data: str) -> None:
        """A chunk's JSON. Raises RemoteProtocolError where it makes no sense."""
        chunk = _object(data)
        choices = chunk.pop("choices", None) or []
        usage = chunk.pop("usage", None)
        self._document = {**chunk, **self._document}
        if usage is not None:
            self._document["usage"] = usage
        for choice in choices:
            self._take_choice(choice)

    def _take_choice(self, choice: Any) -> None:
        index = choice.get("index", 0) if isinstance(choice, dict) else None
        if type(index) is not int:
            raise _bad_chunk()
        if self._delta:
            choice = {self._delta: choice.pop("delta", None) or {}, **choice}
        known = self._choices.get(index, {"index": index})
        self._choices[index] = merged_objects(known, choice)

    def document(self) -> bytes:
        document = dict(self._document)
        usage = document.pop("usage", None)
        if (name := document.get("object")) in WHOLE_NAMES:
            document["object"] = WHOLE_NAMES[name]
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        document |= {"choices": choices} | ({} if usage is None else {"usage": usage})
        return msgspec.json.encode(document)


def _finished(choice: dict[str, object]) -> dict[str, object]:
    """Calls of tools have an `index` only while they come in pieces."""
    message = choice.get("message")
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(calls, list):
        return choice
    whole = [{k: v for k, v in c.items() if k != "index"} for c in calls if isinstance(c, dict)]
    # OpenAI's content is null where there are only calls.
    return choice | {
        "message": message | {"content": message.get("content") or None, "tool_calls": whole}
    }


def _object(data: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise _bad_chunk() from None


def _bad_chunk() -> RemoteProtocolError:
    return RemoteProtocolError(
        "bad-chunk", "The provider sent something that is no part of an answer."
    )
