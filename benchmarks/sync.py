"""How long a new node takes to have the chain of another, over a real WebSocket on loopback.

Two processes, each with its own SQLite file. Beside it stands what can't be avoided: decoding,
checking and connecting the same blocks in memory, in this process, in the same run.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from aiohttp import web

from benchmarks.chain import FREE, extend, feed, timed
from sidechain.chain import Chain, MemoryStore
from sidechain.node import ChainNode
from sidechain.peers import Peers
from sidechain.primitives import Block
from sidechain.store import SqliteStore

BLOCKS, TRANSACTIONS = 10_000, 3
LATER = FREE.genesis_time + FREE.spacing * (BLOCKS + 1)


def node(directory: Path) -> ChainNode:
    return ChainNode(FREE, SqliteStore(directory / "chain.sqlite"), now=lambda: LATER)


def write(directory: Path, blocks: list[bytes]) -> None:
    """A node's store with these blocks."""
    full = node(directory)
    with full.turn():
        for data in blocks:
            full.accept_block(Block.decode(data, FREE.block_bytes))
    assert full.chain.tip.height == len(blocks)
    full.store.close()


async def serve(directory: Path) -> None:
    """Say the port, and serve until stdin ends."""
    full = node(directory)
    peers = Peers(full)
    app = web.Application()
    app.add_routes(peers.routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    async with peers:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
    full.store.close()


async def sync(directory: Path, port: int, height: int) -> float:
    """Seconds from the first connection to the last block on disk."""
    full = node(directory)
    there = asyncio.Event()
    full.listen(lambda event: there.set() if full.chain.tip.height == height else None)
    async with Peers(full) as peers:
        start = perf_counter()
        await peers.connect("127.0.0.1", port)
        await there.wait()
        seconds = perf_counter() - start
    full.store.close()
    return seconds


async def measure(blocks: list[bytes]) -> float:
    with TemporaryDirectory() as name:
        one, other = Path(name) / "one", Path(name) / "other"
        for directory in (one, other):
            directory.mkdir()
        write(one, blocks)
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.sync",
            str(one),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert server.stdin is not None and server.stdout is not None  # they are pipes
        try:
            port = int(await server.stdout.readline())
            return await sync(other, port, len(blocks))
        finally:
            server.stdin.close()
            await server.wait()


def main() -> None:
    made = extend(Chain(FREE, MemoryStore()), BLOCKS, b"sync", txs=TRANSACTIONS - 1)
    blocks = [block.encode() for block in made]
    alone = timed(lambda: feed(Chain(FREE, MemoryStore()), blocks, LATER, 16))
    seconds = asyncio.run(measure(blocks))
    print(f"{BLOCKS:,} blocks of {TRANSACTIONS} transactions from another process, on disk:")
    print(f"  {seconds:.2f} s (wanted: under 10 s)")
    print(f"  = {seconds / alone:.2f} x checking them in memory alone ({alone:.2f} s)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(Path(sys.argv[1])))
    else:
        main()
