"""`oda train`: improve a model of the chain, and be paid for it by every later inference."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
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
from sidechain.settings import Key, SidechainSettings

if TYPE_CHECKING:
    from sidechain.attempts import Wishes
    from sidechain.model.world import World
    from sidechain.node import ChainNode
    from sidechain.service import Running
    from sidechain.shard_keys import ShardKeys

EXIT_CODES.update({"trainer-is-opener": ExitCode.USAGE, "bad-data": ExitCode.USAGE})

BEHIND: Final = 2
"""Blocks that a node may lack and yet train: some may be headers that nobody has a body of."""

Told = Callable[[str, dict[str, Any]], None]


def train(
    model: Annotated[str, typer.Argument(help="The model's identity, 64 hex digits.")],
    connect: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="A node to stay connected to; repeatable."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Mine as well.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="How many mine.")] = None,
    empty_after: Annotated[
        float | None, typer.Option(help="Seconds to an empty block; negative: none.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.05, help="Of training before each look at the hold-out.")
    ] = 20.0,
    patience: Annotated[
        int, typer.Option(min=1, help="Looks without progress that end an attempt.")
    ] = 4,
    rate: Annotated[
        float | None, typer.Option(min=1e-9, help="Adam's learning rate. [default: by the model]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch's name. [default: a GPU if there is one]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(exists=True, help="More to learn from: a text, .csv or .npz of your own."),
    ] = None,
    target: TargetOption = None,
    divide_by: DivideOption = 1.0,
    shard_keys: Annotated[
        Path | None,
        typer.Option("--open", metavar="KEYS", help="Open a shard for each version that waits."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End with the first success.")] = False,
    pay_to: Annotated[
        str | None,
        typer.Option(metavar="NODE", help="Answer payers with invoices of this Lightning node."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as one JSON document per line.")
    ] = False,
) -> None:
    """Improve a model until Ctrl-C: train, commit, reveal, and go on from the best there is.

    It runs a full node, which gives the weights to others. Killed or not, it goes on where it was.
    Under torchrun all processes train together: torchrun --nproc-per-node=2 --no-python oda train …
    """
    from sidechain.commands import require_torch

    require_torch()
    from sidechain.model import together, world
    from sidechain.shard_keys import ShardKeys

    identity = bytes.fromhex(hex32(model))
    flags: dict[str, object] = {
        "port": port,
        "connect": tuple(connect) if connect else None,
        "processes": processes,
        "empty_after": empty_after,
    }
    shared = load_settings()
    found = sidechain_settings.load(shared, flags)
    table = Table(divide_by, target=target)
    with world.join() as joined:
        chosen = together.best_device(joined, device)
        if not joined.leads:
            _follow(joined, chosen)
            return
        from sidechain.attempts import Wishes

        folder = sidechain_settings.directory(shared) / "training" / identity.hex()
        wishes = Wishes(folder, seconds, patience, rate, chosen, data, table, once)
        keys = None if shard_keys is None else ShardKeys.read(shard_keys)
        work = _train(shared, found, identity, wishes, joined, keys, mine, pay_to, as_json)
        run(work)


def _follow(world: World, device: str) -> None:
    """Ctrl-C and torchrun's SIGTERM go to all processes; process 0 lets the others go."""
    from sidechain.model import together

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    together.follow(world, device)


async def _train(
    shared: Settings,
    found: SidechainSettings,
    model: bytes,
    wishes: Wishes,
    world: World,
    keys: ShardKeys | None,
    mine: bool,
    pay_to: str | None,
    as_json: bool,
) -> None:
    import logging

    from sidechain import service
    from sidechain.node import ChainNode
    from sidechain.opener import Opener
    from sidechain.trainer import Trainer

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    async with contextlib.AsyncExitStack() as stack:
        routes = await stack.enter_async_context(payee_commands.payout(shared, pay_to))
        opened = service.full_node(shared, found, mine=mine, routes=routes)
        running = await stack.enter_async_context(opened)
        node, scorer, swarm = running.node, running.around.scorer, running.swarm
        assert isinstance(node, ChainNode) and scorer is not None and swarm is not None
        told = stack.enter_context(_telling(wishes, as_json))
        trainer = Trainer(
            node,
            swarm,
            scorer.directory,
            secret=Key.load(shared).secret,
            model=model,
            wishes=wishes,
            synced=lambda: _is_synced(node, running, bool(found.connect)),
            offer_again=running.around.peers.offer_again,
            told=told,
            world=world,
        )
        told(
            "started",
            {
                "url": running.url,
                "swarm": running.around.swarm,
                "network": node.params.name,
                "key": trainer.key.hex(),
                "model": model.hex(),
                "device": wishes.device,
                "processes": world.size,
            },
        )
        works = [trainer.run(), running.wait(), _stopped(stop_signals())]
        if keys is not None:
            works.append(Opener(node, model, keys, told).run())
        await _until_first(*works)


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
