"""The demo's report in a browser: a file that is whole by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from playwright.async_api import Browser, expect

from regtest.record import Record
from regtest.recorder import save
from tests.pages.reader import Reader, reading
from tests.regtest.runs import EMPTY, run
from tests.regtest.test_report import hostile

LIE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>" + "W" * 300


@pytest.fixture
async def reader(tmp_path: Path, browser: Browser) -> AsyncIterator[Reader]:
    async with reading(browser, tmp_path.as_uri()) as found:
        yield found


async def test_everything_about_a_run(tmp_path: Path, reader: Reader) -> None:
    save(run(), tmp_path)
    page = reader.page
    await reader.open("/report.html")
    await expect(page.locator("h1")).to_have_text("Every msat is accounted for")
    await expect(page.locator("#steps tbody tr")).to_have_count(7)
    await expect(page.locator("#sats .plot")).to_have_count(6)
    await expect(page.locator("#score .mark.withdrawn")).to_have_count(1)
    await expect(page.locator("#latency .mark.topup")).to_have_count(5)
    await expect(page.locator("#cheats tbody tr")).to_have_count(2)
    # The policy let the style in, and a line is drawn over the whole width.
    await expect(page.locator("#sats .table").first).to_have_css("overflow", "hidden")
    drawn = await page.locator("#sats .series").first.bounding_box()
    assert drawn is not None and drawn["width"] > 500
    for plot in await page.locator("svg.plot").all():
        assert await plot.get_attribute("aria-label")
    await reader.check()
    await reader.shoot("report")


@pytest.mark.parametrize(
    "record",
    [EMPTY, msgspec.convert(hostile(msgspec.to_builtins(run()), LIE), Record)],
    ids=["empty", "lies"],
)
async def test_it_holds_whatever_was_recorded(
    tmp_path: Path, reader: Reader, record: Record
) -> None:
    save(record, tmp_path)
    await reader.open("/report.html")
    await expect(reader.page.locator("script, img")).to_have_count(0)
    await reader.check()
