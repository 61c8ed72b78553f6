"""The whole way on a real network: a channel, paid answers, a refund, coins on chain again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from channels.lightning import Lightning
from channels.settings import load_settings
from channels.units import Sat, UnixTime
from client.channel import close_channels, open_channel, wait_until_usable
from client.sdk import Cost, Done, Event, TopUp, connect
from client.settings import ClientSettings
from provider.app import Provider
from provider.ledger import Ledger
from provider.serving import Models, Served
from provider.settings import Keys, ProviderSettings
from regtest.network import Kind, Network
from tests.provider.fakes import PACE, PRICE, FakeEngine

KINDS: list[tuple[Kind, Kind]] = [
    ("embedded", "embedded"),
    ("lightningd", "lightningd"),
    ("embedded", "lightningd"),
    ("lightningd", "embedded"),
]
"""The user's node, and the provider's."""


@pytest.fixture(params=KINDS, ids="-".join)
async def network(
    tmp_path: Path, bitcoind_program: Sequence[str], request: pytest.FixtureRequest
) -> AsyncIterator[Network]:
    user, provider = request.param
    if "lightningd" in request.param and shutil.which("lightningd") is None:
        pytest.skip("lightningd is not on PATH")
    made = Network(tmp_path / "net", load_settings().cache)
    try:
        await made.up(["user"], kind=user)
        await made.up(["provider"], kind=provider)
        yield made
    finally:
        await made.down()


async def test_the_whole_way(network: Network, tmp_path: Path) -> None:
    async with (
        Lightning(network.node("user").rpc_file) as user,
        Lightning(network.node("provider").rpc_file) as seller,
    ):
        ledger = Ledger(tmp_path / "provider.sqlite")
        status = {node.name: node for node in (await network.status()).nodes}
        about = {"node_id": str(status["provider"].id), "address": status["provider"].address}
        shop = Provider(
            ledger,
            seller,
            Keys(b"k" * 32),
            ProviderSettings(),
            "regtest",
            Models([Served(FakeEngine(), PRICE, PACE, UnixTime(0))]),
            about,
        )
        server = TestServer(shop.app())
        await server.start_server(shutdown_timeout=0.1)
        try:
            await _buy(network, user, about, str(server.make_url("")), tmp_path)
        finally:
            await server.close()
            ledger.close()


async def _buy(
    network: Network, user: Lightning, about: dict[str, str], url: str, path: Path
) -> None:
    opening = await open_channel(user, about["node_id"], about["address"], Sat(100_000))
    assert 100 < opening.fee_sat < 2000
    waiting = asyncio.create_task(wait_until_usable(user, opening))
    await network.mine(6)
    usable = await waiting
    assert usable.provider_reserve_sat == opening.push_sat == 546

    settings, store = ClientSettings(), path / "client.sqlite"
    async with connect(url, user, settings=settings, store=store) as client:
        events: list[Event] = [event async for event in client.chat("abc", max_tokens=150)]
        assert isinstance(events[-1], Done)
        cost = events[-1].cost
        assert cost.spent_msat == 3 * 50 + 150 * 250
        assert cost.topups == sum(isinstance(event, TopUp) for event in events) >= 3
        assert cost.max_exposure_msat <= cost.exposure_limit_msat
        async with aclosing(client.chat("abc", max_tokens=4000)) as left:
            async for event in left:
                if isinstance(event, Cost) and event.output_tokens >= 20:
                    break
        [refund] = await client.close()
        assert refund.status == "succeeded"
        assert refund.received_msat == refund.paid_msat - refund.spent_msat
        assert refund.unaccounted_msat == 0

    [closing] = await close_channels(user, about["node_id"])
    assert closing.type == "mutual"
    assert closing.ours_msat == (100_000 - 546) * 1000 - refund.spent_msat
    await network.mine(1)
