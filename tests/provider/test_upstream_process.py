"""`oda provider --upstream` as a process, with real nodes and our own client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels.units import Sat
from client.answer import Done, Text
from client.sdk import connect
from tests.conftest import Chain
from tests.nodes import Nodes, nodes_on
from tests.provider import upstream_server
from tests.provider.test_processes import Programs, fetched, origin, told
from tests.provider.upstream_server import PROMPT_TOKENS, FakeUpstream


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as made:
        yield made


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as made:
        yield made


async def test_a_server_is_sold_and_paid(nodes: Nodes, programs: Programs, tmp_path: Path) -> None:
    user, seller = await nodes.start("user", "seller")
    await nodes.open(user, seller, Sat(100_000), push_msat=50_000_000)
    fake = FakeUpstream()
    async with upstream_server.serving(fake) as upstream:
        arguments = ("--rpc-file", str(seller.process.rpc_file), "--port", "0")
        # The second is not there: the provider starts without it.
        more = ("--upstream", upstream, "--upstream", "http://127.0.0.1:1/v1")
        url = origin(await told(programs.start("shop", "provider", *arguments, *more)))
        health = await asyncio.to_thread(fetched, f"{url}/health")
        assert health["status"] == "degraded"
        assert health["upstreams"] == [
            {"reachable": True, "models": 1},
            {"reachable": False, "models": 0},
        ]
        async with connect(url, user.rpc, store=tmp_path / "client.sqlite") as client:
            events = [event async for event in client.chat("hi", max_tokens=60)]
            (refund,) = await client.close()
        said = "".join(event.text for event in events if isinstance(event, Text))
        assert said == "".join(chr(ord("a") + i % 26) for i in range(60))
        done = events[-1]
        assert isinstance(done, Done)
        cost = PROMPT_TOKENS * 50 + 60 * 250
        assert done.cost.spent_msat == refund.spent_msat == cost
        assert refund.received_msat == refund.paid_msat - cost
        assert refund.unaccounted_msat == 0
