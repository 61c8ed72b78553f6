"""The provider's dashboard in a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from channels.lightning import PaymentFailed
from provider import cashier, settlement
from tests.pages.reader import Reader, reading
from tests.provider.fakes import World
from tests.provider.payees import PayeeWorld
from tests.provider.test_dashboard import bought, channel

LIE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Days go by here in an instant, and what the provider does of itself comes when it comes.
    monkeypatch.setattr(cashier, "TICK", 10**6)
    monkeypatch.setattr(settlement, "TICK", 10**6)
    made = World(tmp_path / "before")
    made.payees = PayeeWorld("trainer", "last", "accepting")
    made.node.channels = [channel("02" + "ab" * 32), channel("03" + "cd" * 32, connected=False)]
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def reader(world: World, browser: Browser) -> AsyncIterator[Reader]:
    async with reading(browser, str(world.client.make_url("/"))) as found:
        yield found


async def business(world: World) -> None:
    """Some days of it: answers, a refund that failed, shares that were paid and others not."""
    assert world.provider.desk is not None and world.payees is not None
    world.payees.people[1].down = True
    for day in range(9):
        buyer = await bought(world, day, 40 + 37 * (day * day % 5))
        if day == 3:
            world.node.outcomes = [PaymentFailed("no route", 205)]
        if day < 6:
            await buyer.apply(buyer.session.close())
            await world.settled()
        world.clock.ahead += 86_400
        world.payees.clock.ahead = world.clock.ahead
        if day == 6:
            await world.provider.desk.settlement.settle()
            await world.provider.desk.settlement.tick()
    await bought(world, 20, 100)
    # By now the producers, too, are owed enough.
    await world.provider.desk.settlement.settle()
    await world.provider.desk.settlement.tick()


async def test_everything_that_a_provider_asks(world: World, reader: Reader) -> None:
    await business(world)
    page = reader.page
    await reader.open("/")
    await expect(page.locator("h1 + .badge")).to_have_text("ok")
    await expect(page.locator("#sessions tbody tr")).to_have_count(4)
    await expect(page.locator("#shares tbody tr")).to_have_count(3)
    await expect(page.locator("#shares")).to_contain_text("tried 1×")
    await expect(page.locator("#models .badge")).to_have_text("not the newest version")
    await expect(page.locator("#liquidity .figures")).to_contain_text("7,000.000 sat")
    await expect(page.locator("#refunds .badge")).to_have_text("failed")
    await expect(page.locator("#days .bar.shared")).to_have_count(10)
    await reader.check()
    await reader.shoot("dashboard")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="all days as CSV").click()
    assert (await download.value).suggested_filename == "earnings.csv"


async def test_it_follows_by_itself(world: World, reader: Reader) -> None:
    page = reader.page
    await reader.open("/")
    await expect(page.locator("#live")).to_have_text("live")
    await expect(page.locator("#sessions .empty")).to_be_visible()
    await bought(world)
    await expect(page.locator("#sessions tbody tr")).to_have_count(1)
    await expect(page.locator("#now")).to_contain_text("15.100 sat")
    await reader.check()


async def test_trouble_is_text(world: World, reader: Reader) -> None:
    assert world.payees is not None
    world.payees.trouble = LIE
    await reader.open("/")
    await expect(reader.page.locator("#trouble")).to_have_text(LIE)
    await expect(reader.page.locator("h1 + .badge")).to_have_text("degraded")
    await reader.check()
