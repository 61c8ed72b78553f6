"""Which providers there are, and in which order to ask them.

Candidates are the URLs that the user named and those that providers announced on the sidechain.
Nothing that a provider says of itself is believed further than it can be checked: it is asked for
its catalogue, the time that takes is measured, and what we remember of its node weighs its price.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from channels.errors import OdaError
from channels.units import Msat
from client.check_table import CheckTable
from client.provider import Catalogue, Provider, normal_url
from client.reputation import BEST, Record, ranked_price
from client.store import Store
from provider.api import Model

SECONDS: Final = 5.0
"""A provider that takes longer for its catalogue is not asked now."""
MOST: Final = 64
AT_ONCE: Final = 8
QUESTION: Final = (100, 1000)
"""Input and output tokens that prices are compared by."""


@dataclass(frozen=True, slots=True)
class Seller:
    """One model of one provider. latency_ms: of its catalogue just now, or of the first token as
    it was before; score: of its reputation, 0 … 1000. owes: whether it lied in a receipt, or has
    not passed on what we spent there."""

    url: str
    node_id: str | None
    address: str | None
    model: Model
    latency_ms: int
    score: int
    owes: bool = False

    @property
    def price(self) -> Msat:
        """Of the question that prices are compared by."""
        inputs, outputs = QUESTION
        model = self.model
        return Msat(model.input_msat_per_token * inputs + model.output_msat_per_token * outputs)

    def document(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "node_id": self.node_id,
            "model": self.model.id,
            "infohash": self.model.infohash,
            "input_msat_per_token": self.model.input_msat_per_token,
            "output_msat_per_token": self.model.output_msat_per_token,
            "latency_ms": self.latency_ms,
            "score": self.score,
            "owes_shares": self.owes,
        }


@dataclass(frozen=True, slots=True)
class Silent:
    """A provider that is no candidate now, and why."""

    url: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Sellers in the order in which to ask them."""

    sellers: tuple[Seller, ...]
    silent: tuple[Silent, ...]


async def survey(
    urls: Iterable[str], http: aiohttp.ClientSession, store: Store, model: str | None = None
) -> Survey:
    """Ask all for their catalogues. model: by its name or infohash; None takes any."""
    places = asyncio.Semaphore(AT_ONCE)

    async def look(url: str) -> tuple[list[Seller], Silent | None]:
        async with places:
            try:
                return await _look(url, http, store), None
            except OdaError as error:
                return [], Silent(url, error.reason, str(error))

    found = await asyncio.gather(*(look(url) for url in list(dict.fromkeys(urls))[:MOST]))
    sellers = [
        seller
        for several, _ in found
        for seller in several
        if model is None or model in (seller.model.id, seller.model.infohash)
    ]
    return Survey(tuple(ordered(sellers)), tuple(silent for _, silent in found if silent))


def ordered(sellers: Iterable[Seller]) -> list[Seller]:
    """By the price that the reputation makes of it, then by latency. Who served us badly comes
    last, however cheap, and who does not pay those who made the model after that."""

    def rank(s: Seller) -> tuple[bool, bool, int, int, str]:
        return s.owes, s.score < BEST // 3, ranked_price(s.price, s.score), s.latency_ms, s.url

    return sorted(sellers, key=rank)


async def _look(url: str, http: aiohttp.ClientSession, store: Store) -> list[Seller]:
    provider = Provider(normal_url(url), http)
    begun = time.monotonic()
    catalogue = await _catalogue(provider)
    latency = int(1000 * (time.monotonic() - begun))
    record = _record(catalogue, store)
    owes = catalogue.oda.node_id is not None and CheckTable(store).is_bad(catalogue.oda.node_id)
    if record.latency_ms is not None:
        latency = record.latency_ms
    about = catalogue.oda
    return [
        Seller(provider.url, about.node_id, about.address, entry, latency, record.score, owes)
        for entry in catalogue.data
    ]


async def _catalogue(provider: Provider) -> Catalogue:
    try:
        async with asyncio.timeout(SECONDS):
            return await provider.models()
    except TimeoutError:
        raise OdaError(
            "provider-slow", f"{provider.url} took more than {SECONDS:g} s for its catalogue."
        ) from None


def _record(catalogue: Catalogue, store: Store) -> Record:
    node_id = catalogue.oda.node_id
    return Record() if node_id is None else store.reputation(node_id)
