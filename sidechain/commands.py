"""`oda node`: take part in the sidechain. `oda model` and `oda payee` are mounted here too."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Final

import typer

from channels.errors import UserError
from channels.settings import Settings, load_settings
from channels.terminal import EXIT_CODES, ExitCode, print_json, progress, run, stderr, stop_signals
from sidechain import model_commands, payee_commands, train_commands
from sidechain import settings as sidechain_settings
from sidechain.node_options import (
    ConnectOption,
    EmptyAfterOption,
    EventsFlag,
    PayToOption,
    PortOption,
    ProcessesOption,
)
from sidechain.settings import SidechainSettings

if TYPE_CHECKING:
    from channels.terminal import Progress
    from sidechain.events import Event
    from sidechain.light_node import LightNode
    from sidechain.node import ChainNode
    from sidechain.service import Running

EXIT_CODES.update(
    {
        "peer-banned": ExitCode.REFUSED,
        "no-proof": ExitCode.UNREACHABLE,
    }
)

REFRESH: Final = 1.0


def mount(root: typer.Typer) -> None:
    root.command()(node)
    root.command()(train_commands.train)
    root.add_typer(model_commands.app)
    root.add_typer(payee_commands.app)


def node(
    mine: Annotated[bool, typer.Option("--mine", help="Mine, on all cores.")] = False,
    light: Annotated[
        bool, typer.Option("--light", help="Headers and proofs alone: no blocks, no scoring.")
    ] = False,
    connect: ConnectOption = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.")] = None,
    port: PortOption = None,
    processes: ProcessesOption = None,
    empty_after: EmptyAfterOption = None,
    verify_all: Annotated[
        bool | None, typer.Option("--verify-all", help="Score what lies deep as well.")
    ] = None,
    pay_to: PayToOption = None,
    as_json: EventsFlag = False,
) -> None:
    """Run a node of the sidechain until Ctrl-C.

    It checks blocks and updates of models, keeps and serves what the chain has accepted, and
    answers on one port: peers, the API (/openapi.json), /events and /metrics.
    """
    if light and mine:
        raise UserError("bad-option", "A light node can't mine; leave out --light or --mine.")
    if not light:
        require_torch()
    flags: dict[str, object] = {
        "host": host,
        "port": port,
        "connect": tuple(connect) if connect else None,
        "processes": processes,
        "empty_after": empty_after,
        "verify_all": verify_all,
    }
    shared = load_settings()
    found = sidechain_settings.load(shared, flags)
    run(_run(shared, found, mine=mine, light=light, pay_to=pay_to, as_json=as_json))


def require_torch() -> None:
    """Raises UserError("not-installed"): scoring runs in another process, which can't say so."""
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("safetensors") is None:
        raise UserError(
            "not-installed",
            "A full node needs torch to check updates: pip install 'oda[train]', or use --light.",
        )


async def _run(
    shared: Settings,
    found: SidechainSettings,
    *,
    mine: bool,
    light: bool,
    pay_to: str | None,
    as_json: bool,
) -> None:
    import logging

    from sidechain import service

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    async with contextlib.AsyncExitStack() as stack:
        routes = await stack.enter_async_context(payee_commands.payout(shared, pay_to))
        opened = (
            service.light_node(shared, found, routes=routes)
            if light
            else service.full_node(shared, found, mine=mine, routes=routes)
        )
        running = await stack.enter_async_context(opened)
        _told(running, light, as_json)
        stop = stop_signals()
        showing = asyncio.create_task(_show(running))
        failing = asyncio.create_task(running.wait())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        finally:
            for task in (showing, failing, stopping):
                task.cancel()
            await asyncio.gather(showing, failing, stopping, return_exceptions=True)


def _told(running: Running, light: bool, as_json: bool) -> None:
    """Say where it is, and from now on what happens."""
    node, around = running.node, running.around
    if not as_json:
        kind = "Light node" if light else "Node"
        stderr().print(f"{kind} of {node.params.name} at {running.url} (Ctrl-C stops it)")
        return
    print_json(
        {
            "event": "started",
            "url": running.url,
            "network": node.params.name,
            "light": light,
            "key": around.key.hex() if around.key else None,
            "swarm": around.swarm,
        }
    )
    from sidechain.feed import shown

    def hear(event: Event) -> None:
        print_json(shown(node, event))

    node.listen(hear)


async def _show(running: Running) -> None:
    """One line on a terminal: how far the sync is, then what the node does."""
    with progress("Looking for peers") as show:
        while True:
            _line(running, show)
            await asyncio.sleep(REFRESH)


def _line(running: Running, show: Progress) -> None:
    node, around = running.node, running.around
    height, best = _heights(node)
    words = [f"{len(around.peers.infos())} peers"]
    if around.miner is not None:
        words.append(f"{_rate(around.miner.rate)}, {around.miner.blocks} blocks mined")
    if around.scorer is not None and around.scorer.jobs:
        words.append(f"scoring {len(around.scorer.jobs)}")
    state = "Height" if height == best else "Syncing, height"
    show(height, best or None, f"{state} {height} of {best}; {', '.join(words)}")


def _heights(node: ChainNode | LightNode) -> tuple[int, int]:
    from sidechain.node import ChainNode

    if isinstance(node, ChainNode):
        return node.chain.tip.height, node.chain.headers.best.height
    return node.headers.best.height, node.headers.best.height


def _rate(hashes: float) -> str:
    for unit in ("H/s", "kH/s", "MH/s"):
        if hashes < 1000:
            return f"{hashes:.1f} {unit}"
        hashes /= 1000
    return f"{hashes:.1f} GH/s"
