"""When a turn's changes go to disk."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from channels.node.store import Store
from channels.node.turn import Turn


class Commits:
    """Stands for the store."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    def commit(self) -> None:
        if self.error is not None:
            raise self.error
        self.count += 1


def made(commits: Commits) -> tuple[Turn, list[BaseException]]:
    failures: list[BaseException] = []
    return Turn(cast(Store, commits), lambda: None, failures.append), failures


async def ended() -> None:
    """The loop has run what was ready, and what that made ready."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_follows_waits_for_the_commit_and_shares_it() -> None:
    commits = Commits()
    turn, _ = made(commits)
    seen: list[int] = []
    for _ in range(3):
        turn.after(lambda: seen.append(commits.count))
    assert seen == []
    await ended()
    assert (commits.count, seen) == (1, [1, 1, 1])


async def test_nothing_follows_a_commit_that_failed() -> None:
    commits = Commits()
    turn, failures = made(commits)
    commits.error = OSError("the disk is full")
    seen: list[None] = []
    turn.after(lambda: seen.append(None))
    await ended()
    assert (seen, failures) == ([], [commits.error])
    with pytest.raises(OSError, match="full"):
        await turn.committed()
