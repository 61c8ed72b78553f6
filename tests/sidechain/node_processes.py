"""`oda node` in processes of their own, and a trainer who speaks with them over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from sidechain import api
from sidechain.model import directory
from sidechain.model.directory import Model
from sidechain.node_client import NodeClient
from sidechain.params import REGTEST
from sidechain.primitives import (
    NO_SIGNATURE,
    AddModel,
    AnyTransaction,
    Commit,
    OpenShard,
    Reveal,
    commitment,
    signed,
    stamped,
)
from tests.sidechain.world import Person, h
from torrent.swarm import Swarm

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 60.0
POLL: Final = 0.1

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """What `look` sees at last; fails with `what` after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = await look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        await asyncio.sleep(POLL)


def environment(data: Path) -> dict[str, str]:
    """A data directory of its own, and nothing of whoever runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "ODA_"}
    (data / "config.toml").parent.mkdir(parents=True, exist_ok=True)
    (data / "config.toml").touch()
    return inherited | {"ODA_DATA": str(data), "ODA_CONFIG": str(data / "config.toml")}


async def oda(data: Path, *arguments: str) -> Any:
    """What one command with --json says; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.sidechain.oda", *arguments, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(data),
    )
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return json.loads(out)


@dataclass
class NodeProcess:
    """`oda node --json` with these options; started again it has the same data directory. command:
    another one that is a node too."""

    data: Path
    options: tuple[str, ...]
    command: tuple[str, ...] = ("-m", "tests.sidechain.oda", "node")
    url: str = ""
    swarm: str = ""
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    async def start(self) -> None:
        self.starts += 1
        self.data.mkdir(parents=True, exist_ok=True)
        log = self.data / f"log-{self.starts}"
        command = [sys.executable, *self.command, "--json", *self.options]
        if "--port" not in self.options:
            command += ["--port", "0"]
        self._spawn(command, log)

        async def first_line() -> str | None:
            text = log.read_text()
            assert self.process is not None and self.process.poll() is None, text
            # Warnings may come before it.
            lines = [line for line in text.splitlines(keepends=True) if line.startswith("{")]
            return lines[0] if lines and lines[0].endswith("\n") else None

        told = json.loads(await until(first_line, "the node to start"))
        self.url, self.swarm = told["url"], told["swarm"] or ""

    def _spawn(self, command: list[str], log: Path) -> None:
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(self.data)
            )

    def kill(self) -> None:
        """kill -9, as long as it lives."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; -> the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=PATIENCE)

    def told(self, event: str) -> list[dict[str, Any]]:
        """What it told of a kind, since the last start."""
        text = (self.data / f"log-{self.starts}").read_text()
        whole = [line for line in text.splitlines(keepends=True) if line.startswith("{")]
        said = [json.loads(line) for line in whole if line.endswith("\n")]
        return [each for each in said if each["event"] == event]

    async def hears(self, event: str, **fields: object) -> dict[str, Any]:
        """The first thing that it tells of a kind, with these fields."""

        async def look() -> dict[str, Any] | None:
            matching = (each for each in self.told(event) if fields.items() <= each.items())
            found = next(matching, None)
            assert found or (self.process and self.process.poll() in (None, 0)), self.said()
            return found

        return await until(look, f"{event} {fields}")

    async def get(self, path: str, kind: type[T]) -> T:
        async with NodeClient(self.url) as client:
            return await client.get(path, kind)

    async def find(self, path: str, kind: type[T]) -> T | None:
        async with NodeClient(self.url) as client:
            return await client.find(path, kind)

    async def status(self) -> api.Status:
        return await self.get("/status", api.Status)

    def said(self) -> str:
        """All that it printed, for a test that fails."""
        return "".join(path.read_text()[-2000:] for path in sorted(self.data.glob("log-*")))


@contextlib.contextmanager
def ended(*nodes: NodeProcess) -> Iterator[None]:
    """Kill all of them at the end, however it comes."""
    try:
        yield
    finally:
        for node in nodes:
            node.kill()


@dataclass
class Trainer:
    """Somebody with a key and a swarm, who gives transactions to one node."""

    person: Person
    swarm: Swarm
    node: NodeProcess
    folder: Path
    known: dict[bytes, bytes] = field(default_factory=dict)

    async def publish(self, name: str, model: Model) -> bytes:
        """Share a model directory from here; -> its infohash."""
        directory.write(self.folder / name, model)
        return (await self.swarm.publish(self.folder / name)).infohash

    async def send(self, tx: AnyTransaction) -> AnyTransaction:
        async with NodeClient(self.node.url) as client:
            await client.send(tx, (str(self.swarm.address),))
        return tx

    async def confirmed(self, tx: AnyTransaction) -> int:
        """The height of the block that it is in at last."""
        async with NodeClient(self.node.url) as client:
            async with asyncio.timeout(PATIENCE):
                found = await client.confirmed(tx)
        assert found.height is not None
        return found.height

    async def commit(self, model: bytes, weights_root: bytes) -> Commit:
        blind = commitment(weights_root, model, self.person.key, h("salt"))
        tx = stamped(Commit(REGTEST.network_id, 0, blind), REGTEST.stamp)
        await self.send(tx)
        return tx

    def reveal(self, model: bytes, infohash: bytes, weights_root: bytes, score: int) -> Reveal:
        tx = Reveal(
            REGTEST.network_id,
            0,
            model,
            infohash,
            weights_root,
            score,
            self.person.key,
            h("salt"),
            NO_SIGNATURE,
        )
        return signed(stamped(tx, REGTEST.stamp), self.person.secret)

    def open_shard(self, model: bytes, index: int, key: bytes) -> OpenShard:
        tx = OpenShard(REGTEST.network_id, 0, model, index, key, NO_SIGNATURE)
        return signed(stamped(tx, REGTEST.stamp), self.person.secret)

    def add_model(self, model: Model, infohash: bytes, min_gain: int) -> AddModel:
        from sidechain.model import objective, registry

        tx = AddModel(
            REGTEST.network_id,
            0,
            infohash,
            model.weights_root,
            registry.encode(model.architecture),
            objective.encode(model.objective),
            model.dataset.root,
            (),
            (),
            min_gain,
            model.score(),
            model.score_cost(),
            self.person.key,
            NO_SIGNATURE,
        )
        return signed(stamped(tx, REGTEST.model_stamp), self.person.secret)


@asynccontextmanager
async def trainer(person: Person, node: NodeProcess, folder: Path) -> AsyncIterator[Trainer]:
    from tests.torrent import nodes

    async with nodes.node(folder / "torrents") as swarm:
        yield Trainer(person, swarm, node, folder)
