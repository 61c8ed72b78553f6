"""The node's one HTTP server: peers, the API, its description, metrics, events and the explorer."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from channels.errors import OdaError, UserError
from sidechain import api, openapi
from sidechain.feed import Feed
from sidechain.handlers import Call, Handlers
from sidechain.light_handlers import LightHandlers
from sidechain.metrics import CONTENT_TYPE, Metrics
from sidechain.openapi import ENDPOINTS, PREFIX, Endpoint
from sidechain.pages.explorer import Explorer
from sidechain.reasons import Rejection

log = logging.getLogger(__name__)

STATUS: Final = {
    "not-found": 404,
    "bad-request": 400,
    "bad-peer": 400,
    "forbidden-host": 403,
    "body-too-large": 413,
    "not-json": 415,
    "txn-already-in-mempool": 409,
    "txn-mempool-conflict": 409,
    "no-proof": 503,
    "node-stopped": 503,
}
"""By reason; what broke a rule of the chain is 422, and anything else 500."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(
    handlers: Handlers, metrics: Metrics, feed: Feed, routes: Iterable[web.AbstractRouteDef]
) -> web.Application:
    """routes: those of peers, and whatever else is served on the same port."""
    light = isinstance(handlers, LightHandlers)
    described = msgspec.json.encode(openapi.document(metadata.version("oda"), light=light))

    async def description(request: web.Request) -> web.Response:
        return _json(described)

    async def scrape(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def health(request: web.Request) -> web.Response:
        status = await handlers.status(Call(ENDPOINTS[0], {}, {}, b""))
        return _json(msgspec.json.encode(api.Health("ok" if status.synced else "syncing")))

    app = web.Application(client_max_size=api.MAX_BODY, middlewares=[_errors(metrics)])
    app.router.add_get("/openapi.json", description)
    app.router.add_get("/metrics", scrape)
    app.router.add_get("/health", health)
    app.router.add_get("/events", feed.handle)
    for endpoint in ENDPOINTS:
        if endpoint.light or not light:
            handle = _handler(endpoint, getattr(handlers, endpoint.operation))
            app.router.add_route(endpoint.method, PREFIX + endpoint.path, handle)
    app.router.add_routes(routes)
    app.router.add_routes(Explorer(handlers).routes())
    return app


def _handler(endpoint: Endpoint, answer: Callable[[Call], Awaitable[Any]]) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        body = b""
        if endpoint.body is not None:
            _check_origin(request)
            body = await request.read()
        call = Call(endpoint, request.match_info, request.query, body)
        call.query(endpoint.query)  # what it does not know is an error everywhere
        return _json(msgspec.json.encode(await answer(call)))

    return handle


def _check_origin(request: web.Request) -> None:
    """No web page that somebody visits may speak for him: a page of another site can't send JSON
    without asking first, and one that rebinds its name to this machine still sends that name."""
    if request.content_type != "application/json":
        raise UserError("not-json", "Send JSON, with Content-Type: application/json.")
    host = request.url.host or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            raise UserError(
                "forbidden-host", f"Ask this node by its address, not as {host!r}."
            ) from None


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _errors(metrics: Metrics) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except ConnectionResetError:
            raise
        except Exception as error:  # noqa: BLE001  # every request gets an answer; bugs are logged
            response = _problem(error)
        metrics.requests.labels(str(response.status)).inc()
        return response

    return middleware


def _problem(error: Exception) -> web.Response:
    """RFC 9457."""
    allowed = {}
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        status, reason, sentence = 413, "body-too-large", f"Send at most {api.MAX_BODY} bytes."
    elif isinstance(error, web.HTTPException):
        status, reason, sentence = error.status, "no-such-path", f"{error.reason}."
        allowed = {hdrs.ALLOW: error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
    elif isinstance(error, OdaError):
        status = STATUS.get(error.reason, 422 if isinstance(error, Rejection) else 500)
        reason, sentence = error.reason, str(error)
    else:
        log.error("A request failed.", exc_info=error)
        status, reason, sentence = 500, "internal-error", "Something went wrong in this node."
    title = HTTPStatus(status).phrase
    body = msgspec.json.encode(api.Problem("about:blank", title, status, sentence, reason))
    return web.Response(
        body=body, status=status, headers=allowed, content_type="application/problem+json"
    )
