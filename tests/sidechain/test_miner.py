from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from sidechain import miner, nonces, pow
from sidechain.miner import Miner
from sidechain.node import ChainNode, Event, TipChanged
from sidechain.nonces import PARTS, Job, Kind, Report
from sidechain.params import Params
from sidechain.primitives import Block, Header, sha256d
from sidechain.store import SqliteStore
from sidechain.validation import check_block
from tests.nodes import until
from tests.sidechain.world import ALICE, BOB, MINER, QUICK, World, h, register

EASY = pow.target_of(0x1F7FFFFF) or 0
"""One hash in 512."""

HARD = replace(QUICK, pow_limit_bits=0x1E3FFFFF)
"""One hash in 2^18: a process finds a block in a quarter of a second."""

HOPELESS = SimpleNamespace(target_of=lambda bits: 0)
"""Instead of sidechain.pow: no process ever finds a thing."""

HEAD = Header(1, h("parent"), h("root"), 7, 0x1F7FFFFF, 0).encode()[:76]


# --- one process ---------------------------------------------------------------------------------


def test_a_nonce_is_found_where_there_is_one() -> None:
    size = nonces.HALF // PARTS
    found = 0
    for part in range(PARTS):
        expected = [
            upper << 16 | 5
            for upper in range(part * size, (part + 1) * size)
            if int.from_bytes(sha256d(HEAD + (upper << 16 | 5).to_bytes(4, "little")), "little")
            <= EASY
        ]
        nonce, hashes = nonces.search(HEAD, EASY, 5, part)
        assert nonce == expected[0] and hashes == (nonce >> 16) - part * size + 1
        found += len(expected)
    assert 64 < found < 256  # about 128
    assert nonces.search(HEAD, 0, 5, 0) == (None, size)


def test_the_frames_hold_what_they_hold() -> None:
    job = Job((1 << 64) - 1, HEAD, (1 << 256) - 1, nonces.HALF)
    assert Job.decode(job.encode()) == job
    report = Report(9, Kind.FOUND, (1 << 32) - 1, 1 << 40)
    assert Report.decode(report.encode()) == report


class Process:
    """The searching process, spoken to through its pipes."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", nonces.__file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def give(self, *jobs: Job) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(job.encode() for job in jobs))
        self.process.stdin.flush()

    def report(self) -> Report:
        assert self.process.stdout is not None
        return Report.decode(self.process.stdout.read(Report.FRAME.size))


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    with process.process:
        process.process.kill()


def test_the_newest_job_counts(process: Process) -> None:
    hopeless = Job(1, HEAD, 0)
    process.give(hopeless)
    assert process.report().kind is Kind.PROGRESS  # it is at it
    process.give(hopeless, Job(2, HEAD, EASY), Job(3, HEAD, EASY))
    while (report := process.report()).kind is Kind.PROGRESS:
        assert report.job == 1
    assert (report.job, report.kind) == (3, Kind.FOUND)
    hash_ = sha256d(HEAD + report.nonce.to_bytes(4, "little"))
    assert int.from_bytes(hash_, "little") <= EASY


def test_half_a_job_is_waited_for(process: Process) -> None:
    data = Job(1, HEAD, EASY).encode()
    assert process.process.stdin is not None
    for part in (data[:50], data[50:]):
        process.process.stdin.write(part)
        process.process.stdin.flush()
    assert process.report().kind is Kind.FOUND


def test_a_job_without_a_nonce_comes_to_its_end(process: Process) -> None:
    process.give(Job(4, HEAD, 0, rounds=2))
    hashes = 0
    while (report := process.report()).kind is Kind.PROGRESS:
        hashes += report.hashes
    assert report == Report(4, Kind.EXHAUSTED, 0, 2 * nonces.HALF - hashes)


@pytest.mark.parametrize("job", [None, miner.NONE, Job(1, HEAD, 0)])
def test_a_process_ends_with_its_owner(process: Process, job: Job | None) -> None:
    """At rest and at work."""
    if job is not None:
        process.give(job)
    assert process.process.stdin is not None
    process.process.stdin.close()
    assert process.process.wait(30) == 0


OWNER = """
import asyncio, sys, time
from pathlib import Path
from sidechain.miner import Miner
from sidechain.node import ChainNode
from sidechain.store import SqliteStore
from sidechain.validation import check_block
from tests.sidechain.test_miner import HARD

async def main():
    with SqliteStore(Path(sys.argv[1])) as store:
        node = ChainNode(HARD, store, now=lambda: int(time.time()))
        miner = Miner(node, bytes(32), 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(miner.run())
            while len(miner.pids) < 2 or miner.rate == 0:
                await asyncio.sleep(0.02)
            print(*miner.pids, flush=True)
            await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_no_process_outlives_a_killed_node(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "chain.sqlite")]
    # All of them write their errors to one pipe: it ends when the last of them has.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stderr is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        for pid in pids:
            os.kill(pid, 0)
        owner.send_signal(signal.SIGKILL)
        assert owner.stderr.read() == b""
    assert len(pids) == 2


def clock() -> int:
    return int(time.time())


# --- the miner -----------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ChainNode]]:
    stores: list[SqliteStore] = []

    def node(params: Params = QUICK, now: Callable[[], int] = clock) -> ChainNode:
        stores.append(SqliteStore(tmp_path / str(len(stores)) / "chain.sqlite"))
        return ChainNode(params, stores[-1], now=now)

    yield node
    for store in stores:
        store.close()


@asynccontextmanager
async def running(miner: Miner) -> AsyncIterator[Miner]:
    task = asyncio.create_task(miner.run())
    try:
        yield miner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert miner.pids == []


async def height(node: ChainNode, least: int) -> None:
    reached = asyncio.Event()

    def look(event: Event) -> None:
        if isinstance(event, TipChanged) and node.chain.tip.height >= least:
            reached.set()

    unlisten = node.listen(look)
    if node.chain.tip.height < least:
        async with asyncio.timeout(30):
            await reached.wait()
    unlisten()


async def test_it_mines_on_and_on(make: Callable[..., ChainNode]) -> None:
    node = make()
    tx = register(QUICK, ALICE)
    async with running(Miner(node, MINER.key, 2, extra=b"hello")) as mining:
        await height(node, 3)
        node.accept_transaction(tx)
        mined = node.chain.tip.height

        async def taken() -> bool:
            return len(node.mempool) == 0

        await until(taken, "the transaction is mined")
        assert mining.blocks == node.chain.tip.height > mined
        assert mining.rate > 0
    tip = node.chain.state.tip()
    assert tip is not None and tip.producer == MINER.key
    assert node.chain.state.payee(ALICE.key) is not None and not node.rejections


async def test_it_rolls_when_nonces_run_out(make: Callable[..., ChainNode]) -> None:
    times = iter(range(QUICK.genesis_time + 1, QUICK.genesis_time + 1000))
    node = make(now=lambda: next(times))
    templates = []
    ask = node.template

    def counted(key: bytes, extra: bytes) -> Block:
        templates.append(ask(key, extra))
        return templates[-1]

    rolled = []
    roll = miner._rolled

    def noted(template: Block) -> Block:
        rolled.append(roll(template))
        return rolled[-1]

    async def three() -> bool:
        return len(templates) > 2

    with (
        patch("sidechain.miner.pow", HOPELESS),
        patch.object(node, "template", counted),
        patch.object(miner, "_rolled", noted),
    ):
        async with running(Miner(node, MINER.key, 1, rounds=1)):
            await until(three, "nonces run out twice")
    assert len({block.header.time for block in templates}) == len(templates)
    assert len({block.header.merkle_root for block in rolled}) == len(rolled) > 2
    for block in rolled:
        check_block(QUICK, block)


async def test_on_demand_it_waits_for_transactions(make: Callable[..., ChainNode]) -> None:
    node = make()
    async with running(Miner(node, MINER.key, 1, empty_after=None)) as mining:
        for number, who in enumerate((ALICE, BOB), 1):
            node.accept_transaction(register(QUICK, who))
            await height(node, number)
            await asyncio.sleep(0)  # the miner hears of it in its own time
            await asyncio.sleep(0)
            assert mining.template is None and len(node.mempool) == 0
        assert mining.blocks == node.chain.tip.height == 2


async def test_on_demand_it_can_mine_empty_blocks_after_a_while(
    make: Callable[..., ChainNode],
) -> None:
    node = make()
    started = time.monotonic()
    async with running(Miner(node, MINER.key, 1, empty_after=0.1)):
        await height(node, 3)
    assert time.monotonic() - started >= 0.3


async def test_a_pause_follows_each_block(make: Callable[..., ChainNode]) -> None:
    node = make()
    node.accept_transaction(register(QUICK, ALICE))
    started = time.monotonic()
    async with running(Miner(node, MINER.key, 2, pause=0.1)):
        await height(node, 3)
    assert time.monotonic() - started >= 0.2


async def test_a_new_tip_is_mined_on_at_once(make: Callable[..., ChainNode]) -> None:
    world = World()
    node = make(now=lambda: world.now)
    with patch("sidechain.miner.pow", HOPELESS):
        async with running(Miner(node, MINER.key, 1)) as mining:

            async def at_work() -> bool:
                return mining.rate > 0

            for _ in range(2):
                await until(at_work, "it works on a block")
                block = world.mine()
                node.accept_block(block)
                # No timer stands between the tip and the new job, only turns of the loop.
                for _ in range(3):
                    await asyncio.sleep(0)
                assert mining.template is not None and mining.template.header.prev == block.hash


async def test_a_process_that_dies_is_replaced(make: Callable[..., ChainNode]) -> None:
    node = make(HARD)
    with patch.object(miner, "RESTART", 0):
        async with running(Miner(node, MINER.key, 1)) as mining:

            async def up() -> bool:
                return bool(mining.pids)

            await until(up, "a process is up")
            (pid,) = mining.pids
            os.kill(pid, signal.SIGKILL)
            await height(node, 1)
            assert mining.pids != [pid]


async def test_a_node_that_has_failed_ends_its_miner(make: Callable[..., ChainNode]) -> None:
    node = make()
    full = OSError("the disk is full")
    with (
        patch.object(SqliteStore, "commit", side_effect=full),
        pytest.raises(ExceptionGroup) as caught,
    ):
        await Miner(node, MINER.key, 1).run()
    assert caught.value.exceptions == (full,)


async def test_nothing_is_mined_on_trust(make: Callable[..., ChainNode]) -> None:
    world = World(replace(QUICK, assume_scored_depth=3))
    world.model()
    world.wait(4)
    node = make(world.params, now=lambda: world.now)
    with node.turn():
        for record in list(world.chain.tip.chain())[-2::-1]:
            block = world.chain.block(record.hash)
            assert block is not None
            node.accept_block(block)
    (request,) = node.wanted()
    async with running(Miner(node, MINER.key, 1)) as mining:

        async def up() -> bool:
            return bool(mining.pids)

        await until(up, "a process is up")
        assert mining.template is None and mining.blocks == 0
        node.scored(request, world.truth.public[request])  # type: ignore[index] # a ScoreRequest
        await height(node, 6)
