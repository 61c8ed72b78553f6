"""Who may be answered at the same time, and how many may wait for that."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Places:
    """size: answers at the same time. queue: how many more may wait before the next is refused.

    Nobody is refused who waits already, or who comes back after waiting for a payment.
    """

    def __init__(self, size: int, queue: int = 0) -> None:
        self._semaphore = asyncio.Semaphore(size)
        self._queue = queue
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        return self._semaphore.locked() and self._waiting >= self._queue

    async def acquire(self) -> None:
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    def release(self) -> None:
        self._semaphore.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
