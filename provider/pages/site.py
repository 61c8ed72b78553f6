"""Where the dashboard is served, and to whom: to this machine alone, unless the settings say so.

What a provider earns and who is owed is nobody else's business, and a web page that somebody
visits must not read it either: one that rebinds its name to this machine still sends that name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import hdrs, web

from channels.loopback import is_local
from provider.api import ApiError
from provider.dashboard import Watch
from provider.figures import csv
from provider.pages import dashboard
from sidechain.pages import assets

PRIVATE: Final = {hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DashboardSite:
    def __init__(self, watch: Watch, public: bool) -> None:
        self._watch = watch
        self._public = public

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self._private(self._page)),
            web.get("/dashboard.json", self._private(self._json)),
            web.get("/earnings.csv", self._private(self._csv)),
            *assets.routes(),
        ]

    def _private(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if not self._public and not is_local(request.remote, request.url.host, request.headers):
                raise ApiError(
                    "dashboard-private",
                    "The dashboard is shown on the provider's own machine; "
                    "provider.public_dashboard shows it to everybody.",
                    status=403,
                )
            return await handler(request)

        return handle

    async def _page(self, request: web.Request) -> web.Response:
        found = await self._watch.look()
        return assets.response(dashboard.site(found), dashboard.page(found), found.time)

    async def _json(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(await self._watch.look())
        return web.Response(body=body, content_type="application/json", headers=PRIVATE)

    async def _csv(self, request: web.Request) -> web.Response:
        named = {hdrs.CONTENT_DISPOSITION: 'attachment; filename="earnings.csv"'}
        text = csv(self._watch.days())
        return web.Response(text=text, content_type="text/csv", headers=PRIVATE | named)
