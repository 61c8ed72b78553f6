"""What an OpenAI-compatible engine streams, read and counted. PURE.

Its chunks are passed on as they are, but for what is ours to say: ids, the model's name, the usage.
How many tokens an answer took is known for certain at its end, when the engine says so (`usage`).
Until then each chunk that brings something is one token, or what the engine's running usage says,
where it gives one. Whatever the engine says, no more tokens are counted than were asked for, or
than there are bytes in what came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from channels.errors import RemoteProtocolError
from channels.http.sse import ServerEvent
from provider.api import DONE, FinishReason
from provider.decoding import Token

MAX_SURPLUS: Final = 64
"""Chunks beyond the tokens that were asked for, before an engine that does not stop is left."""
MAX_TOKEN_BYTES: Final = 256
_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "function_call",
    "content_filter": "content_filter",
}
_UNTOLD: Final = 0
"""The id of a token whose id the engine does not tell."""


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None


class UpstreamAnswer:
    """One answer of at most `max_tokens`, event by event."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chunks = 0
        self._bytes = 0
        self._counted = 0
        self.usage: Usage | None = None
        """What the engine said last of question and answer."""
        self._reason: FinishReason | None = None
        self.is_done = False

    def take(self, event: ServerEvent) -> Token | None:
        """What the event brings; None where it is nothing of the answer.

        Raises RemoteProtocolError for what is no chunk, or an error that the engine reports.
        """
        if event.name != "message":
            return None
        if event.data == DONE.decode():
            self.is_done = True
            return None
        chunk = _decode(event.data)
        if chunk.error or chunk.object == "error":
            said = _said(chunk.error or chunk.message)
            raise RemoteProtocolError("upstream-failed", f"The engine failed: {said}")
        if chunk.usage is not None:
            self.usage = chunk.usage
        choice = chunk.choices[0] if chunk.choices else None
        if choice is None or self._reason is not None:
            return None
        if choice.finish_reason is not None:
            self._reason = _REASONS.get(choice.finish_reason, "stop")
        return self._token(choice, chunk.usage)

    def end(self) -> Token:
        """The last step. Raises RemoteProtocolError where the answer was cut off."""
        if self._reason is None and not self.is_done:
            raise RemoteProtocolError(
                "upstream-broke-off", "The engine broke off in the middle of its answer."
            )
        total = None if self.usage is None else self._most(self.usage.completion_tokens)
        return Token(_UNTOLD, "", self._reason or "stop", count=0, total=total)

    def _token(self, choice: _Choice, usage: Usage | None) -> Token | None:
        delta = {k: v for k, v in (choice.delta or {}).items() if k != "role" and v is not None}
        content = delta.pop("content", None)
        text = (choice.text if choice.text is not None else content) or ""
        if not isinstance(text, str):
            raise _no_chunk()
        delta = {name: value for name, value in delta.items() if value not in ("", [])}
        if not text and not delta:
            return None
        brought = len(text.encode("utf-8", "replace")) + _bytes(delta)
        self._chunks += 1
        self._bytes += brought
        if (
            self._chunks > self._max_tokens + MAX_SURPLUS
            or self._bytes > (self._max_tokens + MAX_SURPLUS) * MAX_TOKEN_BYTES
        ):
            raise RemoteProtocolError(
                "upstream-endless", "The engine goes on although enough tokens were generated."
            )
        told = self._counted + (1 if brought else 0)
        if usage is not None:
            told = usage.completion_tokens
        count = max(0, self._most(told) - self._counted)
        self._counted += count
        return Token(_UNTOLD, text, None, count, delta or None, choice.logprobs)

    def _most(self, told: int) -> int:
        return max(0, min(told, self._max_tokens, self._bytes))


class _Embedding(msgspec.Struct):
    embedding: list[float] | str
    index: int
    object: str = "embedding"


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: Usage | None = None


def embeddings(body: bytes, model: str, count: int) -> tuple[bytes, int]:
    """The answer to a request for the embeddings of `count` texts, in OpenAI's shape, and the
    tokens of the texts. Raises RemoteProtocolError."""
    try:
        made = msgspec.json.decode(body, type=_Embeddings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _no_chunk() from None
    if sorted(each.index for each in made.data) != list(range(count)):
        raise _no_chunk()
    tokens = 0 if made.usage is None else max(0, made.usage.prompt_tokens)
    document = {
        "object": "list",
        "data": made.data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return msgspec.json.encode(document), tokens


def error_message(body: bytes) -> str:
    """What an engine says in the body of an error: OpenAI's shape, or others that are in use."""
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _said(None)
    return _said(document.get("error") or document.get("message") or document.get("detail"))


def _decode(data: str) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _no_chunk() from None


def _no_chunk() -> RemoteProtocolError:
    return RemoteProtocolError(
        "upstream-bad-chunk", "The engine sent something that is no part of an answer."
    )


def _said(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not message.strip():
        message = "it says nothing about it"
    said = "".join(c for c in " ".join(message.split()) if c.isprintable())[:300].rstrip()
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _bytes(delta: Mapping[str, Any]) -> int:
    """Of what was generated and is not the answer's text: what was thought, refused or called.
    Names that the engine makes up, such as a call's id, are nobody's tokens."""
    found: list[Any] = [delta.get(n) for n in ("refusal", "reasoning", "reasoning_content")]
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            found += [function.get("name"), function.get("arguments")]
    return sum(len(text.encode("utf-8", "replace")) for text in found if isinstance(text, str))
