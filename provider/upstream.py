"""An OpenAI-compatible server as an engine: vLLM, Ollama, llama.cpp's server and their like.

A request is sent on with the fields of OpenAI's API that it has: the engine applies its own chat
template, calls its own tools, and says what a question and an answer took (upstream_answer.py).
Fields that are not OpenAI's are not sent on: an engine may do a hundred times the work for them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from hashlib import sha256
from typing import Any, Final

import aiohttp
import msgspec

from channels.errors import RemoteProtocolError
from channels.http.sse import EventParser, ServerEvent
from channels.http_body import read_body
from provider import upstream_answer
from provider.api import ApiError
from provider.decoding import Token
from provider.engine import AnyRequest, Embeddings, GenerateRequest, Prompt
from provider.places import Places
from provider.upstream_answer import UpstreamAnswer

CONNECT_SECONDS: Final = 10
LIST_SECONDS: Final = 10
MAX_BODY: Final = 4 << 20
MAX_LOGPROBS: Final = 5
"""Of other tokens at each place: they are sent and kept, and nobody pays for them."""
MESSAGE_TOKENS: Final = 16
"""What a chat template may add around one message, and around all of them, and is charged."""

PATHS: Final[Mapping[str, str]] = {"chat": "/chat/completions", "text": "/completions"}
SENT_ON: Final = frozenset(
    {"messages", "prompt", "suffix", "user"}
    | {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias"}
    | {"frequency_penalty", "presence_penalty", "repetition_penalty"}
    | {"logprobs", "top_logprobs", "response_format", "reasoning_effort"}
    | {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}
    | {"chat_template_kwargs"}
)


EMBEDDING_FIELDS: Final = frozenset({"input", "encoding_format", "dimensions", "user"})


class _Meta(msgspec.Struct, frozen=True):
    n_ctx: int | None = None


class ListedModel(msgspec.Struct):
    """An entry of GET /models, and where vLLM, others and llama.cpp say the context's length."""

    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    meta: _Meta | None = None

    @property
    def context(self) -> int | None:
        of_llama_cpp = None if self.meta is None else self.meta.n_ctx
        told = self.max_model_len or self.context_length or of_llama_cpp
        return told if told is not None and told > 0 else None


class _Listed(msgspec.Struct):
    data: list[ListedModel]


class Upstream:
    """One server. url: up to and including its `/v1`. key: its API key, never shown."""

    def __init__(
        self, url: str, http: aiohttp.ClientSession, places: Places, key: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.places = places
        self._http = http
        # A connection that is kept may be closed by the server just when it is used again; what was
        # asked on it could not be asked again without being computed twice.
        self._headers = {"Accept-Encoding": "identity", "Connection": "close"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    async def models(self) -> list[ListedModel]:
        """What it has now. Raises ApiError."""
        timeout = aiohttp.ClientTimeout(LIST_SECONDS, sock_connect=CONNECT_SECONDS)
        async with self._request("GET", "/models", timeout) as response:
            body = await read_body(response.content, MAX_BODY)
        try:
            return msgspec.json.decode(body, type=_Listed).data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _unavailable("The engine's list of models is none.") from None

    async def post(self, path: str, document: object) -> bytes:
        """Hardly more than MAX_BODY of the answer. Raises ApiError."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        async with self._request("POST", path, timeout, msgspec.json.encode(document)) as response:
            return await read_body(response.content, MAX_BODY)

    async def events(self, path: str, document: object) -> AsyncGenerator[ServerEvent, None]:
        """Until the connection ends; closed with the generator, which stops the engine.

        Raises ApiError, RemoteProtocolError for an event that has no end.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        body = msgspec.json.encode(document)
        async with self._request("POST", path, timeout, body) as response:
            if response.content_type != "text/event-stream":
                raise _unavailable("The engine did not stream its answer.")
            parser = EventParser()
            async for data in response.content.iter_any():
                for event in parser.feed(data):
                    yield event

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's own, by phases
        body: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            # A redirect would carry the key and the question to somewhere else.
            async with self._http.request(
                method,
                self.url + path,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                try:
                    if response.status != 200:
                        raise _refused(response.status, await read_body(response.content, MAX_BODY))
                    yield response
                finally:
                    # Never back into the pool: what is not read yet would be computed for nobody.
                    response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable("The engine can't be reached, or hung up.") from error


class UpstreamEngine:
    """One model of an upstream. Its answers can't be taken up again in the middle."""

    def __init__(self, upstream: Upstream, model: str, context: int) -> None:
        self.upstream = upstream
        self._model = model
        self._context = context
        self._weights_id = sha256(f"{upstream.url} {model}".encode()).hexdigest()
        self._running_usage = True

    @property
    def model_id(self) -> str:
        return self._model

    @property
    def weights_id(self) -> str:
        return self._weights_id

    @property
    def context_length(self) -> int:
        return self._context

    @property
    def goes_on(self) -> bool:
        return False

    def read(self, request: AnyRequest, body: bytes) -> Prompt:
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
            most = most_prompt_tokens(document)
            msgspec.json.encode(document)
        except (ValueError, RecursionError, OverflowError) as error:
            # What is sent on is more than was looked at: it may be nested without an end, or have
            # numbers that nobody can write.
            raise ApiError("invalid-request", f"The request can't be sent on: {error}.") from None
        for name in ("logprobs", "top_logprobs"):
            if isinstance(document.get(name), int) and document[name] > MAX_LOGPROBS:
                raise ApiError(
                    "invalid-request", f"{name} must be at most {MAX_LOGPROBS} here.", param=name
                )
        return Prompt(b"", min(most, self._context))

    async def prompt_tokens(self, request: GenerateRequest, most: int) -> int:
        """By the usage of an answer of one token: what the engine read for it, it has at hand for
        the answer itself."""
        answer = UpstreamAnswer(1)
        async with aclosing(self._events(request, 1)) as events:
            async for event in events:
                answer.take(event)
                if answer.usage is not None or answer.is_done:
                    break
        if answer.usage is None:
            raise RemoteProtocolError(
                "upstream-no-usage", "The engine does not say how many tokens a question has."
            )
        return max(0, min(answer.usage.prompt_tokens, most))

    async def generate(
        self, request: GenerateRequest, already: Sequence[int] = ()
    ) -> AsyncGenerator[Token, None]:
        if already:
            raise ValueError("an answer can't be taken up again in the middle")
        answer = UpstreamAnswer(request.max_tokens)
        async with aclosing(self._events(request, request.max_tokens)) as events:
            async for event in events:
                token = answer.take(event)
                if token is not None:
                    yield token
                if answer.is_done:
                    break
        yield answer.end()

    async def embed(self, request: GenerateRequest) -> Embeddings:
        given = msgspec.json.decode(request.body, type=dict[str, Any])
        document = {name: value for name, value in given.items() if name in EMBEDDING_FIELDS}
        body = await self.upstream.post("/embeddings", document | {"model": self._model})
        count = len(given["input"]) if isinstance(given["input"], list) else 1
        return Embeddings(*upstream_answer.embeddings(body, self._model, count))

    def replay(self, request: GenerateRequest, already: Sequence[int]) -> tuple[Token, ...]:
        raise ValueError("the engine does not tell the ids of its tokens")

    def close(self) -> None:
        """The server is its owner's."""

    async def _events(
        self, request: GenerateRequest, max_tokens: int
    ) -> AsyncGenerator[ServerEvent, None]:
        given = msgspec.json.decode(request.body, type=dict[str, Any])
        limit = "max_tokens"
        if given.get("max_completion_tokens") is not None:
            limit = "max_completion_tokens"
        document = {name: value for name, value in given.items() if name in SENT_ON}
        document |= {"model": self._model, "stream": True, limit: max_tokens}
        path = PATHS[request.kind]
        while True:
            options = {"include_usage": True}
            if self._running_usage:
                options["continuous_usage_stats"] = True  # vLLM and SGLang: with each chunk
            try:
                sent = self.upstream.events(path, document | {"stream_options": options})
                async with aclosing(sent) as events:
                    async for event in events:
                        yield event
                return
            except ApiError as error:
                if not self._running_usage or "continuous_usage_stats" not in str(error):
                    raise
                self._running_usage = False  # it wants to know every field


def most_prompt_tokens(document: Mapping[str, Any]) -> int:
    """The most tokens that a request's prompt can have, and that are ever charged for it: no token
    has less than a byte. Users compute it too (client)."""
    if (texts := document.get("input")) is not None:
        listed = texts if isinstance(texts, list) else [texts]
        return sum(MESSAGE_TOKENS + _bytes(text) for text in listed)
    if "messages" not in document:
        return MESSAGE_TOKENS + _bytes(document.get("prompt"))
    most = MESSAGE_TOKENS
    for message in document["messages"]:
        rest = {name: value for name, value in message.items() if name not in ("role", "content")}
        most += MESSAGE_TOKENS + _text_bytes(message.get("content")) + (_bytes(rest) if rest else 0)
    return most + sum(_bytes(document.get(name)) for name in ("tools", "functions"))


def _text_bytes(content: Any) -> int:
    if isinstance(content, list):
        return sum(_bytes(part.get("text")) for part in content)
    return _bytes(content)


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    return 0 if value is None else len(msgspec.json.encode(value))


def _refused(status: int, body: bytes) -> ApiError:
    if status in (400, 404, 413, 422):
        said = upstream_answer.error_message(body)
        return ApiError("engine-refused", f"The engine refuses the request: {said}")
    if status == 429:
        return _unavailable("The engine has too much to do; try again in a moment.")
    # What it says about keys (401, 403) or about itself is for whoever runs it.
    return _unavailable(f"The engine answers with HTTP {status}.")


def _unavailable(sentence: str) -> ApiError:
    return ApiError("engine-unavailable", sentence, status=503, type_="server_error")
