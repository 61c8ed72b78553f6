"""The provider's models for others: fetched before they are served, and given on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from channels.errors import RemoteProtocolError, UserError
from channels.settings import Settings
from channels.terminal import no_progress
from channels.units import UnixTime
from client.provider import Catalogue
from provider.app import Provider
from provider.assembly import Supplier
from provider.ledger import Ledger
from provider.serving import Models, Served
from provider.settings import Keys, ProviderSettings
from provider.sharing import Shared, Sharing, obtain
from tests.provider.clock import Clock
from tests.provider.fakes import MODEL, PACE, PRICE, FakeEngine, FakeNode
from tests.torrent.nodes import node
from tests.torrent.samples import content, fill, model
from tests.torrent.test_swarm import same
from torrent import webseed
from torrent.magnet import Magnet, Peer
from torrent.swarm import Swarm


def anything(path: Path) -> None:
    """A check that every directory passes."""


@asynccontextmanager
async def provider(
    path: Path, swarm: Swarm, infohash: bytes, base: str | None = None
) -> AsyncIterator[TestClient[Any, Any]]:
    ledger = Ledger(path / "provider.sqlite")
    served = Served(FakeEngine(), PRICE, PACE, UnixTime(5), infohash)
    made = Provider(
        ledger,
        FakeNode(Clock()),
        Keys(b"k" * 32),
        ProviderSettings(),
        "regtest",
        Models([served]),
        sharing=Sharing(swarm.library, swarm.address, base),
    )
    client: TestClient[Any, Any] = TestClient(TestServer(made.app()))
    await client.start_server()
    try:
        yield client
    finally:
        await client.close()
        ledger.close()


async def test_a_model_is_fetched_from_a_provider_over_http_alone(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        infohash = (await a.publish(source)).infohash
        async with provider(tmp_path, a, infohash) as client:
            listed = await (await client.get("/v1/models")).json()
            (entry,) = listed["data"]
            assert entry["infohash"] == infohash.hex()
            magnet = Magnet.parse(entry["magnet"])
            assert magnet.peers == (a.address,)
            assert magnet.web_seeds == (f"{client.make_url('/torrents/')}{infohash.hex()}/",)
            # One entry by name or infohash, as OpenAI's API has it; the client reads it too.
            for named in (MODEL, infohash.hex()):
                assert await (await client.get(f"/v1/models/{named}")).json() == entry
            missing = await client.get("/v1/models/nope")
            assert (missing.status, (await missing.json())["error"]["code"]) == (
                404,
                "model_not_found",
            )
            assert msgspec.convert(listed, Catalogue).data[0].magnet == entry["magnet"]
            # Without its seeder in the swarm the web seed is enough.
            await a.pause(infohash)
            path = await b.fetch(replace(magnet, peers=()))
            assert same(source, path)
            proved = await webseed.challenge(magnet.web_seeds[0], infohash)
            assert sum(len(each.blocks) for each in proved) == 16


async def test_the_link_names_what_reaches_us(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    async with node(tmp_path / "a") as a:
        infohash = (await a.publish(source)).infohash
        everywhere = Peer("0.0.0.0", 7000)  # noqa: S104  # nothing listens there
        asked = URL("https://models.example:8402")
        link = await Sharing(a.library, everywhere).magnet(infohash, asked)
        assert link.peers == (Peer("models.example", 7000),)
        assert link.web_seeds[0].startswith("https://models.example:8402/torrents/")
        link = await Sharing(a.library, everywhere, "https://x.example").magnet(infohash, asked)
        assert link.web_seeds[0].startswith("https://x.example/torrents/")


async def test_by_directory_infohash_or_link(tmp_path: Path) -> None:
    source = model(tmp_path / "source", content("w", 300_000))
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        published = await obtain(a, str(source), (), anything, no_progress)
        assert same(source, published.path)
        # At the next start it is neither copied nor fetched.
        before = (published.path / "weights.safetensors").stat().st_ino
        assert await obtain(a, str(source), (), anything, no_progress) == published
        assert (published.path / "weights.safetensors").stat().st_ino == before
        infohash, peer = published.infohash.hex(), str(a.address)
        fetched = await obtain(b, infohash, (peer,), anything, no_progress)
        assert fetched.infohash == published.infohash
        assert same(source, fetched.path)
        assert b.library.entry(fetched.infohash).record.pins == ["provider"]
        again = await obtain(b, f"magnet:?xt=urn:btmh:1220{infohash}", (), anything, no_progress)
        assert again == fetched


async def test_what_was_served_before_may_be_evicted(tmp_path: Path) -> None:
    """All but the last that was, after a restart too."""
    async with node(tmp_path / "a") as a:
        made = [
            await obtain(
                a,
                str(model(tmp_path / f"{i}", content(f"{i}", 100_000))),
                (),
                anything,
                no_progress,
            )
            for i in range(3)
        ]
        settings = Settings(data=tmp_path / "data")

        def pinned() -> list[bool]:
            entries = [a.library.entry(each.infohash) for each in made]
            return [entry.record.pins == ["provider"] for entry in entries]

        def supplier() -> Supplier:
            return Supplier(settings, ProviderSettings(), a, None)

        def served(each: Shared) -> Served:
            return Served(FakeEngine(), PRICE, PACE, UnixTime(5), each.infohash)

        follows = supplier()
        for each in made:
            await follows.keep(served(each))
        assert pinned() == [False, True, True]
        await supplier().keep(served(made[2]))
        assert pinned() == [False, False, True]


async def test_what_is_no_model_is_not_fetched(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "weights.safetensors": 50})
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        with pytest.raises(RemoteProtocolError) as caught:
            await obtain(b, str(magnet), (), anything, no_progress)
        assert caught.value.reason == "not-a-model"
        assert b.library.entries() == []


async def test_what_is_no_model_is_not_shared(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})

    def refuse(path: Path) -> None:
        raise UserError("bad-model", f"{path} is none.")

    async with node(tmp_path / "a") as a:
        with pytest.raises(UserError, match="is none"):
            await obtain(a, str(source), (), refuse, no_progress)
        assert a.library.entries() == []


async def test_what_another_program_shares_is_used(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    async with node(tmp_path / "a") as seeding, node(tmp_path / "a") as a:
        infohash = (await seeding.publish(source)).infohash
        for what in (str(source), infohash.hex()):
            found = await obtain(a, what, (), anything, no_progress)
            assert (found.infohash, same(source, found.path)) == (infohash, True)
        # What it only begins to fetch is not there to be used.
        claimed = seeding.library.claim(bytes([1] * 32))
        with pytest.raises(UserError) as caught:
            await obtain(a, "01" * 32, (), anything, no_progress)
        assert caught.value.reason == "already-running"
        claimed.release()
