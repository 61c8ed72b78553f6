"""`oda train`: improve a model of the chain, and be paid for it by every later inference."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channels.settings import Settings, load_settings
from channels.terminal import EXIT_CODES, ExitCode, print_json, progress, run, stderr, stop_signals
from sidechain import payee_commands
from sidechain import settings as sidechain_settings
from sidechain.model.table import Table
from sidechain.model_commands import hex32
from sidechain.new_model import DivideOption, TargetOption
from sidechain.node_options import (
    ConnectOption,
    EmptyAfterOption,
    EventsFlag,
    PayToOption,
    PortOption,
    ProcessesOption,
)
from sidechain.settings import Key, SidechainSettings

if TYPE_CHECKING:
    from sidechain.attempts import Wishes
    from sidechain.model.world import World
    from sidechain.node import ChainNode
    from sidechain.service import Running
    from sidechain.shard_keys import ShardKeys
    from sidechain.trainer import Trainer

USAGE: Final = ("trainer-is-opener", "bad-data", "bad-device")
EXIT_CODES.update(dict.fromkeys(USAGE, ExitCode.USAGE))

BEHIND: Final = 2
"""Blocks that a node may lack and yet train: some may be headers that nobody has a body of."""

Told = Callable[[str, dict[str, Any]], None]


SecondsOption = Annotated[
    float, typer.Option(min=0.05, help="Of training before each look at the hold-out.")
]
PatienceOption = Annotated[
    int, typer.Option(min=1, help="Looks without progress that end an attempt.")
]
RateOption = Annotated[
    float | None, typer.Option(min=1e-9, help="Adam's learning rate. [default: by the model]")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="torch's name. [default: a GPU if there is one]")
]
DataOption = Annotated[
    Path | None,
    typer.Option(exists=True, help="More to learn from: a text, .csv or .npz of your own."),
]
OpenOption = Annotated[
    Path | None,
    typer.Option("--open", metavar="KEYS", help="Open a shard for each version that waits."),
]


@dataclass(frozen=True)
class _Job:
    """model: its identity. shard_keys: the file of who opens shards as well."""

    shared: Settings
    found: SidechainSettings
    model: bytes
    mine: bool
    shard_keys: Path | None
    pay_to: str | None
    as_json: bool

    @property
    def folder(self) -> Path:
        return sidechain_settings.directory(self.shared) / "training" / self.model.hex()


def train(
    model: Annotated[str, typer.Argument(help="The model's identity, 64 hex digits.")],
    connect: ConnectOption = None,
    port: PortOption = None,
    mine: Annotated[bool, typer.Option("--mine", help="Mine as well.")] = False,
    processes: ProcessesOption = None,
    empty_after: EmptyAfterOption = None,
    seconds: SecondsOption = 20.0,
    patience: PatienceOption = 4,
    rate: RateOption = None,
    device: DeviceOption = None,
    data: DataOption = None,
    target: TargetOption = None,
    divide_by: DivideOption = 1.0,
    shard_keys: OpenOption = None,
    once: Annotated[bool, typer.Option("--once", help="End with the first success.")] = False,
    pay_to: PayToOption = None,
    as_json: EventsFlag = False,
) -> None:
    """Improve a model until Ctrl-C: train, commit, reveal, and go on from the best there is.

    It runs a full node, which gives the weights to others. Killed or not, it goes on where it was.
    Under torchrun all processes train together: torchrun --nproc-per-node=2 --no-python oda train …
    """
    from sidechain.commands import require_torch

    require_torch()
    from sidechain.attempts import Wishes

    identity = bytes.fromhex(hex32(model))
    flags: dict[str, object] = {
        "port": port,
        "connect": tuple(connect) if connect else None,
        "processes": processes,
        "empty_after": empty_after,
    }
    shared = load_settings()
    found = sidechain_settings.load(shared, flags)
    job = _Job(shared, found, identity, mine, shard_keys, pay_to, as_json)
    table = Table(divide_by, target=target)
    wishes = Wishes(job.folder, seconds, patience, rate, data=data, table=table, once=once)
    _take_part(job, wishes, device)


def _take_part(job: _Job, wishes: Wishes, device: str | None) -> None:
    """In each process that torchrun started, or in the only one: the first is the node, and the
    others train as it says."""
    from sidechain.model import together, world
    from sidechain.shard_keys import ShardKeys

    with world.join() as joined:
        chosen = together.best_device(joined, device)
        if not joined.leads:
            _follow(joined, chosen)
            return
        keys = None if job.shard_keys is None else ShardKeys.read(job.shard_keys)
        run(_train(job, replace(wishes, device=chosen), joined, keys))


def _follow(world: World, device: str) -> None:
    """Ctrl-C and torchrun's SIGTERM go to all processes; process 0 lets the others go."""
    from sidechain.model import together

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    together.follow(world, device)


async def _train(job: _Job, wishes: Wishes, world: World, keys: ShardKeys | None) -> None:
    import logging

    from sidechain import service
    from sidechain.node import ChainNode
    from sidechain.opener import Opener
    from sidechain.trainer import Trainer

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    async with contextlib.AsyncExitStack() as stack:
        routes = await stack.enter_async_context(payee_commands.payout(job.shared, job.pay_to))
        opened = service.full_node(job.shared, job.found, mine=job.mine, routes=routes)
        running = await stack.enter_async_context(opened)
        node, scorer, swarm = running.node, running.around.scorer, running.swarm
        assert isinstance(node, ChainNode) and scorer is not None and swarm is not None
        told = stack.enter_context(_telling(wishes, job.as_json))
        trainer = Trainer(
            node,
            swarm,
            scorer.directory,
            secret=Key.load(job.shared).secret,
            model=job.model,
            wishes=wishes,
            synced=lambda: _is_synced(node, running, bool(job.found.connect)),
            offer_again=running.around.peers.offer_again,
            told=told,
            world=world,
        )
        told("started", _who(running, trainer, wishes.device, world))
        works = [trainer.run(), running.wait(), _stopped(stop_signals())]
        if keys is not None:
            works.append(Opener(node, job.model, keys, told).run())
        await _until_first(*works)


def _who(running: Running, trainer: Trainer, device: str, world: World) -> dict[str, Any]:
    return {
        "url": running.url,
        "swarm": running.around.swarm,
        "network": running.node.params.name,
        "key": trainer.key.hex(),
        "model": trainer.model.hex(),
        "device": device,
        "processes": world.size,
    }


def _is_synced(node: ChainNode, running: Running, connected: bool) -> bool:
    behind = node.chain.headers.best.height - node.chain.tip.height
    return behind <= BEHIND and (not connected or bool(running.around.peers.infos()))


async def _stopped(stop: asyncio.Event) -> None:
    await stop.wait()


async def _until_first(*works: Coroutine[Any, Any, None]) -> None:
    """Until one of them is over; the others are cancelled and have ended when this returns."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


# --- what is told --------------------------------------------------------------------------------


@contextlib.contextmanager
def _telling(wishes: Wishes, as_json: bool) -> Iterator[Told]:
    """Each event as a line of JSON, or in words, and training as a bar."""
    if as_json:
        yield lambda name, fields: print_json({"event": name, **fields})
        return
    with progress("Starting") as show:
        console = stderr()

        def told(name: str, fields: dict[str, Any]) -> None:
            if name == "steps":
                show(*_training(wishes, fields))
                return
            show(0, None, "Waiting")
            console.print(_line(name, fields), highlight=False, soft_wrap=True)

        yield told


def _training(wishes: Wishes, fields: dict[str, Any]) -> tuple[float, float, str]:
    """How far it is to the next look."""
    seconds = fields["seconds"] % wishes.seconds
    label = f"Training: step {fields['steps']}, loss {fields['loss']:.4f}"
    return seconds, wishes.seconds, label


def _line(name: str, fields: dict[str, Any]) -> str:
    words = {
        "started": "Trainer {key} on {network} at {url}, {device}",
        "waiting": "Waiting: {sentence}",
        "failed": "Failed, and will be tried again: {sentence}",
        "fetching": "Fetching the weights {base}",
        "training": "Training from score {score}; {required} less is needed",
        "look": "Looked after {steps} steps: hold-out {held_out:.0f}, before {held_out_before:.0f}",
        "found": "Found a score of {score}, better by {gain}",
        "nothing-found": "Nothing better was found; trying anew",
        "stopped": "Somebody was faster; what was begun is left",
        "committing": "Committing to weights {weights_root}",
        "revealing": "Revealing weights {weights_root}",
        "confirmed": "Confirmed: score {score} is on the chain since block {height}",
        "refuted": "Refuted: score {score} of block {height} did not last",
        "overtaken": "Overtaken: score {score} is not enough any more",
        "refused": "Refused: {sentence}",
        "opening": "Opening shard {shard}",
        "not-opened": "Shard {shard} could not be opened: {sentence}",
    }
    return words[name].format(**fields)
