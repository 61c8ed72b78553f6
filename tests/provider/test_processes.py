"""Programs on real nodes: a model outlives its publisher, and a fetch outlives a kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from channels.units import Sat
from client.sdk import Text, connect
from provider.models import first_model
from sidechain.model import bundle
from sidechain.model.architecture import ByteTransformer
from sidechain.model.trainer import Budget
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, nodes_on, until
from torrent.library import Library

ODA = Path(sys.executable).parent / "oda"
LIBRARY = Path("regtest") / "torrents"


class Programs:
    """`oda` with a data directory each; killed -9 at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(ODA), *arguments, "--json"],
            env={**os.environ, "ODA_DATA": str(self.path / name), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.enter_context(_killed(process))
        return process

    def provider(
        self, name: str, node: LightningNode, model: str, **environment: str
    ) -> subprocess.Popen[str]:
        arguments = ("--rpc-file", str(node.process.rpc_file), "--port", "0", "--model", model)
        return self.start(name, "provider", *arguments, **environment)

    def library(self, name: str) -> Library:
        return Library(self.path / name / LIBRARY, 1 << 40)

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextmanager
def _killed(process: subprocess.Popen[str]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.kill()


async def told(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.to_thread(process.stdout.readline))


def origin(said: dict[str, str]) -> str:
    return said["url"].removesuffix("/v1")


def model(url: str) -> dict[str, Any]:
    entry: dict[str, Any] = fetched(f"{url}/v1/models")["data"][0]
    return entry


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # our own on loopback
        return json.load(answer)


async def answer(url: str, user: LightningNode, store: Path) -> str:
    async with connect(url, user.rpc, store=store) as client:
        events = client.chat("What is a list?", seed=5, max_tokens=60, temperature=0.9)
        return "".join([event.text async for event in events if isinstance(event, Text)])


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as made:
        yield made


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as made:
        yield made


async def test_a_model_outlives_its_publisher(
    nodes: Nodes, programs: Programs, tmp_path: Path
) -> None:
    source = first_model(
        tmp_path / "cache",
        # Enough for words: a client leaves an answer that is garbage.
        budget=Budget(steps=400),
        architecture=ByteTransformer(width=16, blocks=1, heads=4, context=16),
    )
    publisher = programs.start("a", "seed", str(source))
    (published,) = (await told(publisher))["torrents"]
    user, b, c = await nodes.start("user", "b", "c")
    for seller in (b, c):
        await nodes.open(user, seller, Sat(100_000), push_msat=600_000)

    first = origin(await told(programs.provider("b", b, published["magnet"])))
    publisher.kill()
    publisher.wait()

    entry = model(first)
    assert entry["infohash"] == published["infohash"]
    second = origin(await told(programs.provider("c", c, entry["magnet"])))
    assert model(second)["infohash"] == published["infohash"]
    # They have it from one another and not from anywhere else.
    stored = programs.library("c").entry(bytes.fromhex(published["infohash"]))
    assert str(published["magnet"]).partition("x.pe=")[2] not in str(stored.magnet())

    said = [await answer(url, user, tmp_path / "client.sqlite") for url in (first, second)]
    assert said[0] == said[1]
    assert len(set(said[0])) > 5
    for url in (first, second):
        seen = fetched(f"{url}/dashboard.json")
        assert seen["health"]["status"] == "ok" and seen["trouble"] == []
        assert seen["earned"]["spent_msat"] == sum(day["spent_msat"] for day in seen["days"]) > 0
        assert 0 < seen["liquidity"]["receivable_msat"] < 100_000_000


async def test_a_fetch_outlives_a_kill(nodes: Nodes, programs: Programs, tmp_path: Path) -> None:
    architecture = ByteTransformer(width=128, blocks=8, heads=8, context=64)
    bundle.write(
        tmp_path / "source",
        architecture.build(),
        name="big",
        holdout_nats_per_byte=5.5,
        steps=0,
        seed=0,
    )
    (published,) = (await told(programs.start("a", "seed", str(tmp_path / "source"))))["torrents"]
    infohash = bytes.fromhex(published["infohash"])
    (node,) = await nodes.start("b", coins=Sat(0))
    process = programs.provider("b", node, published["magnet"], ODA_TORRENT_DOWNLOAD_MIB="1")
    library = programs.library("b")

    async def half() -> bool:
        assert process.poll() is None
        if not (library.root / infohash.hex()).is_dir():
            return False
        entry = library.entry(infohash)
        status = entry.status()
        return status.done > 0.3 * status.total > 0 and entry.resume() is not None

    await until(half, "a third of the model is there", within=60)
    process.kill()
    process.wait()
    assert not library.entry(infohash).record.complete

    # The same command again, which also says no more who has it.
    again = programs.provider("b", node, published["infohash"])
    entry = model(origin(await told(again)))
    assert (entry["id"], entry["infohash"]) == ("big", published["infohash"])

    async def seeding() -> bool:
        return library.entry(infohash).status().state == "seeding"

    await until(seeding, "it says that it seeds")
    status = library.entry(infohash).status()
    assert status.total > 4_000_000
    assert 0 < status.downloaded < 0.75 * status.total
