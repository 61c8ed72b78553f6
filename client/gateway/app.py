"""`oda gateway`: OpenAI's API for the programs of this machine; what they ask for is paid here.

A program sees no money: no challenge, no named event, no 402. Whatever fails before the first word
of an answer is tried with the next provider, and becomes an HTTP error only when none is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from aiohttp import web

from channels.errors import OdaError, UserError
from client.answer import Chunk, Cost, Done, Event
from client.discovery import Seller
from client.failover import OpenChannel, Switched, ask_any
from client.gateway import sellers as known
from client.gateway.errors import api_error, may_retry
from client.gateway.figures import Figures, Record
from client.gateway.guard import JSON, Guard
from client.gateway.pool import Pool
from client.gateway.relay import Streamed, Whole
from client.gateway.sellers import Sellers
from client.question import CHAT, TEXT
from client.sdk import Client
from provider.api import MAX_BODY, ApiError

log = logging.getLogger(__name__)

HUNG_UP: Final = 499
"""What nginx writes down for a client that did not wait."""

Answering = AsyncGenerator[Event | Switched, None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """is_ready: whether the Lightning node answers. open_channel: as for failover.ask_any."""

    def __init__(
        self,
        sellers: Sellers,
        pool: Pool,
        guard: Guard,
        figures: Figures,
        capacity: int,
        is_ready: Callable[[], Awaitable[bool]],
        open_channel: OpenChannel | None = None,
    ) -> None:
        self.figures = figures
        self.pool = pool
        self._sellers = sellers
        self._guard = guard
        self._places = asyncio.Semaphore(capacity)
        self._is_ready = is_ready
        self._open_channel = open_channel

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        for path in (CHAT, TEXT):
            app.router.add_post(path, self._completions)
        app.cleanup_ctx.append(self._running)
        return app

    async def _running(self, app: web.Application) -> AsyncGenerator[None, None]:
        async with self.pool.running():
            yield
        await self._sellers.close()

    # Free answers --------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        """503 where nothing can be bought."""
        found = await self._sellers.all()
        problems = {
            "no Lightning node": not await self._is_ready(),
            "no provider": not found.sellers,
        }
        trouble = [name for name, is_one in problems.items() if is_one]
        document = {
            "status": "unavailable" if trouble else "ok",
            "trouble": trouble,
            "providers": len({seller.url for seller in found.sellers}),
            "sessions": self.pool.sessions,
            "running": self.figures.running,
        }
        return web.json_response(document, status=503 if trouble else 200)

    async def _models(self, request: web.Request) -> web.Response:
        body = known.catalogue(await self._sellers.all())
        return web.Response(body=body, content_type=JSON)

    async def _model(self, request: web.Request) -> web.Response:
        body = known.entry(await self._sellers.all(), request.match_info["model"])
        return web.Response(body=body, content_type=JSON)

    # Paid answers --------------------------------------------------------------------------------

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        with self.figures.request(request.path) as record:
            try:
                asked = _read(await request.read())
                record.model, record.stream = asked["model"], asked.get("stream") is True
                sellers = await self._sellers.of(asked["model"])
                async with self._places:
                    answer = self._ask(request.path, asked, sellers, record)
                    async with aclosing(answer) as events:
                        if record.stream:
                            return await self._stream(request, asked, events, record)
                        return await self._whole(request.path, events, record)
            except OdaError as error:
                record.status, record.reason = api_error(error).status, error.reason
                raise _Failed(error, was_paid=record.spent_msat > 0) from error
            except (asyncio.CancelledError, ConnectionResetError):
                record.status, record.reason = HUNG_UP, "hung-up"
                raise

    async def _ask(
        self, path: str, asked: dict[str, Any], sellers: Sequence[Seller], record: Record
    ) -> Answering:
        """The events of the first seller that answers; their cost is counted here."""

        def ask(client: Client, seller: Seller) -> AsyncGenerator[Event, None]:
            record.provider = seller.url
            return client.ask(asked | {"model": seller.model.id}, path)

        answer = ask_any(sellers, self.pool.connect, ask, self._open_channel)
        cost: Cost | None = None
        try:
            async with aclosing(answer) as events:
                async for event in events:
                    if isinstance(event, Switched):
                        record.switched.append(event.reason)
                        cost = None
                    if isinstance(event, Cost | Done):
                        now = event if isinstance(event, Cost) else event.cost
                        self.figures.cost(record, cost, now)
                        cost = now
                    yield event
        finally:
            if record.switched:
                self._sellers.expire()

    async def _whole(self, path: str, events: Answering, record: Record) -> web.Response:
        whole = Whole(path)
        async for event in events:
            match event:
                case Chunk(data):
                    whole.take(data)
                case Switched():
                    whole.restart()
        return web.Response(body=whole.document(), content_type=JSON)

    async def _stream(
        self, request: web.Request, asked: dict[str, Any], events: Answering, record: Record
    ) -> web.StreamResponse:
        options = asked.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        streamed = Streamed(include_usage=wants_usage)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        try:
            async for event in events:
                match event:
                    case Chunk(data, is_silent):
                        if sent := streamed.take(data, is_silent=is_silent):
                            await _prepared(response, request)
                            await response.write(sent)
                    case Switched(reason=reason) if streamed.has_begun:
                        raise _cut_off(reason)
                    case Switched():
                        streamed.restart()
            last = streamed.end()
        except OdaError as error:
            if not response.prepared:
                raise
            # The status line is sent: what went wrong is the last event, and there is no [DONE].
            record.reason = error.reason
            last = streamed.failed(api_error(error).member())
        await _prepared(response, request)
        # In one piece with the end: clients hang up as soon as they have read [DONE].
        await response.write_eof(last)
        return response

    # Errors --------------------------------------------------------------------------------------

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._guard.check(request)
            return await handler(request)
        except _Failed as failed:
            return _error(api_error(failed.error), failed.error, was_paid=failed.was_paid)
        except OdaError as error:
            return _error(api_error(error), error)
        except web.HTTPException as error:
            reason = "body-too-large" if error.status == 413 else "no-such-path"
            sentence = f"{error.reason}: {request.method} {request.path[:200]}"
            found = ApiError(reason, sentence, status=error.status)
            return _error(found, found)
        except ConnectionResetError:
            return web.Response(status=HUNG_UP)  # there is nobody to tell
        except Exception as error:  # every request gets an answer
            log.exception("A request failed.")
            sentence = f"The gateway failed ({type(error).__name__}); nothing more is paid."
            found = ApiError("internal-error", sentence, status=500, type_="server_error")
            return _error(found, found)


async def _prepared(response: web.StreamResponse, request: web.Request) -> None:
    if not response.prepared:
        await response.prepare(request)


class _Failed(Exception):
    """Carries an error out of a request that may have cost something."""

    def __init__(self, error: OdaError, *, was_paid: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.was_paid = was_paid


def _read(body: bytes) -> dict[str, Any]:
    """Raises ApiError. What else is wrong with it, the provider says."""
    try:
        asked = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid-json", f"The request is no JSON object: {error}.") from None
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError("invalid-request", "model must be given.", param="model")
    return asked


def _cut_off(reason: str) -> OdaError:
    """What was shown of an answer can't be taken back, so no other provider can begin anew."""
    return UserError(
        "answer-cut-off",
        f"The provider failed in the middle of the answer ({reason}). Nothing more is paid for it; "
        "ask again.",
    )


def _error(shown: ApiError, error: OdaError, *, was_paid: bool = False) -> web.Response:
    response = web.Response(body=shown.body(), status=shown.status, content_type=JSON)
    response.headers["X-Oda-Reason"] = error.reason
    if not may_retry(error, was_paid=was_paid):
        # OpenAI's clients otherwise ask three times.
        response.headers["X-Should-Retry"] = "false"
    return response
