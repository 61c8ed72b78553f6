"""The sidechain for a provider: what its models are there, who is owed, and what is newest.

A light node of the provider's own. What was found is kept, so that a challenge never waits for
the chain; with every new block it is looked up again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from channels.background import background
from channels.errors import OdaError, UserError
from channels.http.session import Provenance
from provider.serving import Models, Served
from provider.settlement import PayTo
from provider.share_book import Backing
from sidechain.events import Event, HeadersAdded
from sidechain.follower import Follower
from sidechain.state import Version

log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
"""Seconds between looks while no block comes."""

Weights = tuple[bytes | None, bytes | None]
"""(model, weights_root); both None for a model that is not registered."""


class FollowedLineage:
    """share_book.Lineage and settlement.Payees.

    newer: gets and adopts a model's newest confirmed version when that is not what is served.
    """

    def __init__(
        self,
        follower: Follower,
        models: Models,
        newer: Callable[[bytes, Version], Awaitable[None]] | None = None,
    ) -> None:
        self._follower = follower
        self._models = models
        self._newer = newer
        self._backings: dict[Weights, Backing] = {}
        self._versions: dict[bytes, Version] = {}
        self.trouble: str | None = None

    def backing(self, model: bytes | None, weights_root: bytes | None) -> Backing | None:
        return self._backings.get((model, weights_root))

    def version(self, model: bytes) -> Version | None:
        return self._versions.get(model)

    async def payee(self, key: bytes) -> PayTo | None:
        found = await self._follower.payee(key)
        return None if found is None else PayTo(found.node_id, found.endpoint)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look now, then with every block while the block of code runs."""
        await self._look_or_say()
        async with background(self._run()):
            yield

    async def _run(self) -> None:
        changed = asyncio.Event()

        def heard(event: Event) -> None:
            if isinstance(event, HeadersAdded):
                changed.set()

        unlisten = self._follower.light.listen(heard)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_AGAIN)
                changed.clear()
                await self._look_or_say()
        finally:
            unlisten()

    async def _look_or_say(self) -> None:
        try:
            await self.look()
            self.trouble = None
        except OdaError as error:
            self.trouble = f"The sidechain can't be followed: {error}"
            # Shares go on under what was known, which is what challenges say.
            log.warning("The sidechain can't be followed: %s", error)

    async def look(self) -> None:
        """Look up what every served model is on the chain now. Raises OdaError."""
        # An upstream may have another model at any time, and its first challenge is to say this.
        await self._back((None, None))
        for served in list(self._models.current.values()):
            model = served.model
            if served.shares is None:
                continue
            if (model, served.weights_root) != (None, None):
                await self._back((model, served.weights_root))
            if model is None:
                continue
            found = await self._follower.model(model)
            if found is None:
                raise UserError(
                    "unknown-model", f"There is no model {model.hex()} on this sidechain."
                )
            self._versions[model] = found.confirmed
            if found.confirmed.weights_root != served.weights_root and self._newer is not None:
                await self._newer(model, found.confirmed)

    async def adopt(self, new: Served) -> None:
        """Serve it from now on, which can't be before it is known who is owed for it: a challenge
        that doesn't say so has other terms, and whoever is in a session refuses it.

        Raises OdaError, and then has closed the engine.
        """
        try:
            await self._back((new.model, new.weights_root))
        except BaseException:
            new.engine.close()
            raise
        self._models.swap(new)

    async def _back(self, weights: Weights) -> None:
        pinned = self._follower.pinned
        owed = await self._follower.beneficiaries(pinned.hash, *weights)
        provenance = Provenance(pinned.height, pinned.hash, *weights)
        self._backings[weights] = Backing(provenance, owed)
