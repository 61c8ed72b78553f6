"""Somebody who looks at pages, and what must be true of every one of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Page

DESK, PHONE = 1280, 390
SHOTS = os.environ.get("ODA_TEST_SHOTS")
"""Where screenshots are put, for people to look at; none are made without it."""


class Reader:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", lambda said: self._said(said.type, said.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda asked: self._asked(asked.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith(self.url):
            self.outside.append(url)

    async def open(self, path: str) -> None:
        response = await self.page.goto(self.url + path, wait_until="load")
        assert response is not None and response.status == 200, (path, response)

    async def check(self) -> None:
        """Nothing failed, nothing was asked of others, and nothing is wider than the window."""
        assert self.errors == [] and self.outside == []
        for width in (PHONE, DESK):
            await self.page.set_viewport_size({"width": width, "height": 900})
            wide = await self.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{self.page.url} is {wide} wide at {width}"

    async def shoot(self, name: str) -> None:
        """At both widths, light and dark."""
        if SHOTS is None:
            return
        for width in (DESK, PHONE):
            await self.page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                await self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                path = Path(SHOTS) / f"{name}-{width}-{scheme}.png"
                await self.page.screenshot(path=path, full_page=True)


@asynccontextmanager
async def reading(browser: Browser, url: str, *, script: bool = True) -> AsyncIterator[Reader]:
    context = await browser.new_context(java_script_enabled=script)
    try:
        yield Reader(await context.new_page(), url.rstrip("/"))
    finally:
        await context.close()
