"""The search for nonces: one process per core, which does nothing else.

Run as a script (`python -I -S nonces.py`) it needs the standard library alone and starts in a few
milliseconds. Jobs come in on stdin, the newest counts; what was found goes out on stdout. When
stdin ends, however its owner died, the process ends too.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

HALF: Final = 1 << 16
"""A nonce has two halves. The header with the lower one is hashed once and copied for each upper
one: copying what is hashed already, and only that, is quicker than hashing all 80 bytes."""

_UPPER: Final = [half.to_bytes(2, "little") for half in range(HALF)]
PARTS: Final = 4
"""Between the parts of a round the process looks for a new job: every 10 ms or so."""

_SIZE: Final = HALF // PARTS
_PARTS: Final = [_UPPER[start : start + _SIZE] for start in range(0, HALF, _SIZE)]
REPORT: Final = 0.5
"""Seconds of searching between two reports of progress."""


class Kind(IntEnum):
    """What a report is. All say how many hashes were done since the last one."""

    PROGRESS = 0
    FOUND = 1
    EXHAUSTED = 2


@dataclass(frozen=True, slots=True)
class Job:
    """`head`: the header's first 76 bytes; `target`: the largest hash that will do; `rounds`: how
    many lower halves to try, HALF for all nonces and 0 for no work at all."""

    number: int
    head: bytes
    target: int
    rounds: int = HALF

    FRAME = struct.Struct("<Q76s32sI")

    def encode(self) -> bytes:
        target = self.target.to_bytes(32, "big")
        return self.FRAME.pack(self.number, self.head, target, self.rounds)

    @classmethod
    def decode(cls, data: bytes) -> Job:
        number, head, target, rounds = cls.FRAME.unpack(data)
        return cls(number, head, int.from_bytes(target, "big"), rounds)


@dataclass(frozen=True, slots=True)
class Report:
    job: int
    kind: Kind
    nonce: int
    hashes: int

    FRAME = struct.Struct("<QBIQ")

    def encode(self) -> bytes:
        return self.FRAME.pack(self.job, self.kind, self.nonce, self.hashes)

    @classmethod
    def decode(cls, data: bytes) -> Report:
        job, kind, nonce, hashes = cls.FRAME.unpack(data)
        return cls(job, Kind(kind), nonce, hashes)


def search(head: bytes, target: int, lower: int, part: int) -> tuple[int | None, int]:
    """The first nonce of a part of a round whose header hashes to at most the target, or None;
    and how many hashes that took."""
    sha256 = hashlib.sha256
    copy = sha256(head + lower.to_bytes(2, "little")).copy
    # Read as Bitcoin reads it, a hash's last byte is its highest: most of them end here.
    highest = target >> 248
    for upper in _PARTS[part]:
        first = copy()
        first.update(upper)
        found = sha256(first.digest()).digest()
        if found[31] <= highest and int.from_bytes(found, "little") <= target:
            half = int.from_bytes(upper, "little")
            return half << 16 | lower, half - part * _SIZE + 1
    return None, _SIZE


class Search:
    """Works off jobs from one pipe and reports into another, until the first is closed."""

    def __init__(self, jobs: int, reports: int) -> None:
        self._jobs = jobs
        self._reports = reports
        self._read = b""
        self._job: Job | None = None
        self._step = 0
        self._hashes = 0
        self._reported = 0.0

    def run(self) -> None:
        while self._take():
            job = self._job
            if job is None:
                continue
            lower, part = divmod(self._step, PARTS)
            if lower >= job.rounds:
                self._end(job, Kind.EXHAUSTED)
                continue
            nonce, hashes = search(job.head, job.target, lower, part)
            self._step += 1
            self._hashes += hashes
            if nonce is not None:
                self._end(job, Kind.FOUND, nonce)
            elif time.monotonic() - self._reported >= REPORT:
                self._report(job, Kind.PROGRESS)

    def _take(self) -> bool:
        """Take the newest job, if there is a new one; wait for one where there is no work."""
        wait = None if self._job is None else 0
        while select.select([self._jobs], [], [], wait)[0]:
            data = os.read(self._jobs, 1 << 16)
            if not data:
                return False
            self._read += data
            whole = len(self._read) // Job.FRAME.size * Job.FRAME.size
            if whole:
                newest = Job.decode(self._read[whole - Job.FRAME.size : whole])
                self._read = self._read[whole:]
                self._job = newest if newest.rounds else None
                self._step, self._reported = 0, time.monotonic()
                wait = 0 if newest.rounds else None
        return True

    def _end(self, job: Job, kind: Kind, nonce: int = 0) -> None:
        self._report(job, kind, nonce)
        self._job = None

    def _report(self, job: Job, kind: Kind, nonce: int = 0) -> None:
        os.write(self._reports, Report(job.number, kind, nonce, self._hashes).encode())
        self._hashes, self._reported = 0, time.monotonic()


def main() -> None:
    # Whoever started this decides when it ends, and everything else on the machine goes first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    try:
        Search(0, 1).run()
    except BrokenPipeError:
        return  # the owner is gone


if __name__ == "__main__":
    main()
