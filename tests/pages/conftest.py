"""The system's Chromium, driven by Playwright; never a browser that Playwright brings."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # it is there for root too, and shows our own pages alone
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        says = "There is no chromium on PATH (Debian: apt-get install chromium)."
        if os.environ.get("CI") == "true" and shutil.which("apt-get"):
            pytest.fail(says)
        pytest.skip(says)
    return found


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as driver:
        made = await driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield made
        finally:
            await made.close()
