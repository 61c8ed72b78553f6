"""Swarms for tests: honest nodes, in this process or in one that can be killed, and others."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import libtorrent as lt

from torrent import files
from torrent.library import Library
from torrent.magnet import Magnet, Peer
from torrent.session import Options, settings_pack
from torrent.swarm import Swarm

QUOTA = 1 << 30


@asynccontextmanager
async def node(folder: Path, *, quota: int = QUOTA, **options: Any) -> AsyncIterator[Swarm]:
    stall = options.pop("stall", 20)
    async with Swarm(Library(folder, quota), Options(**options), stall=stall) as swarm:
        yield swarm


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A node in a process of its own; see `main` below. Killed -9 at the end of the block."""
    command = [sys.executable, "-m", "tests.torrent.nodes", str(folder), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def told(started: subprocess.Popen[str]) -> Any:
    """The next thing that the process says."""
    assert started.stdout is not None
    line = started.stdout.readline()
    return json.loads(line) if line else None


@contextmanager
def stranger(folder: Path, metainfo: bytes, *, checks: bool = True) -> Iterator[Peer]:
    """Bare libtorrent. With `checks` it has all files; else it knows the metadata alone."""
    params = lt.load_torrent_buffer(metainfo)
    params.save_path = str(folder)
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    session = lt.session(cast("lt.settings_pack", settings_pack(Options())))
    handle = session.add_torrent(params)
    while checks and not handle.status().is_seeding:
        session.wait_for_alert(50)
        session.pop_alerts()
    yield Peer("127.0.0.1", session.listen_port())
    session.pause()


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


async def main() -> None:
    """Say what happens, and stay. Arguments: FOLDER publish DIR, FOLDER publish-half DIR, or
    FOLDER fetch MAGNET LIMIT FSIZE."""
    folder, what, argument, *numbers = sys.argv[1:]
    limit, biggest = (int(number) for number in numbers or ("0", "0"))
    if biggest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (biggest, biggest))

    def say(**fields: object) -> None:
        print(json.dumps(fields), flush=True)

    async with node(Path(folder), download_limit=limit) as swarm:
        if what == "publish-half":

            def stop(path: Path, piece: int, report: files.Report = files.ignore) -> NoReturn:
                say(copied=path.exists())
                threading.Event().wait()
                raise AssertionError

            # A place to be killed at, between copying and hashing.
            setattr(files, "hash_file", stop)  # noqa: B010 # mypy knows that it never returns
            what = "publish"
        if what == "publish":
            say(magnet=str(await swarm.publish(Path(argument))))
        else:
            magnet = Magnet.parse(argument)
            last = -1

            def report(status: Any) -> None:
                nonlocal last
                if status.done != last:
                    last = status.done
                    say(done=status.done, total=status.total)

            try:
                await swarm.fetch(magnet, report=report)
                say(address=str(swarm.address))
            except Exception as error:  # noqa: BLE001 # told to the test, which looks at it
                say(error=getattr(error, "reason", repr(error)), message=str(error))
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
