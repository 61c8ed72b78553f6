"""Mining: templates from the node, nonces from one process per core."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from channels.errors import UserError
from sidechain import nonces, pow
from sidechain.node import ChainNode, Event, ScoreAdded, TipChanged, TransactionAdded
from sidechain.nonces import HALF, Job, Kind, Report
from sidechain.primitives import Block, Producer
from sidechain.reasons import Rejection

REFRESH: Final = 30.0
"""Seconds after which a template gets the time of day, if nothing else renews it."""

CALM: Final = 1.0
"""The least seconds between two templates for the sake of new transactions."""

WINDOW: Final = 10.0
"""Seconds over which the rate is measured."""

RESTART: Final = 1.0
NONE: Final = Job(0, bytes(76), 0, 0)


class Miner:
    """Mines for `key` (x-only) while it runs, on all cores unless told otherwise.

    A block with transactions is mined at once, one without when no block came for `empty_after`
    seconds: 0 is always, None never, which is what regtest wants. Nothing is mined for `pause`
    seconds after a block. `rounds` of HALF nonces are searched before time and Producer are rolled.
    """

    def __init__(
        self,
        node: ChainNode,
        key: bytes,
        processes: int | None = None,
        *,
        extra: bytes = b"",
        empty_after: float | None = 0,
        pause: float = 0,
        rounds: int = HALF,
    ) -> None:
        self.blocks = 0
        """How many were found and accepted."""
        self.template: Block | None = None
        """What a nonce is searched for, but for the Producer's stamp; None while nothing is."""
        self._node = node
        self._key = key
        self._extra = extra
        self._empty_after = empty_after
        self._pause = pause
        self._rounds = rounds
        self._workers: list[Process | None] = [None] * (processes or os.cpu_count() or 1)
        self._jobs: dict[int, Block] = {}
        self._numbers = 0
        self._hashes: deque[tuple[float, int]] = deque()
        self._started = 0.0
        self._moved = 0.0
        self._renewed = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Mine until cancelled. What else ends it (a disk that is full, say) is raised, in an
        ExceptionGroup."""
        self._started = time.monotonic()
        # A chain that was at rest when we came needs no pause.
        self._moved = self._started - self._pause
        unlisten = self._node.listen(self._hear)
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(self.processes):
                    tasks.create_task(self._serve(index))
                tasks.create_task(self._renewing())
                self._due.set()
        finally:
            unlisten()
            self._put_off()

    @property
    def processes(self) -> int:
        return len(self._workers)

    @property
    def rate(self) -> float:
        """Hashes per second of all processes, over the last seconds."""
        now = time.monotonic()
        while self._hashes and self._hashes[0][0] < now - WINDOW:
            self._hashes.popleft()
        seconds = min(WINDOW, now - self._started)
        return sum(hashes for _, hashes in self._hashes) / seconds if seconds > 0 else 0.0

    @property
    def pids(self) -> list[int]:
        """Of the processes that are up."""
        return [worker.pid for worker in self._workers if worker is not None]

    # --- templates -------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self._moved = time.monotonic()
            self._jobs.clear()
            self._renew_in(0)
        elif isinstance(event, TransactionAdded | ScoreAdded):
            self._renew_in(max(0.0, self._renewed + CALM - time.monotonic()))

    def _renew_in(self, seconds: float) -> None:
        """Renew so soon, or sooner if that was said already."""
        due = time.monotonic() + seconds
        if seconds <= 0:
            self._due.set()
        elif self._timer is None or due < self._timer.when():
            self._put_off()
            self._timer = asyncio.get_running_loop().call_at(due, self._due.set)

    def _put_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _renewing(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._put_off()
            self._renew()

    def _renew(self) -> None:
        """Give all processes a new template, or let them rest."""
        self._renewed = time.monotonic()
        # What was found for the template before is as good, unless the tip has moved.
        oldest = self._numbers - self.processes
        self._jobs = {n: block for n, block in self._jobs.items() if n > oldest}
        self.template, wait = self._choose()
        if wait is not None:
            self._renew_in(wait)
        for index in range(self.processes):
            self._give(index)

    def _choose(self) -> tuple[Block | None, float | None]:
        """What to mine now, if anything, and in how many seconds to ask again."""
        idle = self._renewed - self._moved
        if idle < self._pause:
            return None, self._pause - idle
        try:
            template = self._node.template(self._key, self._extra)
        except UserError:
            return None, CALM  # the tip can't be built on yet
        if len(template.transactions) == 1 and self._empty_after != 0:
            if self._empty_after is None:
                return None, None
            if idle < self._empty_after:
                return None, self._empty_after - idle
        return template, REFRESH

    def _give(self, index: int) -> None:
        worker = self._workers[index]
        if worker is None or worker.stdin is None or worker.stdin.is_closing():
            return
        job = NONE
        if self.template is not None:
            self._numbers += 1
            block = _rolled(self.template)
            target = pow.target_of(block.header.bits)
            assert target is not None  # the chain's own bits
            job = Job(self._numbers, block.header.encode()[:76], target, self._rounds)
            self._jobs[job.number] = block
        worker.stdin.write(job.encode())

    # --- processes -------------------------------------------------------------------------------

    async def _serve(self, index: int) -> None:
        """Keep one process at work; one that dies is followed by another."""
        command = (sys.executable, "-I", "-S", str(Path(nonces.__file__)))
        while True:
            worker = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=None
            )
            self._workers[index] = worker
            try:
                self._give(index)
                await self._read(index, worker)
            finally:
                self._workers[index] = None
                if worker.returncode is None:
                    worker.kill()
                await worker.wait()
            await asyncio.sleep(RESTART)

    async def _read(self, index: int, worker: Process) -> None:
        assert worker.stdout is not None  # a pipe was asked for
        while True:
            try:
                data = await worker.stdout.readexactly(Report.FRAME.size)
            except asyncio.IncompleteReadError:
                return
            report = Report.decode(data)
            self._hashes.append((time.monotonic(), report.hashes))
            if report.kind is Kind.FOUND:
                self._found(report)
            elif report.kind is Kind.EXHAUSTED and report.job in self._jobs:
                self._renew_in(0)

    def _found(self, report: Report) -> None:
        block = self._jobs.get(report.job)
        if block is None:
            return  # the tip has moved since
        header = msgspec.structs.replace(block.header, nonce=report.nonce)
        try:
            self._node.accept_block(Block(header, block.transactions))
        except Rejection:
            # The node has written down why, and a new template will be right.
            self._renew_in(CALM)
        else:
            self.blocks += 1
            self._renew_in(0)


def _rolled(template: Block) -> Block:
    """The same block with a stamp that no other process searches under."""
    producer, *others = template.transactions
    assert isinstance(producer, Producer)  # template() put it there
    transactions = (
        msgspec.structs.replace(producer, stamp_nonce=secrets.randbits(62)),
        *others,
    )
    block = Block(template.header, transactions)
    header = msgspec.structs.replace(block.header, merkle_root=block.merkle_root())
    return Block(header, transactions)
