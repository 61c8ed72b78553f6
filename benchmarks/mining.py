"""How fast nonces are searched, beside two bare hashlib calls for each of them.

One core at a time, in turns, the fastest turn of each: a busy machine is fair to both. Then the
miner with all its processes, whose rate also shows what their pipes and the node's loop cost.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from sidechain import nonces
from sidechain.miner import Miner
from sidechain.node import ChainNode
from sidechain.params import MAIN
from sidechain.store import SqliteStore

CLEAN = multiprocessing.get_context("spawn")
HEADER = bytes(range(80))
SECONDS = 6.0
TURNS = 40
NEVER = replace(MAIN, pow_limit_bits=0x1A00FFFF)
"""2^56 hashes: no block is found meanwhile."""


def bare() -> float:
    """Hashes per second of hashing one header over and over, with nothing around it."""
    sha256, count = hashlib.sha256, nonces.HALF // nonces.PARTS
    start = time.perf_counter()
    for _ in range(count):
        sha256(sha256(HEADER).digest()).digest()
    return count / (time.perf_counter() - start)


def searching() -> float:
    start = time.perf_counter()
    _, hashes = nonces.search(HEADER[:76], 0, 0, 0)
    return hashes / (time.perf_counter() - start)


def bare_for(seconds: float) -> float:
    """What a miner's process would do with nothing but hashing, as politely as one."""
    os.nice(10)
    end, rates = time.monotonic() + seconds, []
    while time.monotonic() < end:
        rates.append(bare())
    return statistics.harmonic_mean(rates)


async def mining(seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder, SqliteStore(Path(folder) / "db") as store:
        node = ChainNode(NEVER, store, now=lambda: int(time.time()))
        miner = Miner(node, bytes(32))
        task = asyncio.create_task(miner.run())
        await asyncio.sleep(seconds)
        rate = miner.rate
        task.cancel()
        await asyncio.wait([task])
        return rate


def main() -> None:
    pairs = [(bare(), searching()) for _ in range(TURNS)]
    alone, found = (max(column) for column in zip(*pairs, strict=True))
    print(f"two bare hashlib calls: {alone / 1e6:.2f} MH/s on one core")
    print(f"searching nonces:       {found / 1e6:.2f} MH/s, {found / alone:.0%} of that")
    typical = statistics.median(search / hashing for hashing, search in pairs)
    print(f"  in the median of {TURNS} turns {typical:.0%} (wanted: 80 %)")
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, max_tasks_per_child=1, mp_context=CLEAN) as pool:
        limit = sum(pool.map(bare_for, [SECONDS] * cores))
    rate = asyncio.run(mining(SECONDS))
    print(f"bare calls in {cores} processes: {limit / 1e6:.2f} MH/s")
    print(f"the miner in as many:      {rate / 1e6:.2f} MH/s, {rate / limit:.0%} of that")


if __name__ == "__main__":
    main()
