"""The sidechain for a user: a light node of our own, asked by receipts and discovery."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from channels.http.session import Provenance
from channels.settings import Settings
from sidechain import params
from sidechain.announcements import Announcement
from sidechain.fees import Beneficiaries
from sidechain.follower import Follower, follow
from sidechain.state import Payee
from torrent.magnet import Peer


class FollowedChain:
    """client.known_chain.Chain, by headers and proofs."""

    def __init__(self, follower: Follower, clock: Callable[[], float] = time.time) -> None:
        self._follower = follower
        self._clock = clock

    def check_tip(self, provenance: Provenance) -> None:
        self._follower.check_tip(provenance.height, provenance.block)

    async def beneficiaries(self, provenance: Provenance) -> Beneficiaries:
        return await self._follower.beneficiaries(
            provenance.block, provenance.model, provenance.weights_root
        )

    async def payees(self, keys: Sequence[bytes]) -> dict[bytes, Payee]:
        found = {key: await self._follower.payee(key) for key in keys}
        return {key: payee for key, payee in found.items() if payee is not None}

    def announced(self, model: bytes | None = None) -> list[Announcement]:
        """Providers that say they are there, and that they serve a model (any, if None)."""
        known = self._follower.light.announcements
        now = self._clock()
        return [
            each for each in known if each.expires > now and (model is None or model in each.models)
        ]


@asynccontextmanager
async def following(settings: Settings, peers: Sequence[str]) -> AsyncIterator[FollowedChain]:
    """peers: "host:port" of nodes. Raises UserError "bad-peer", "no-chain-peer"."""
    places = [(peer.host, peer.port) for peer in map(Peer.parse, peers)]
    headers = settings.client_dir / "headers.sqlite"
    async with follow(params.network(settings.network), places, headers) as follower:
        yield FollowedChain(follower)
