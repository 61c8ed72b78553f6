"""The provider's HTTP server: OpenAI's API with a price on it.

The order of things is DESIGN's: what is wrong with a request is said before it is paid for, and
after a payment there is a 200 or a final error, never another request for money.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, Protocol

import msgspec
from aiohttp import hdrs, web

from channels.errors import OdaError
from channels.http import l402, scheme
from channels.http.scheme import Credential, Problem
from channels.lightning import LightningError, LightningUnreachable
from channels.listening import listen
from channels.units import Sat, sat_ceil
from provider import api, cashier, liquidity
from provider.answers import Answers, TopupTimeout, last_event
from provider.api import ApiError
from provider.cashier import Cashier, headers
from provider.dashboard import Watch
from provider.gate import Gate, Ticket
from provider.ledger import AnswerStatus, Ledger
from provider.liquidity import Channels
from provider.metrics import CONTENT_TYPE, Metrics
from provider.pages.site import DashboardSite
from provider.serving import Models
from provider.sessions import Kind, Phase
from provider.settings import Keys, ProviderSettings
from provider.share_desk import ShareDesk
from provider.sharing import Sharing
from provider.upstreams import Upstreams
from provider.work import Work, read_work

log = logging.getLogger(__name__)

SHUTDOWN: Final = 5.0
"""Seconds that running answers get to end; what is cut off can be taken up again."""
ADDRESSES: Final = 10_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Node(cashier.Node, liquidity.Node, Protocol):
    """What is used of channels.lightning.Lightning."""


class Provider:
    """models: what is served; the caller closes them. sharing: how others get these models; None
    where they are not shared. desk: passes on shares; None for a provider on no sidechain.
    upstreams: other servers whose models are among them.

    about: the `oda` member of /v1/models: `node_id`, `address` (host:port for peers), `network`.
    """

    def __init__(
        self,
        ledger: Ledger,
        node: Node,
        keys: Keys,
        settings: ProviderSettings,
        network: str,
        models: Models,
        about: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        sharing: Sharing | None = None,
        desk: ShareDesk | None = None,
        upstreams: Upstreams | None = None,
    ) -> None:
        self.settings = settings
        self.models = models
        self.metrics = Metrics(ledger, desk)
        self.desk = desk
        self.cashier = Cashier(ledger, node, keys, settings, network, clock, desk)
        book = None if desk is None else desk.book
        self.answers = Answers(self.cashier, settings, self.metrics, models, book)
        self.gate = Gate(self.cashier, keys)
        self._about = dict(about or {}) | {"network": network}
        self._rate = RateLimit(settings.offers_per_minute)
        self._sharing = sharing
        self._channels = Channels(node)
        self.watch = Watch(
            ledger,
            models,
            self.metrics,
            self._channels,
            settings.capacity,
            self._about,
            self._known,
            desk,
            clock,
            tuple if upstreams is None else upstreams.states,
        )

    def app(self) -> web.Application:
        app = web.Application(client_max_size=api.MAX_BODY, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        if self._sharing is not None:
            app.add_routes(self._sharing.routes())
        if self.desk is not None:
            app.add_routes(self.desk.routes())
        for path, kind in (("/v1/chat/completions", "chat"), ("/v1/completions", "text")):
            for method in (hdrs.METH_POST, hdrs.METH_GET):
                app.router.add_route(method, path, self._completions(kind))
        app.router.add_post("/v1/embeddings", self._completions("embeddings"))
        app.add_routes(DashboardSite(self.watch, self.settings.public_dashboard).routes())
        app.cleanup_ctx.append(self._running)
        return app

    async def _running(self, app: web.Application) -> AsyncGenerator[None, None]:
        await self.cashier.start()
        async with AsyncExitStack() as stack:
            if self.desk is not None:
                await stack.enter_async_context(self.desk.running())
            yield
        await self._channels.close()
        await self.cashier.stop()
        self.cashier.ledger.commit()

    # Free answers --------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        """For whoever decides whether to send requests here: 503 where nothing can be sold."""
        health = await self.watch.health()
        status = 503 if health.status == "unavailable" else 200
        body = msgspec.json.encode(health)
        return web.Response(body=body, status=status, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _list(self, request: web.Request) -> web.Response:
        listed = api.models([await self._entry(request, name) for name in self.models.current])
        document = msgspec.json.decode(listed, type=dict[str, object])
        return _json(msgspec.json.encode(document | {"oda": self._about}))

    async def _model(self, request: web.Request) -> web.Response:
        """By its name, or by its infohash."""
        wanted = request.match_info["model"]
        for name, served in self.models.current.items():
            if wanted in (name, served.infohash and served.infohash.hex()):
                return _json(msgspec.json.encode(await self._entry(request, name)))
        raise api.unknown_model(wanted)

    async def _entry(self, request: web.Request, name: str) -> api.Model:
        entry, infohash = self._known(name), self.models.current[name].infohash
        if infohash is None or self._sharing is None:
            return entry
        magnet = await self._sharing.magnet(infohash, request.url.origin())
        return msgspec.structs.replace(entry, magnet=str(magnet))

    def _known(self, name: str) -> api.Model:
        """An entry without its magnet link, which says where it was asked for."""
        served = self.models.current[name]
        entry = api.Model.of(name, served.price, served.engine.context_length, served.created)
        if self.desk is not None:
            entry = msgspec.structs.replace(entry, sidechain=self.desk.standing(served))
        if served.infohash is not None and self._sharing is not None:
            entry = msgspec.structs.replace(entry, infohash=served.infohash.hex())
        return entry

    # Paid answers --------------------------------------------------------------------------------

    def _completions(self, kind: str) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            authorization = _authorization(request)
            body = await request.read()
            try:
                if scheme.is_payment(authorization):
                    credential = Credential.parse(authorization)
                    ticket = await self._admit(kind, credential, body)
                elif l402.is_l402(authorization):
                    token = l402.Token.parse(authorization)
                    ticket = await self.gate.l402(token, self._work(kind, body), body)
                else:
                    raise scheme.payment_required()
                return await self._give(request, ticket)
            except Problem as problem:
                if problem.status != 402:
                    raise
                return await self._refuse(request, kind, body, problem)

        return handle

    async def _admit(self, kind: str, credential: Credential, body: bytes) -> Ticket:
        if credential.challenge.intent == "charge":
            return await self.gate.charge(credential, self._work(kind, body), body)
        if kind == "embeddings":
            raise ApiError("no-session", "Embeddings are paid one by one; pay the charge or L402.")
        # topUp and close come with whatever body the paused request had, or with none.
        action = credential.payload.get("action")
        has_work = action == "bearer" or (action == "open" and body)
        work = self._work(kind, body) if has_work and body else None
        return await self.gate.session(credential, work, body)

    def _work(self, kind: str, body: bytes) -> Work:
        return read_work(kind, body, self.models, self.settings)

    async def _refuse(
        self, request: web.Request, kind: str, body: bytes, problem: Problem
    ) -> web.Response:
        """402 with fresh offers. What is wrong with the request is said first."""
        price: Sat | None = None
        if request.method == hdrs.METH_POST and body:
            work = self._work(kind, body)
            if problem.reason == "payment-required" and self.answers.is_full(work.served):
                raise _at_capacity()
            served, price = work.served, max(Sat(1), sat_ceil(work.most(work.served.terms)))
        elif request.method == hdrs.METH_POST:
            raise ApiError("invalid-json", "The request has no body.")
        else:
            current = self.models.current
            name = request.query.get("model") or next(iter(current), "")
            if name not in current:
                raise api.unknown_model(name)
            served = current[name]
        self._rate.take(request.remote or "")
        digest = scheme.body_digest(body) if price is not None else None
        single = kind == "embeddings"
        line, challenges = await self.cashier.offers(served.terms, price, digest, single=single)
        self.metrics.offers.inc()
        response = _problem(problem, challengeId=challenges[-1].id)
        response.headers["Cache-Control"] = "no-store"
        for name, value in headers(line, challenges):
            response.headers.add(name, value)
        return response

    async def _give(self, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        answer = ticket.answer
        sent = {"Payment-Receipt": ticket.receipt.to_header(), "Cache-Control": "private"}
        if ticket.session.kind is Kind.SESSION and ticket.session.phase is Phase.OPEN:
            challenge = await self.cashier.next_challenge(ticket.session.id)
            if challenge is not None:
                sent["WWW-Authenticate"] = challenge.to_header()
        if answer is None:
            return _json(msgspec.json.encode(ticket.document), sent)
        work = self._work(answer.api, answer.body)
        has_queue = work.served.places is not None and answer.status is AnswerStatus.RUNNING
        if has_queue and self.answers.is_full(work.served):
            raise _at_capacity()
        if not work.request.stream:
            return _json(await self.answers.whole(answer.id, work), sent)
        response = web.StreamResponse(
            headers=sent | {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        after = last_event(answer.id, request.headers.get("Last-Event-ID"))
        try:
            await self.answers.stream(answer.id, work, response.write, after)
        except TopupTimeout:
            log.info("A stream ended because nobody topped it up.")
        except ConnectionResetError:
            raise
        except Exception as error:  # noqa: BLE001  # every stream gets an end; _failure logs it
            # The status line is sent: what went wrong is the last chunk, and there is no [DONE].
            await response.write(api.event(_failure(error).body()))
        await response.write_eof()
        return response

    # Errors --------------------------------------------------------------------------------------

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except ConnectionResetError:
            # The client is gone; there is nobody to tell.
            raise
        except Exception as error:  # noqa: BLE001  # every request gets an answer; _error logs it
            response = _error(error)
            if _is_paid(request):
                # Measured: some clients pay again when a paid request is answered with an error
                # that they take for a passing one.
                response.headers["x-should-retry"] = "false"
        self.metrics.requests.labels(str(response.status)).inc()
        return response


class RateLimit:
    """Unpaid requests cost us an invoice each: so many a minute per address, and 20 times that in
    all. A token bucket; the addresses that were quiet longest are forgotten."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Raises ApiError(429)."""
        now = time.monotonic()
        # The address first: one that is refused must not use up what there is for all.
        if not (
            self._take(f"@{address}", self._per_minute, now)
            and self._take("", self._per_minute * 20, now)
        ):
            raise ApiError(
                "too-many-offers",
                "Too many unpaid requests; pay one of the offers or wait a minute.",
                status=429,
                type_="rate_limit_error",
            )
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)

    def _take(self, name: str, size: int, now: float) -> bool:
        left, then = self._buckets.pop(name, (float(size), now))
        left = min(float(size), left + (now - then) * size / 60)
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        return left >= 1


def _at_capacity() -> ApiError:
    return ApiError(
        "at-capacity",
        "All places are taken; try again in a moment.",
        status=503,
        type_="server_error",
    )


def _authorization(request: web.Request) -> str:
    """The one header that pays, empty where none does. Raises ApiError for several."""
    found = request.headers.getall(hdrs.AUTHORIZATION, [])
    paying = [text for text in found if scheme.is_payment(text) or l402.is_l402(text)]
    if len(paying) > 1:
        # draft-httpauth-payment-00, section "Multiple Payment Options"
        raise ApiError("several-credentials", "Send one Authorization header.")
    return paying[0] if paying else ""


def _is_paid(request: web.Request) -> bool:
    return any(
        scheme.is_payment(text) or l402.is_l402(text)
        for text in request.headers.getall(hdrs.AUTHORIZATION, [])
    )


def _json(body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=headers)


def _error(error: Exception) -> web.Response:
    if isinstance(error, Problem):
        return _problem(error)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        error = ApiError(
            "body-too-large", f"The request must be at most {api.MAX_BODY} bytes.", status=413
        )
    elif isinstance(error, web.HTTPException):
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        known = ApiError("no-such-path", f"{error.reason}.", status=error.status)
        return web.Response(
            body=known.body(),
            status=error.status,
            content_type="application/json",
            headers=allowed,
        )
    if isinstance(error, ApiError):
        response = web.Response(
            body=error.body(), status=error.status, content_type="application/json"
        )
        if error.status in (429, 503):
            response.headers["Retry-After"] = "5"
        return response
    failed = _failure(error)
    return web.Response(body=failed.body(), status=failed.status, content_type="application/json")


def _failure(error: Exception) -> ApiError:
    """What is said of an error where there is no status line to say it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OdaError):
        log.warning("Answered with an error: %s", error)
        status = 503 if isinstance(error, LightningUnreachable | LightningError) else 500
        return ApiError(error.reason, str(error), status=status, type_="server_error")
    log.error("Answered with an error.", exc_info=error)
    sentence = "Something went wrong here; nothing is charged for what was not delivered."
    return ApiError("internal-error", sentence, status=500, type_="server_error")


def _problem(problem: Problem, **members: object) -> web.Response:
    """Problem details, and the `error` member that OpenAI clients show to people."""
    error = ApiError(problem.reason, str(problem), status=problem.status, type_="payment_required")
    document = problem.document(**members) | {"error": error.member()}
    return web.Response(
        body=msgspec.json.encode(document),
        status=problem.status,
        content_type="application/problem+json",
    )


# Serving -----------------------------------------------------------------------------------------


async def serve(provider: Provider, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or a cancellation; `started` is told the URL.

    Answers that are cut off then can be taken up again. Raises OdaError("port-in-use").
    """
    settings = provider.settings
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(
        provider.app(),
        # A client that hangs up stops its answer, and with it what it would have to pay.
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN,
        access_log=None,
    )
    await runner.setup()
    context = None
    if settings.tls_cert is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    try:
        started(await listen(runner, settings.host, settings.port, context) + "/v1")
        await stop.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        await runner.cleanup()
