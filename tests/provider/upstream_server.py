"""An OpenAI-compatible server that says what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from provider.places import Places
from provider.upstream import Upstream

PROMPT_TOKENS = 7

Script = Callable[["FakeUpstream", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def chunk(finish: str | None = None, usage: dict[str, int] | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice], "usage": usage})


def text_chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return event({"object": "text_completion", "choices": [choice]})


def usage(completion_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_chunk(completion_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> bytes:
    return event({"choices": [], "usage": usage(completion_tokens, prompt_tokens)})


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
OPENING = chunk(role="assistant", content="")


def letters(count: int) -> list[bytes]:
    """A chunk each."""
    return [chunk(content=chr(ord("a") + i % 26)) for i in range(count)]


class FakeUpstream:
    """script: what it sends for an answer of more than one token; shorter ones are how a provider
    asks what a question has."""

    def __init__(self) -> None:
        self.names = ["letters"]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.prompt_tokens = PROMPT_TOKENS
        self.listed = 0
        self.peers: list[object] = []
        self.running = 0
        self.most_running = 0
        self.aborted = asyncio.Event()
        self.go_on = asyncio.Event()
        """What `pause` waits for."""
        self.script: Sequence[bytes | str] | None = None
        self.respond: Script | None = None
        """Instead of everything else."""

    @property
    def answered(self) -> list[dict[str, Any]]:
        """Requests but those that only counted."""
        return [each for each in self.asked if _limit(each) > 1]

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 22)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/embeddings", self._embed)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        self.listed += 1
        self.headers.append(dict(request.headers))
        data = [{"id": name, "object": "model", "max_model_len": 4096} for name in self.names]
        return web.json_response({"object": "list", "data": data})

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        self.asked.append(document)
        if self.respond is not None:
            return await self.respond(self, request, document)
        texts = document["input"]
        count = len(texts) if isinstance(texts, list) else 1
        data = [{"object": "embedding", "index": i, "embedding": [0.5, i]} for i in range(count)]
        used = {"prompt_tokens": 3 * count, "total_tokens": 3 * count}
        return web.json_response({"object": "list", "data": data, "usage": used, "model": "x"})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        self.asked.append(document)
        self.headers.append(dict(request.headers))
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.respond is not None:
                return await self.respond(self, request, document)
            return await self._stream(request, document)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted.set()
            raise
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in self._parts(request, document):
            if part == "end":
                break
            if part == "hang up":
                assert request.transport is not None
                request.transport.close()
                return response
            if part == "pause":
                await self.go_on.wait()
            else:
                assert isinstance(part, bytes)
                await response.write(part)
        return response

    def _parts(self, request: web.Request, document: dict[str, Any]) -> Sequence[bytes | str]:
        limit = _limit(document)
        if limit == 1:
            counted = usage_chunk(1, self.prompt_tokens)
            return [OPENING, chunk(content="a"), chunk("length"), counted, DONE]
        if self.script is not None:
            return self.script
        if request.path.endswith("/chat/completions"):
            return [OPENING, *letters(limit), chunk("length"), usage_chunk(limit), DONE]
        return [*[text_chunk("x")] * limit, text_chunk("", "length"), usage_chunk(limit), DONE]


def _limit(document: dict[str, Any]) -> int:
    return int(document.get("max_completion_tokens") or document["max_tokens"])


@asynccontextmanager
async def serving(fake: FakeUpstream) -> AsyncIterator[str]:
    """Its URL. A client that hangs up cancels its handler."""
    async with TestServer(fake.app(), handler_cancellation=True) as server:
        yield str(server.make_url("/v1"))
        fake.go_on.set()


@asynccontextmanager
async def upstream_of(fake: FakeUpstream, places: Places | None = None) -> AsyncIterator[Upstream]:
    async with serving(fake) as url, aiohttp.ClientSession() as http:
        yield Upstream(url, http, places or Places(8))
