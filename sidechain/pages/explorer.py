"""The explorer: the node's API as pages for people, at / of the node's port.

A page is what the API's handlers answer, laid out; there is no other way to the chain from here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from aiohttp import hdrs, web

from channels.errors import UserError
from sidechain import api
from sidechain.handlers import Call, Handlers
from sidechain.light_handlers import LightHandlers
from sidechain.openapi import ENDPOINTS
from sidechain.pages import assets, chain, models, people
from sidechain.pages.markup import Page, Site

T = TypeVar("T")
Show = Callable[[web.Request], Awaitable[Page]]

BY_OPERATION: Final = {each.operation: each for each in ENDPOINTS}
ON_A_PAGE: Final = 50
LATEST: Final = 12
REFUSED: Final = 5
LOOK: Final = 15
"""Seconds between looks at what no event tells of: peers, and how fast we mine."""

HASH: Final = "[0-9a-f]{64}"
FULL_NAV: Final = (
    ("/", "Overview"),
    ("/blocks", "Blocks"),
    ("/models", "Models"),
    ("/payees", "Payees"),
    ("/providers", "Providers"),
    ("/mempool", "Mempool"),
    ("/rejections", "Rejections"),
    ("/peers", "Peers"),
)
LIGHT: Final = ("/", "/blocks", "/providers", "/peers")
FOOT: Final = (("/openapi.json", "API"), ("/metrics", "Metrics"), ("/health", "Health"))


class Explorer:
    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._light = isinstance(handlers, LightHandlers)
        self._nav = tuple(each for each in FULL_NAV if not self._light or each[0] in LIGHT)

    def routes(self) -> list[web.RouteDef]:
        shown: dict[str, Show] = {
            "/": self._overview,
            "/blocks": self._blocks,
            "/blocks/{block:[0-9a-f]{1,64}}": self._block,
            f"/models/{{model:{HASH}}}": self._model,
            f"/keys/{{key:{HASH}}}": self._key,
            "/providers": self._providers,
            "/peers": self._peers,
        }
        if not self._light:
            shown |= {
                f"/transactions/{{txid:{HASH}}}": self._transaction,
                "/models": self._models,
                "/payees": self._payees,
                "/mempool": self._mempool,
                "/rejections": self._rejections,
            }
        pages = [web.get(path, partial(self._answer, show)) for path, show in shown.items()]
        return [*pages, web.get("/search", self._search), *assets.routes()]

    async def _answer(self, show: Show, request: web.Request) -> web.Response:
        try:
            return await self._page(await show(request))
        except UserError as error:
            title = "Not found" if error.reason == "not-found" else "Not to be had"
            status = {"not-found": 404, "bad-request": 400}.get(error.reason, 503)
            return await self._page(people.trouble(title, str(error)), status)

    async def _page(self, page: Page, status: int = 200) -> web.Response:
        node = await self._status()
        site = Site("ODA", node.network, self._nav, FOOT, LOOK, events="/events", search=True)
        return assets.response(site, page, node.time, status)

    async def _status(self) -> api.Status:
        return await self._ask("status", api.Status)

    async def _ask(
        self,
        operation: str,
        kind: type[T],
        path: Mapping[str, str] | None = None,
        **query: object,
    ) -> T:
        asked = {name: str(value) for name, value in query.items() if value is not None}
        call = Call(BY_OPERATION[operation], path or {}, asked, b"")
        answer = await getattr(self._handlers, operation)(call)
        assert isinstance(answer, kind)  # as the endpoint says
        return answer

    async def _found(self, operation: str, kind: type[T], path: Mapping[str, str]) -> T | None:
        try:
            return await self._ask(operation, kind, path)
        except UserError as error:
            if error.reason != "not-found":
                raise
            return None

    # --- pages -----------------------------------------------------------------------------------

    async def _overview(self, request: web.Request) -> Page:
        status = await self._status()
        blocks = await self._ask("blocks", api.Blocks, limit=LATEST)
        if self._light:
            return chain.overview(status, blocks, None, ())
        found = await self._ask("models", api.Models, limit=LATEST)
        refused = await self._ask("rejections", api.Refusals)
        table = models.model_table(found.models)
        return chain.overview(status, blocks, table, refused.rejections[:REFUSED])

    async def _blocks(self, request: web.Request) -> Page:
        at = request.query.get("at")
        found = await self._ask("blocks", api.Blocks, limit=ON_A_PAGE, at=at)
        return chain.blocks(found, at is None)

    async def _block(self, request: web.Request) -> Page:
        return chain.block(await self._ask("block", api.Block, request.match_info))

    async def _transaction(self, request: web.Request) -> Page:
        found = await self._ask("transaction", api.FoundTransaction, request.match_info)
        return chain.transaction(found)

    async def _mempool(self, request: web.Request) -> Page:
        found = await self._ask("mempool", api.Mempool, limit=api.MOST)
        return chain.mempool(found, await self._ask("pending", api.Pending))

    async def _rejections(self, request: web.Request) -> Page:
        return chain.rejections(await self._ask("rejections", api.Refusals))

    async def _models(self, request: web.Request) -> Page:
        offset = _offset(request)
        found = await self._ask("models", api.Models, limit=ON_A_PAGE, offset=offset)
        return models.models(found, offset, ON_A_PAGE)

    async def _model(self, request: web.Request) -> Page:
        if self._light:
            return models.proven_model(
                await self._ask("model", api.ProvenModel, request.match_info)
            )
        found = await self._ask("model", api.Model, request.match_info)
        current = found.provisional or found.confirmed
        status = await self._status()
        owed = await self._ask(
            "beneficiaries",
            api.Beneficiaries,
            model=found.model,
            weights_root=current.weights_root,
        )
        announced = await self._ask(
            "announcements", api.Announcements, model=found.model, limit=ON_A_PAGE
        )
        return models.model(found, status, owed, announced.announcements)

    async def _payees(self, request: web.Request) -> Page:
        offset = _offset(request)
        found = await self._ask("payees", api.Payees, limit=ON_A_PAGE, offset=offset)
        return people.payees(found, offset, ON_A_PAGE)

    async def _key(self, request: web.Request) -> Page:
        name = request.match_info["key"]
        payee = await self._found("payee", api.Payee, request.match_info)
        announced = await self._ask("announcements", api.Announcements, limit=api.MOST)
        of_key = [each for each in announced.announcements if each.key == name]
        made: list[api.ModelSummary] = []
        if not self._light:
            known = await self._ask("models", api.Models, limit=api.MOST)
            made = [each for each in known.models if each.current.trainer == name]
        return people.key(name, payee, made, of_key, (await self._status()).time)

    async def _peers(self, request: web.Request) -> Page:
        return people.peers(await self._ask("peers", api.Peers))

    async def _providers(self, request: web.Request) -> Page:
        found = await self._ask("announcements", api.Announcements, limit=api.MOST)
        return people.providers(found, (await self._status()).time)

    async def _search(self, request: web.Request) -> web.Response:
        """To the page about a height, a block, a transaction, a model or a key."""
        wanted = request.query.get("q", "").strip().lower().replace(",", "")
        if re.fullmatch("[0-9]{1,9}", wanted):
            return _to(f"/blocks/{int(wanted)}")
        if re.fullmatch(HASH, wanted):
            for operation, kind, name, path in (
                ("model", api.ProvenModel if self._light else api.Model, "model", "models"),
                ("block", api.Block, "block", "blocks"),
                ("payee", api.Payee, "key", "keys"),
                ("transaction", api.FoundTransaction, "txid", "transactions"),
            ):
                if self._light and not BY_OPERATION[operation].light:
                    continue
                if await self._found(operation, kind, {name: wanted}) is not None:
                    return _to(f"/{path}/{wanted}")
        sentence = "Nothing here has this height, hash or key."
        return await self._page(people.trouble("Not found", sentence), 404)


def _to(path: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: path})


def _offset(request: web.Request) -> int:
    """Raises UserError."""
    text = request.query.get("offset", "0")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError("bad-request", "An offset is a number.")
    return int(text)
