"""`oda seed`, `oda fetch` and `oda torrents`: models and data, given and taken."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from channels.errors import UserError
from channels.settings import load_settings
from channels.terminal import (
    EXIT_CODES,
    ExitCode,
    JsonFlag,
    print_json,
    progress,
    run,
    stdout,
    stop_signals,
)
from torrent import settings as torrent_settings
from torrent.library import OWNER, Library, Status
from torrent.magnet import Magnet, Peer, check_url, parse_infohash
from torrent.progress import fetching
from torrent.proofs import MAX_SAMPLES
from torrent.settings import TorrentSettings

if TYPE_CHECKING:
    from rich.table import Table

    from torrent.swarm import Swarm

EXIT_CODES.update(
    {
        "fetch-stalled": ExitCode.UNREACHABLE,
        "not-complete": ExitCode.NOT_FOUND,
        "not-retrievable": ExitCode.NOT_FOUND,
    }
)

REFRESH: Final = 0.5

PeerOption = Annotated[
    list[str] | None, typer.Option("--peer", metavar="HOST:PORT", help="Who has it; repeatable.")
]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="Where peers reach us.")]


def mount(root: typer.Typer) -> None:
    root.command()(seed)
    root.command()(fetch)
    root.command()(torrents)
    root.command()(challenge)


def seed(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="None: all that was shared.")
    ] = None,
    port: PortOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Share directories with everybody until Ctrl-C; each gets its infohash from its bytes."""
    found = _settings(port=port)

    async def work(swarm: Swarm) -> None:
        magnets = []
        if directories:
            magnets = [await _publish(swarm, directory) for directory in directories]
        else:
            restored = await swarm.restore()
            magnets = [Magnet(infohash, (swarm.address,)) for infohash in restored]
        stop = stop_signals()
        _show_seeding(swarm, magnets, as_json)
        await stop.wait()

    run(_with_swarm(found, work))


def fetch(
    what: Annotated[str, typer.Argument(metavar="INFOHASH|MAGNET", help="What to fetch.")],
    peer: PeerOption = None,
    web_seed: Annotated[
        list[str] | None, typer.Option(help="An HTTP server that has it (BEP 19); repeatable.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="A directory with an earlier version, to update from.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Copy the files to this directory, which must be new.")
    ] = None,
    port: PortOption = None,
    and_seed: Annotated[bool, typer.Option("--seed", help="Then share it until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model or data by its infohash; what is interrupted goes on where it was."""
    magnet = _magnet(what, peer or (), web_seed or ())
    if to is not None and to.exists():
        raise UserError("already-exists", f"{to} exists already; name a new directory.")
    found = _settings(port=port)

    async def work(swarm: Swarm) -> None:
        with progress("Looking for peers") as show:
            path = await swarm.fetch(magnet, base=base, pin=OWNER, report=fetching(show))
        status = swarm.status(magnet.infohash)
        if to is not None:
            await asyncio.to_thread(shutil.copytree, path, to)
            path = to
        stop = stop_signals() if and_seed else None
        _show_fetched(swarm.address, path, status, as_json)
        if stop is not None:
            if not as_json:
                typer.echo(f"Seeding at {swarm.address} until Ctrl-C.")
            await stop.wait()

    run(_with_swarm(found, work))


def _magnet(what: str, peers: Sequence[str], web_seeds: Sequence[str]) -> Magnet:
    magnet = Magnet.parse(what)
    for url in web_seeds:
        check_url(url)
    return Magnet(
        magnet.infohash,
        (*magnet.peers, *(Peer.parse(text) for text in peers)),
        magnet.trackers,
        (*magnet.web_seeds, *web_seeds),
    )


def _show_fetched(address: Peer, path: Path, status: Status, as_json: bool) -> None:
    if not as_json:
        typer.echo(f"{path}  {_size(status.total)}, {_size(status.downloaded)} of it fetched")
        return
    print_json(
        {
            "infohash": status.infohash,
            "directory": path,
            "bytes": status.total,
            "downloaded": status.downloaded,
            "address": str(address),
        }
    )


def challenge(
    what: Annotated[str, typer.Argument(metavar="INFOHASH|MAGNET", help="What is held.")],
    web_seed: Annotated[
        list[str] | None, typer.Option(help="Who is asked, if the link names nobody; repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=MAX_SAMPLES, help="Random blocks.")] = 16,
    as_json: JsonFlag = False,
) -> None:
    """Ask the web seeds of a model for random blocks, with proofs: is it retrievable from them?"""
    magnet = _magnet(what, (), web_seed or ())
    if not magnet.web_seeds:
        raise UserError("no-web-seed", "Nobody is named who could be asked; add --web-seed URL.")

    async def ask() -> dict[str, int]:
        from torrent import webseed

        found = {}
        for url in magnet.web_seeds:
            answered = await webseed.challenge(url, magnet.infohash, samples=samples)
            found[url] = sum(len(each.blocks) for each in answered)
        return found

    found = run(ask())
    if as_json:
        print_json({"infohash": magnet.infohash.hex(), "retrievable": found})
        return
    for url, count in found.items():
        typer.echo(f"retrievable: {count} random blocks, from {url}")


def torrents(
    forget: Annotated[
        str | None, typer.Option(metavar="INFOHASH", help="Delete this one and its files.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what is shared and fetched here; on a terminal live, until Ctrl-C."""
    library = _library(_settings())
    if forget is not None:
        infohash = parse_infohash(forget)
        library.entry(infohash)
        library.claim(infohash).delete()
    shown = _statuses(library)
    if as_json:
        print_json({"torrents": shown, "directory": library.root, "bytes": library.used()})
        return
    console = stdout()
    if forget is not None or not console.is_terminal:
        console.print(_table(shown))
        return
    from rich.live import Live

    with Live(_table(shown), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH)
            live.update(_table(_statuses(library)), refresh=True)


def _statuses(library: Library) -> list[Status]:
    return [entry.status() for entry in library.entries()]


def _table(shown: list[Status]) -> Table:
    from rich.table import Table

    table = Table("infohash", "state", "done", "size", "down", "up", "peers", "sent", box=None)
    for status in shown:
        table.add_row(
            status.infohash[:16],
            status.error or status.state,
            f"{100 * status.done // status.total if status.total else 0} %",
            _size(status.total),
            f"{_size(status.download_rate)}/s",
            f"{_size(status.upload_rate)}/s",
            str(status.peers),
            _size(status.uploaded),
        )
    return table


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _show_seeding(swarm: Swarm, magnets: list[Magnet], as_json: bool) -> None:
    if as_json:
        shown = [{"infohash": each.infohash.hex(), "magnet": str(each)} for each in magnets]
        print_json({"address": str(swarm.address), "torrents": shown})
        return
    for magnet in magnets:
        typer.echo(f"{magnet.infohash.hex()}\n  {magnet}")
    if not magnets:
        typer.echo("Nothing was shared so far; name a directory.")
    typer.echo(f"Seeding at {swarm.address} until Ctrl-C.")


def _settings(**flags: Any) -> TorrentSettings:
    return torrent_settings.load(load_settings(), flags)


def _library(found: TorrentSettings) -> Library:
    return torrent_settings.library(load_settings(), found)


async def _with_swarm(found: TorrentSettings, work: Callable[[Swarm], Awaitable[None]]) -> None:
    from torrent.swarm import Swarm

    async with Swarm.of(load_settings(), found) as swarm:
        await work(swarm)


async def _publish(swarm: Swarm, directory: Path) -> Magnet:
    loop, seen = asyncio.get_running_loop(), 0
    with progress(f"Hashing {directory}") as show:

        def report(count: int) -> None:  # called in a thread
            nonlocal seen
            seen += count
            loop.call_soon_threadsafe(show, seen)

        return await swarm.publish(directory, report=report)
