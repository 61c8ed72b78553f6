"""`oda train` as processes: killed between commit and reveal, and two of them under torchrun."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidechain import api
from tests.sidechain import real_models
from tests.sidechain.node_processes import NodeProcess, ended, oda

TRAIN = ("-m", "tests.sidechain.oda", "train")


@dataclass
class Mine:
    """A miner with a model on its chain, and where its owner keeps the keys."""

    node: NodeProcess
    model: str
    folder: Path

    def trainer(self, name: str, *options: str, command: tuple[str, ...] = TRAIN) -> NodeProcess:
        wishes = ("--connect", self.node.address, "--seconds", "0.2", "--open", str(self.keys))
        return NodeProcess(
            self.folder / name, (self.model, *wishes, "--once", *options), command=command
        )

    @property
    def keys(self) -> Path:
        return self.folder / "digits.keys"

    async def confirmed(self) -> api.Version:
        return (await self.node.get(f"/models/{self.model}", api.Model)).confirmed


@pytest.fixture
async def mine(tmp_path: Path) -> AsyncIterator[Mine]:
    """Blocks with transactions come at once, others after a second and a half."""
    node = NodeProcess(tmp_path / "miner", ("--mine", "--processes", "1", "--empty-after", "1.5"))
    digits = tmp_path / "digits"
    with ended(node):
        starting = asyncio.create_task(node.start())
        await asyncio.to_thread(real_models.write_digits, tmp_path / "digits.csv")
        asked = ("--labelled", str(tmp_path / "digits.csv"), "--divide-by", "4", "--hidden", "16")
        await oda(node.data, "model", "new", str(digits), *asked, "--shards", "4")
        await starting
        keys = ("--shard-keys", str(tmp_path / "digits.keys"))
        told = await oda(node.data, "model", "add", str(digits), *keys, "--url", node.url)
        yield Mine(node, told["model"], tmp_path)


async def test_killed_between_commit_and_reveal(mine: Mine) -> None:
    """What it committed to is what it reveals, though nobody tells it."""
    trainer = mine.trainer("trainer")
    with ended(trainer):
        await trainer.start()
        committed = await trainer.hears("committing")
        await trainer.hears("waiting", reason="commit-immature")
        trainer.kill()
        assert not trainer.told("revealing")
        before = await mine.confirmed()
        await trainer.start()
        revealed = await trainer.hears("revealing")
        assert revealed["weights_root"] == committed["weights_root"]
        confirmed = await trainer.hears("confirmed")
        assert trainer.process is not None
        assert await asyncio.to_thread(trainer.process.wait, 30) == 0
        assert not trainer.told("training"), "the weights were there"
    after = await mine.confirmed()
    assert after.height == confirmed["height"] > before.height
    assert after.weights_root == committed["weights_root"] != before.weights_root
    assert after.score < before.score


async def test_two_processes_under_torchrun(mine: Mine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is the node; both train."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (
        *("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"),
        f"--master-port={port}",
    )
    trainer = mine.trainer("trainer", command=(*launcher, *TRAIN))
    with ended(trainer):
        try:
            await trainer.start()
            (started,) = trainer.told("started")
            assert started["processes"] == 2
            confirmed = await trainer.hears("confirmed")
            assert trainer.process is not None
            assert await asyncio.to_thread(trainer.process.wait, 30) == 0, trainer.said()
            assert len(trainer.told("started")) == 1
        finally:
            # kill -9 would leave the two to themselves.
            await asyncio.to_thread(trainer.interrupt)
    after = await mine.confirmed()
    assert after.height == confirmed["height"] and after.trainer == started["key"]
