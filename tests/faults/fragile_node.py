"""The embedded node with a store that can kill it: `python -m tests.faults.fragile_node ARGS`.

A file `armed` in its directory that reads "N before" or "N after" kills the process, as by SIGKILL,
just before or just after its N-th commit from then on. After each commit the store is copied,
which is what a disk has that drops every write that was never synced; `lose_power` goes back to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from unittest import mock

from channels.node import __main__ as node
from channels.node.store import Store


class FragileStore(Store):
    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        self._left: int | None = None
        self._when = ""
        super().__init__(path)

    def commit(self) -> None:
        if not self._db.in_transaction:
            return
        self._count_down()
        if self._left == 0 and self._when == "before":
            _die()
        super().commit()
        keep(self._directory)
        if self._left == 0 and self._when == "after":
            _die()

    def _count_down(self) -> None:
        armed = self._directory / "armed"
        if self._left is None and armed.exists():
            count, self._when = armed.read_text().split()
            self._left = int(count)
            armed.unlink()
        if self._left is not None:
            self._left -= 1


def arm(directory: Path, count: int, when: str) -> None:
    """Let the node of this directory die at its `count`-th commit from now on."""
    draft = directory / "armed.new"
    draft.write_text(f"{count} {when}")
    draft.replace(directory / "armed")


def keep(directory: Path) -> None:
    """Copy what is on disk after a commit. There is one writer, and it is not writing."""
    # Two copies take turns, so that a kill in the middle leaves the older one whole.
    name = "copy-b" if _latest(directory) == "copy-a" else "copy-a"
    shutil.rmtree(directory / name, ignore_errors=True)
    (directory / name).mkdir()
    for path in (directory / "node.sqlite", directory / "node.sqlite-wal"):
        if path.exists():
            shutil.copy(path, directory / name / path.name)
    draft = directory / "durable.new"
    draft.write_text(name)
    draft.replace(directory / "durable")


def lose_power(directory: Path) -> None:
    """Put back what was durable when the process was killed."""
    for path in directory.glob("node.sqlite-*"):
        path.unlink()
    for path in (directory / _latest(directory)).iterdir():
        shutil.copy(path, directory / path.name)


def _latest(directory: Path) -> str:
    durable = directory / "durable"
    return durable.read_text() if durable.exists() else ""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with mock.patch.object(node, "Store", FragileStore):
        sys.exit(node.main())
