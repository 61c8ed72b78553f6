"""Telling the sidechain's nodes where this provider is, for as long as it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from provider.serving import Models
from sidechain.announcements import LIFETIME, Announcement
from sidechain.follower import Follower
from sidechain.primitives import NO_SIGNATURE, signed, stamped, x_only
from sidechain.reasons import Rejection

log = logging.getLogger(__name__)

AGAIN: Final = 3600.0
"""Seconds after which it is said again: it is forgotten after LIFETIME."""
LOOK: Final = 1.0


def announcement(
    follower: Follower, secret: bytes, url: str, node_id: bytes, models: tuple[bytes, ...], now: int
) -> Announcement:
    """Stamped and signed. models: their ids on the sidechain."""
    params = follower.light.params
    plain = Announcement(
        params.network_id,
        0,
        x_only(secret),
        now,  # rises with the clock, also over a restart
        now + LIFETIME,
        url,
        bytes(32),
        node_id,
        models,
        NO_SIGNATURE,
    )
    return signed(stamped(plain, params.stamp), secret)


async def announcing(
    follower: Follower,
    secret: bytes,
    url: str,
    node_id: str,
    models: Models,
    clock: Callable[[], float] = time.time,
) -> None:
    """For ever: at once, when the models change, and every so often."""
    said: tuple[bytes, ...] | None = None
    due = 0.0
    while True:
        served = tuple(
            sorted(each.model for each in models.current.values() if each.model is not None)
        )
        if served != said or time.monotonic() >= due:
            said, due = served, time.monotonic() + AGAIN
            made = await asyncio.to_thread(
                announcement, follower, secret, url, bytes.fromhex(node_id), served,
                int(clock()),
            )  # fmt: skip
            try:
                follower.light.accept_announcement(made)
            except Rejection as rejection:
                log.warning("This provider could not be announced: %s", rejection)
        await asyncio.sleep(LOOK)
