"""A request of the OpenAI API as it is sent, and what bounds the cost of it. PURE.

Fields that are not known here travel as they are: the provider says what it makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from channels.errors import UserError
from provider.api import MAX_BODY

CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"

MESSAGE_TOKENS: Final = 16
"""What a chat template may add around one message, at most."""
TOOLS_FACTOR: Final = 2
"""A template may write a tool's definition longer than JSON does."""


class _Format(msgspec.Struct):
    type: str = "text"


class _Known(msgspec.Struct):
    """The fields that matter to whoever pays."""

    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: _Format | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """texts: of the messages, or the one prompt of a plain completion.

    max_input, max_tokens: None where there is no bound of our own.
    stop_bytes: text that may be generated, charged and held back.
    """

    path: str
    body: bytes
    model: str
    texts: tuple[str, ...]
    max_input: int
    max_tokens: int | None
    stop_bytes: int
    temperature: float | None
    seed: int | None
    wants_json: bool

    @classmethod
    def of(cls, path: str, request: Mapping[str, Any], context: int | None) -> Question:
        """Raises UserError `bad-question`, `body-too-large`."""
        body = msgspec.json.encode(request)
        if len(body) > MAX_BODY:
            raise UserError("body-too-large", f"A question has at most {MAX_BODY} bytes.")
        try:
            known = msgspec.convert(request, _Known)
        except msgspec.ValidationError as error:
            raise UserError("bad-question", f"The question is not valid: {error}.") from None
        if (known.messages if path == CHAT else known.prompt) is None:
            missing = "messages" if path == CHAT else "prompt"
            raise UserError("bad-question", f"The question is not valid: it has no {missing}.")
        stops = (known.stop,) if isinstance(known.stop, str) else tuple(known.stop or ())
        bound = _bound(known)
        limits = (known.max_completion_tokens, known.max_tokens)
        return cls(
            path=path,
            body=body,
            model=known.model,
            texts=_texts(known),
            max_input=bound if context is None else min(bound, context),
            max_tokens=next((limit for limit in limits if limit is not None), None),
            stop_bytes=max((len(text.encode("utf-8", "replace")) for text in stops), default=0),
            temperature=known.temperature,
            seed=known.seed,
            wants_json=known.response_format is not None
            and known.response_format.type in ("json_object", "json_schema"),
        )


def _texts(known: _Known) -> tuple[str, ...]:
    if known.messages is None:
        return (_text(known.prompt),)
    return tuple(_text(message.get("content")) for message in known.messages)


def _text(content: Any) -> str:
    """Whatever shape it was written in (provider.api.Message)."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _bound(known: _Known) -> int:
    """The most input tokens that this can be: no token has less than a byte."""
    bound = MESSAGE_TOKENS
    for message in known.messages or ():
        content = message.get("content")
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        bound += MESSAGE_TOKENS + _bytes(content) + (_bytes(rest) if rest else 0)
    # Token ids are at least as long in JSON.
    bound += _bytes(known.prompt)
    for tools in (known.tools, known.functions):
        bound += TOOLS_FACTOR * _bytes(tools) if tools else 0
    return bound


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    return 0 if value is None else len(msgspec.json.encode(value))
