"""What a bar shows of a fetch, in every program that fetches."""

from __future__ import annotations

from collections.abc import Callable

from channels.terminal import Progress
from torrent.library import Status
from torrent.settings import MIB


def fetching(show: Progress) -> Callable[[Status], None]:
    """A `report` for Swarm.fetch."""

    def report(status: Status) -> None:
        rate = status.download_rate / MIB
        show(
            status.done,
            status.total or None,
            f"Fetching from {status.peers} peers, {rate:.1f} MiB/s",
        )

    return report
