"""The explorer in a browser: every page, on a desk and on a phone, live, and told lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from playwright.async_api import Browser, expect

from channels.bolt import signmessage
from sidechain import payee
from sidechain.peers import PeerInfo, Peers
from sidechain.primitives import NO_SIGNATURE, AddModel, RegisterPayee, display
from sidechain.protocol import Service
from sidechain.reasons import Rejection
from sidechain.scores import PairedRequest, PairedSums, Scored, ScoreRequest
from tests.pages.reader import PHONE, Reader, reading
from tests.sidechain import api_nodes
from tests.sidechain.api_nodes import Api
from tests.sidechain.test_announcements import announcement
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    QUICK,
    Person,
    add_model,
    commit,
    finished,
    h,
    open_shard,
    register,
    reveal,
)

LIE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&amp;\N{RIGHT-TO-LEFT OVERRIDE}"
MALLORY = Person("mallory")


class FakePeers:
    """Two peers, one of whom has a name that he thought about."""

    def infos(self) -> list[PeerInfo]:
        return [
            PeerInfo(
                "127.0.0.1", 9735, True, 21, LIE, Service.FULL, 6881, 0, 1_704_067_300, 0.0123
            ),
            PeerInfo("::1", 18444, False, 12, "oda/0.1.0", 0, 0, 40, 1_704_067_200, None),
        ]

    def bans(self) -> dict[str, int]:
        return {"192.0.2.7": 1_704_160_000}


def evil_payee() -> RegisterPayee:
    endpoint = 'http://x.example/"><script>alert(3)</script>'
    text = payee.payee_text(QUICK.network_id, MALLORY.key, 1, MALLORY.node_id, endpoint)
    _, proof = signmessage.sign(MALLORY.node_secret, text)
    tx = RegisterPayee(
        QUICK.network_id, 0, MALLORY.key, 1, MALLORY.node_id, endpoint, proof, NO_SIGNATURE
    )
    return finished(QUICK, tx, MALLORY)


def evil_model() -> AddModel:
    tx = add_model(QUICK, MALLORY, weights="evil", score=77_000)
    lies = {"architecture": b'{"type":%s}' % msgspec.json.encode(LIE), "objective": LIE.encode()}
    changed = msgspec.structs.replace(tx, sig=NO_SIGNATURE, **lies)
    return finished(QUICK, changed, MALLORY)


def improve(made: Api, model: AddModel, who: Person, name: str, score: int) -> None:
    made.mine(commit(QUICK, model.txid, who, name))
    for _ in range(QUICK.reveal_delay - 1):
        made.mine(producer=who)
    made.scored(model.txid, h(name), score)
    made.mine(reveal(QUICK, model.txid, who, name, score), producer=who)


def judge(made: Api, model: AddModel, index: int, old: str, new: str, good: bool) -> None:
    zero = bytes(32)
    asked = PairedRequest(model.txid, index, h(f"s{index}"), h(old), h(new), zero, zero)
    made.node.scored(asked, PairedSums(100, 1000 if good else 1, 12_000))
    made.mine(open_shard(QUICK, model.txid, index, f"s{index}", CAROL))


def tell(made: Api) -> AddModel:
    """A chain on which everything has happened, and lies were told. Gives the model to look at."""
    shards = tuple(f"s{i}" for i in range(6))
    model = add_model(QUICK, score=5_604_113, shards=shards, openers=(CAROL,), min_gain=1000)
    made.node.accept_transaction(model)
    made.scored(model.txid, model.weights_root, model.score)
    made.mine(register(QUICK, ALICE), register(QUICK, BOB))
    base = "first"
    trials = ((BOB, 2_083_441, True), (ALICE, 1_799_870, True), (BOB, 1_650_002, False))
    for index, (who, score, good) in enumerate((*trials, (ALICE, 1_580_300, True))):
        name = f"weights {index}"
        improve(made, model, who, name, score)
        judge(made, model, index, base, name, good)
        base = name if good else base
        made.mine()
    improve(made, model, BOB, "newest", 1_471_992)
    lying = evil_model()
    made.node.accept_transaction(lying)
    made.node.scored(ScoreRequest(lying.txid, lying.weights_root, bytes(32)), Scored(77_000, COST))
    made.mine(evil_payee())
    made.node.accept_transaction(commit(QUICK, model.txid, ALICE, "waiting"))
    for wrong in (register(QUICK, ALICE), reveal(QUICK, model.txid, BOB, "stolen", 9)):
        with pytest.raises(Rejection):
            made.node.accept_transaction(wrong)
    known = announcement(ALICE, expires=made.clock[0] + 4000, models=(model.txid,))
    made.node.accept_announcement(known)
    made.around.peers = cast(Peers, FakePeers())
    return model


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_nodes.full(tmp_path) as found:
        yield found


@pytest.fixture
async def reader(made: Api, browser: Browser) -> AsyncIterator[Reader]:
    async with reading(browser, str(made.client.make_url("/"))) as found:
        yield found


async def test_every_page_is_found_by_clicking(made: Api, reader: Reader) -> None:
    tell(made)
    page = reader.page
    await reader.open("/")
    await expect(page.locator("h1")).to_have_text("The chain of models")
    await reader.check()
    await reader.shoot("overview")
    for name in ("Blocks", "Models", "Payees", "Providers", "Mempool", "Rejections", "Peers"):
        await page.get_by_role("navigation").get_by_role("link", name=name).click()
        await expect(page.locator("h1")).to_have_text(name)
        await expect(page.locator("nav a[aria-current]")).to_have_text(name)
        await reader.check()
        await reader.shoot(name.lower())


async def test_from_a_model_to_the_block_that_took_a_version(made: Api, reader: Reader) -> None:
    model = tell(made)
    page = reader.page
    await reader.open("/models")
    await page.locator(f'tr[data-id="{model.txid.hex()}"] a').first.click()
    await expect(page.locator("h1")).to_contain_text("mlp")
    await expect(page.locator(".plot .mark")).to_have_count(6)
    await expect(page.locator(".plot .mark.withdrawn")).to_have_count(1)
    await expect(page.locator(".plot .mark.provisional")).to_have_count(1)
    rows = page.locator("#versions tbody tr")
    await expect(rows).to_have_count(6)
    await expect(rows.first).to_contain_text("1,471,992")
    await expect(page.locator("#shards .badge.opened")).to_have_count(4)
    await expect(page.locator("#shards .badge.sealed")).to_have_count(2)
    await expect(page.locator("#providers")).to_contain_text("https://alice.example")
    await reader.check()
    await reader.shoot("model")
    await rows.first.locator('a[href^="/transactions/"]').click()
    await expect(page.locator("h1")).to_have_text("Reveal transaction")
    await reader.check()
    await reader.shoot("transaction")
    await page.locator('#where a[href^="/blocks/"]').click()
    await expect(page.locator("h1")).to_contain_text("Block")
    await expect(page.locator("#transactions")).to_contain_text("score 1,471,992")
    await reader.check()
    await reader.shoot("block")
    await page.locator("#block .key a").click()
    await expect(page.locator("#payee")).to_contain_text(BOB.key.hex())
    await reader.check()
    await reader.shoot("key")


async def test_what_strangers_wrote_is_text(made: Api, reader: Reader) -> None:
    tell(made)
    lying = evil_model().txid.hex()
    paths = ("/", "/models", f"/models/{lying}", f"/transactions/{lying}", "/payees", "/peers")
    for path in (
        *paths,
        f"/keys/{MALLORY.key.hex()}",
        "/blocks/" + str(made.node.chain.tip.height),
    ):
        await reader.open(path)
        assert await reader.page.locator("main img, main script").count() == 0
        await reader.check()
    await reader.open(f"/models/{lying}")
    await expect(reader.page.locator("#definition")).to_contain_text("<script>alert(2)</script>")
    await expect(reader.page.locator("#definition")).to_contain_text("\N{REPLACEMENT CHARACTER}")
    await reader.open("/peers")
    await expect(reader.page.locator("#peers")).to_contain_text("<img src=x onerror=alert(1)>")


async def test_a_block_shows_when_it_is_mined(made: Api, reader: Reader) -> None:
    tell(made)
    page = reader.page
    await reader.open("/")
    await expect(page.locator("#live")).to_have_text("live")
    row = page.locator("#latest tbody tr").first
    for _ in range(2):
        block = made.mine()
        await expect(row).to_have_attribute("data-id", display(block.hash))
    await expect(row).to_have_class("fresh")
    await expect(page.locator("#mempool, #now")).to_contain_text(f"{made.node.chain.tip.height}")
    await reader.check()


async def test_what_is_chosen_stays_when_other_things_change(made: Api, reader: Reader) -> None:
    tell(made)
    page = reader.page
    await reader.open("/")
    await expect(page.locator("#live")).to_have_text("live")
    await page.locator("#node dd").last.evaluate("each => getSelection().selectAllChildren(each)")
    chosen = await page.evaluate("getSelection().toString()")
    block = made.mine()
    row = page.locator("#latest tbody tr").first
    await expect(row).to_have_attribute("data-id", display(block.hash))
    assert chosen and await page.evaluate("getSelection().toString()") == chosen


async def test_search_leads_to_what_it_names(made: Api, reader: Reader) -> None:
    model = tell(made)
    tip = made.node.chain.tip
    transaction = commit(QUICK, model.txid, ALICE, "waiting")
    places = {
        "3": "/blocks/3",
        display(tip.hash): f"/blocks/{display(tip.hash)}",
        model.txid.hex(): f"/models/{model.txid.hex()}",
        ALICE.key.hex().upper(): f"/keys/{ALICE.key.hex()}",
        transaction.txid.hex(): f"/transactions/{transaction.txid.hex()}",
    }
    for wanted, place in places.items():
        await reader.open("/")
        await reader.page.get_by_role("searchbox").fill(wanted)
        await reader.page.get_by_role("searchbox").press("Enter")
        await expect(reader.page).to_have_url(reader.url + place)


async def test_without_a_script_everything_is_there(made: Api, browser: Browser) -> None:
    model = tell(made)
    async with reading(browser, str(made.client.make_url("/")), script=False) as reader:
        await reader.open(f"/models/{model.txid.hex()}")
        await expect(reader.page.locator(".plot .mark")).to_have_count(6)
        await expect(reader.page.locator("#versions tbody tr")).to_have_count(6)
        await expect(reader.page.locator("#live")).to_be_hidden()
        await reader.page.set_viewport_size({"width": PHONE, "height": 900})
        await reader.page.get_by_role("link", name="Blocks").click()
        await expect(reader.page.locator("time").first).to_contain_text("2024-01-")


async def test_a_light_node_shows_what_it_has(tmp_path: Path, browser: Browser) -> None:
    async with (
        api_nodes.light(tmp_path) as (_, client),
        reading(browser, str(client.make_url("/"))) as reader,
    ):
        await reader.open("/")
        await expect(reader.page.locator("h1 + .badge")).to_have_text("light node")
        names = await reader.page.locator("nav a").all_inner_texts()
        assert names == ["Overview", "Blocks", "Providers", "Peers"]
        for name in names[1:]:
            await reader.page.get_by_role("navigation").get_by_role("link", name=name).click()
            await expect(reader.page.locator("h1")).to_have_text(name)
            await reader.check()
