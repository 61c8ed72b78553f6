"""The OpenAI API: what clients send, and what they expect back, byte for byte. PURE.

Requests are read strictly and bounded; fields that we don't know are ignored, as OpenAI's own
servers ignore each other's. Builders return JSON bytes with a fixed order of keys, so that the
same answer is the same bytes. Source: platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from channels.errors import OdaError
from provider.pricing import Price

MAX_BODY: Final = 1 << 20
MAX_MESSAGES: Final = 1024
MAX_MODEL_NAME: Final = 256
MAX_TOKENS: Final = 1 << 20
MAX_INPUTS: Final = 64
"""Texts that one request wants embeddings of: the answer is kept."""
MAX_STOPS: Final = 4
MAX_STOP_LENGTH: Final = 256
MAX_TEMPERATURE: Final = 2.0

DONE: Final = b"[DONE]"
"""The data of the last event of every stream."""

FinishReason = Literal["stop", "length", "tool_calls", "function_call", "content_filter"]


class ApiError(OdaError):
    """A request that is answered with an HTTP error status and an OpenAI error body."""

    def __init__(
        self,
        reason: str,
        sentence: str,
        *,
        status: int = 400,
        param: str | None = None,
        type_: str = "invalid_request_error",
    ) -> None:
        super().__init__(reason, sentence)
        self.status = status
        self.param = param
        self.type = type_

    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(error=self.member()))

    def member(self) -> ErrorMember:
        """The `error` member by itself, to stand inside another JSON object."""
        return ErrorMember(str(self), self.type, self.param, self.reason.replace("-", "_"))


class ErrorMember(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    """`{"error": {...}}`: the body of every error, and the data of a stream's error chunk."""

    error: ErrorMember


def no_embeddings(name: str) -> ApiError:
    return ApiError(
        "no-embeddings",
        f"The model {name[:MAX_MODEL_NAME]!r} writes text and has no embeddings.",
        status=404,
        param="model",
    )


def is_model_name(name: str) -> bool:
    """A stranger may have chosen it, and it is shown on terminals and compared by clients."""
    return re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._:/@+-]{0,127}", name) is not None


def unknown_model(name: str) -> ApiError:
    return ApiError(
        "model-not-found",
        f"There is no model {name[:MAX_MODEL_NAME]!r} here; ask /v1/models for those there are.",
        status=404,
        param="model",
    )


# Requests ----------------------------------------------------------------------------------------


class ContentPart(Struct, frozen=True):
    type: str
    text: str | None = None


class Message(Struct, frozen=True):
    """One turn of a conversation; `text` is its content however it was written."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text or "" for part in self.content)


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """What chat and plain completions have in common; None is "not given"."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens the client asked for, None when it left that to us."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Sampling, frozen=True, kw_only=True):
    """POST /v1/chat/completions"""

    messages: list[Message]
    max_completion_tokens: int | None = None

    @property
    def wanted_tokens(self) -> int | None:
        # max_tokens is the deprecated name; where both are given the new one counts.
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Sampling, frozen=True, kw_only=True):
    """POST /v1/completions; `text` is the one prompt."""

    # Prompts as lists of token ids are told apart from malformed ones to get a clearer sentence.
    prompt: str | list[str | int | list[int]]

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[0])


class EmbeddingRequest(Sampling, frozen=True, kw_only=True):
    """POST /v1/embeddings; nothing of what it has in common with the others matters but `model`."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else [str(each) for each in self.input]


Request = TypeVar("Request", bound=Sampling)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises ApiError for anything but a chat request within our bounds."""
    request = _decode(body, ChatRequest)
    _check_sampling(request)
    if not 1 <= len(request.messages) <= MAX_MESSAGES:
        raise _invalid("messages", f"must have 1 to {MAX_MESSAGES} entries")
    for i, message in enumerate(request.messages):
        parts = message.content if isinstance(message.content, list) else []
        for j, part in enumerate(parts):
            if part.type != "text" or part.text is None:
                raise _invalid(f"messages[{i}].content[{j}]", "must be a part of type text")
        _check_text(f"messages[{i}].content", message.text)
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises ApiError for anything but a completion request within our bounds."""
    request = _decode(body, CompletionRequest)
    _check_sampling(request)
    if isinstance(request.prompt, list) and (
        len(request.prompt) != 1 or not isinstance(request.prompt[0], str)
    ):
        raise _invalid("prompt", "must be one text (several prompts or token ids are not served)")
    _check_text("prompt", request.text)
    return request


def parse_embedding(body: bytes) -> EmbeddingRequest:
    """Raises ApiError for anything but a request for embeddings within our bounds."""
    request = _decode(body, EmbeddingRequest)
    _check_sampling(request)
    if request.stream:
        raise _invalid("stream", "must be false: embeddings come at once")
    if isinstance(request.input, list) and not (
        1 <= len(request.input) <= MAX_INPUTS and all(isinstance(x, str) for x in request.input)
    ):
        raise _invalid("input", f"must be a text or 1 to {MAX_INPUTS} texts")
    for text in request.texts:
        if not text:
            raise _invalid("input", "must have no empty text")
        _check_text("input", text)
    return request


def _decode(body: bytes, kind: type[Request]) -> Request:
    if len(body) > MAX_BODY:
        raise ApiError(
            "body-too-large", f"The request must be at most {MAX_BODY} bytes.", status=413
        )
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `str`, got `int` - at `$.messages[0].role`"; for a missing
        # field the path is of the object that lacks it.
        what, _, where = str(error).partition(" - at `$")
        param = where.rstrip("`").lstrip(".")
        missing = re.search(r"missing required field `(\w+)`", what)
        if missing is not None:
            param = f"{param}.{missing[1]}".lstrip(".")
        raise ApiError(
            "invalid-request",
            f"{param or 'The request'} is not valid: {what}.",
            param=param or None,
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid-json", f"The request is not valid JSON: {error}.") from None


def _check_sampling(request: Sampling) -> None:
    if not 1 <= len(request.model) <= MAX_MODEL_NAME:
        raise _invalid("model", f"must have 1 to {MAX_MODEL_NAME} characters")
    _check_text("model", request.model)
    if request.n not in (None, 1):
        raise _invalid("n", "must be 1: one answer is served at a time")
    if request.wanted_tokens is not None and not 1 <= request.wanted_tokens <= MAX_TOKENS:
        named = "max_tokens" if request.wanted_tokens == request.max_tokens else None
        raise _invalid(named or "max_completion_tokens", f"must be 1 to {MAX_TOKENS}")
    if request.temperature is not None and not 0 <= request.temperature <= MAX_TEMPERATURE:
        raise _invalid("temperature", f"must be 0 to {MAX_TEMPERATURE:g}")
    if request.seed is not None and not -(1 << 63) <= request.seed < 1 << 63:
        raise _invalid("seed", "must fit in 64 bits")
    if request.stream_options is not None and not request.stream:
        raise _invalid("stream_options", "is only allowed where stream is true")
    if len(request.stops) > MAX_STOPS:
        raise _invalid("stop", f"must be at most {MAX_STOPS} sequences")
    for stop in request.stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise _invalid("stop", f"sequences must have 1 to {MAX_STOP_LENGTH} characters")
        _check_text("stop", stop)


def _check_text(param: str, text: str) -> None:
    # JSON can spell half of a surrogate pair ("\ud800"), which is no text: UTF-8 has no bytes
    # for it, so an engine could not see it.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(param, "must be valid Unicode without lone surrogates") from None


def _invalid(param: str, what: str) -> ApiError:
    return ApiError("invalid-request", f"{param} {what}.", param=param)


# Answers -----------------------------------------------------------------------------------------


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class ChatChoice(Struct, frozen=True):
    index: int
    message: Mapping[str, object]
    logprobs: object
    finish_reason: str


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Mapping[str, object]
    logprobs: object = None
    finish_reason: str | None = None


class TextChoice(Struct, frozen=True):
    text: str
    index: int
    logprobs: object = None
    finish_reason: str | None = None


class ChatCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Struct, frozen=True):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextCompletion(Struct, frozen=True):
    """A plain completion, and each chunk of one: OpenAI gives both the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class ChatAnswer(Struct, frozen=True):
    """The builder of one chat answer, streamed or whole.

    A stream is `opening()`, one `text()` per piece, `finish()`, `usage()` where the client asked
    for it (each the data of one event), then DONE.
    """

    id: str  # "chatcmpl-…"
    created: int  # seconds since 1970
    model: str
    include_usage: bool = False

    def opening(self) -> tuple[bytes, ...]:
        return (self._chunk([ChunkChoice(0, {"role": "assistant", "content": ""})]),)

    def text(
        self, text: str, more: Mapping[str, object] | None = None, logprobs: object = None
    ) -> bytes:
        """more: what the delta has besides content, such as `tool_calls`."""
        said = {} if more and not text else {"content": text}
        return self._chunk([ChunkChoice(0, said | dict(more or {}), logprobs)])

    def finish(self, reason: FinishReason) -> bytes:
        return self._chunk([ChunkChoice(0, {}, finish_reason=reason)])

    def usage(self, usage: Usage) -> bytes:
        """The extra last chunk of `stream_options.include_usage`: no choices, only figures."""
        return self._chunk([], usage)

    def whole(
        self,
        text: str,
        reason: FinishReason,
        usage: Usage,
        more: Mapping[str, object] | None = None,
        logprobs: object = None,
    ) -> bytes:
        # OpenAI's content is null where there are only calls of tools.
        content = None if more and not text else text
        message = {"role": "assistant", "content": content, "refusal": None} | dict(more or {})
        choice = ChatChoice(0, message, logprobs, reason)
        return msgspec.json.encode(
            ChatCompletion(self.id, "chat.completion", self.created, self.model, [choice], usage)
        )

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        return msgspec.json.encode(
            ChatChunk(
                self.id,
                "chat.completion.chunk",
                self.created,
                self.model,
                choices,
                # With include_usage every other chunk carries "usage": null.
                usage if self.include_usage else UNSET,
            )
        )


class TextAnswer(Struct, frozen=True):
    """The builder of one plain completion; the same methods as ChatAnswer."""

    id: str  # "cmpl-…"
    created: int
    model: str
    include_usage: bool = False

    def opening(self) -> tuple[bytes, ...]:
        return ()

    def text(
        self, text: str, more: Mapping[str, object] | None = None, logprobs: object = None
    ) -> bytes:
        return self._chunk([TextChoice(text, 0, logprobs)])

    def finish(self, reason: FinishReason) -> bytes:
        return self._chunk([TextChoice("", 0, finish_reason=reason)])

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def whole(
        self,
        text: str,
        reason: FinishReason,
        usage: Usage,
        more: Mapping[str, object] | None = None,
        logprobs: object = None,
    ) -> bytes:
        choice = TextChoice(text, 0, logprobs, reason)
        return msgspec.json.encode(
            TextCompletion(self.id, "text_completion", self.created, self.model, [choice], usage)
        )

    def _chunk(self, choices: list[TextChoice], usage: Usage | None = None) -> bytes:
        return msgspec.json.encode(
            TextCompletion(
                self.id,
                "text_completion",
                self.created,
                self.model,
                choices,
                usage if self.include_usage else UNSET,
            )
        )


def event(data: bytes, event_id: str | None = None) -> bytes:
    """One server-sent event (WHATWG HTML 9.2). `data` is JSON or DONE: it has no line breaks."""
    head = f"id: {event_id}\n".encode() if event_id is not None else b""
    return head + b"data: " + data + b"\n\n"


# Models ------------------------------------------------------------------------------------------


class Standing(Struct, frozen=True, omit_defaults=True):
    """What a served model is on the sidechain: its id, its weights, their score (lower is better),
    and by whom and at which height they came; the last three where these weights are the newest."""

    model: str
    weights_root: str
    score: int | None = None
    trainer: str | None = None
    height: int | None = None


class Model(Struct, frozen=True, omit_defaults=True):
    """An entry of /v1/models: OpenAI's fields, then what a payer needs to know beforehand.

    infohash, magnet: how to get the model itself, where the provider shares it (docs/torrent.md).
    sidechain: None for a model that is not registered.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    input_msat_per_token: int
    output_msat_per_token: int
    infohash: str | None = None
    magnet: str | None = None
    sidechain: Standing | None = None

    @classmethod
    def of(
        cls, model_id: str, price: Price, context_length: int, created: int, owned_by: str = "oda"
    ) -> Model:
        return cls(
            model_id,
            "model",
            created,
            owned_by,
            context_length,
            price.input_msat,
            price.output_msat,
        )


class ModelList(Struct, frozen=True):
    object: Literal["list"]
    data: list[Model]


def models(entries: Sequence[Model]) -> bytes:
    """The body of GET /v1/models."""
    return msgspec.json.encode(ModelList("list", list(entries)))
