"""Group commit: everything that happens between two turns of the loop shares one fsync.

Whoever changes state says what must follow (`after`), and nothing that follows happens before the
store has committed. That is the whole of "persist before it is sent", and where the speed comes
from: a burst of messages costs one write to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from channels.node.store import Store


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
            self._store.commit()
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing may be sent after it
            self._broken = error
            self._failed(error)
            return
        actions, self._actions = self._actions, []
        for action in actions:
            action()
