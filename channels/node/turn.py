"""Group commit: everything that happens between two turns of the loop shares one fsync.

Whoever changes state says what must follow (`after`), and nothing that follows happens before the
store has committed. That is the whole of "persist before it is sent", and where the speed comes
from: a burst of messages costs one write to disk. A turn from which nothing follows (a peer's
revoke_and_ack, say) waits for the next one's commit: were it lost, the peer would tell us again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from channels.node.store import Store

IDLE_SECONDS = 0.05
"""How long a change that nothing follows from may wait for a commit."""


class Turn:
    """Collects what must follow the next commit. Use from one event loop only."""

    def __init__(
        self, store: Store, closing: Callable[[], None], failed: Callable[[BaseException], None]
    ) -> None:
        """`closing` runs before the commit (it signs commitments and saves channels); `failed`
        is told when the store can't commit: then nothing was sent, and the node must stop."""
        self._store = store
        self._closing = closing
        self._failed = failed
        self._actions: list[Callable[[], None]] = []
        self._scheduled = False
        self._idle: asyncio.TimerHandle | None = None
        self._broken: BaseException | None = None

    def begin(self) -> None:
        """Something changed: end the turn once the loop has run what is ready now."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._end)

    def after(self, action: Callable[[], None]) -> None:
        """Run `action`, which must not raise, once all changes so far are on disk."""
        self._actions.append(action)
        self.begin()

    async def committed(self) -> None:
        """Return when all changes so far are on disk."""
        if self._broken is not None:
            raise self._broken
        done = asyncio.Event()
        self.after(done.set)
        await done.wait()
        if self._broken is not None:
            raise self._broken

    def _end(self) -> None:
        self._scheduled = False
        if self._broken is not None:
            return
        try:
            self._closing()
            if not self._actions and self._idle is None:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)
            if not self._actions:
                return
            self._store.commit()
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing may be sent after it
            self._broken = error
            self._failed(error)
            return
        self.stop()
        actions, self._actions = self._actions, []
        for action in actions:
            action()

    def stop(self) -> None:
        """Commit no more just because time passes."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _end_idle(self) -> None:
        self._idle = None
        self.after(_nothing)


def _nothing() -> None:
    """What follows a commit that only time asked for."""
