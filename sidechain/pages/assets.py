"""The files beside the pages: one style, one script, one icon; and pages as responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib import resources
from typing import Final

from aiohttp import hdrs, web

from sidechain.pages.markup import HEADERS, Page, Site, document

FILES: Final = {
    "style.css": "text/css",
    "live.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes() -> list[web.RouteDef]:
    """GET /pages/…"""
    return [web.get(f"/pages/{name}", _file(name, kind)) for name, kind in FILES.items()]


def read(name: str) -> bytes:
    """One of FILES."""
    return (resources.files(__package__) / name).read_bytes()


def _file(name: str, kind: str) -> Handler:
    body = read(name)
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, hdrs.CACHE_CONTROL: "no-cache", hdrs.ETAG: tag}

    async def handle(request: web.Request) -> web.Response:
        if request.headers.get(hdrs.IF_NONE_MATCH) == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers, content_type=kind, charset="utf-8")

    return handle


def response(site: Site, page: Page, now: int, status: int = 200) -> web.Response:
    headers = {**HEADERS, hdrs.CACHE_CONTROL: "no-store"}
    body = document(site, page, now)
    return web.Response(
        body=body, status=status, headers=headers, content_type="text/html", charset="utf-8"
    )
