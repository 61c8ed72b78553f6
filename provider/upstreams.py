"""Which models the upstreams have now: asked when the provider starts, and every few seconds.

A server that is down takes its models off the list until it answers again; the provider starts
without it, and says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from channels.background import background
from channels.errors import UserError
from channels.units import Msat, UnixTime
from provider.api import ApiError, is_model_name
from provider.places import Places
from provider.pricing import Price
from provider.serving import Models, Served
from provider.settings import ProviderSettings
from provider.upstream import ListedModel, Upstream, UpstreamEngine
from sidechain.fees import Terms

log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 10.0
MAX_MODELS: Final = 100
"""Of one upstream: a server that fetches models by name lists thousands."""
KEY_VARIABLE: Final = "ODA_UPSTREAM_KEY"


@dataclass(frozen=True, slots=True)
class State:
    """models: those that are served from there. trouble: why there are none."""

    url: str
    models: tuple[str, ...] = ()
    trouble: str | None = None


class Upstreams:
    """Keeps `models` to what the servers have. shares: of unregistered models; None where nothing
    is passed on. A name that is taken already stays what it was. Raises UserError("bad-price")."""

    def __init__(
        self,
        servers: Sequence[Upstream],
        models: Models,
        settings: ProviderSettings,
        shares: Terms | None,
        clock: Callable[[], float],
    ) -> None:
        self._servers = servers
        self._models = models
        self._settings = settings
        self._shares = shares
        self._clock = clock
        self._price = Price(
            _first(settings.upstream_input_msat, settings.input_msat),
            _first(settings.upstream_output_msat, settings.output_msat),
        )
        self._served: dict[str, dict[str, Served]] = {each.url: {} for each in servers}
        self._troubles: dict[str, str | None] = dict.fromkeys(self._served)

    def states(self) -> tuple[State, ...]:
        return tuple(
            State(url, tuple(served), self._troubles[url]) for url, served in self._served.items()
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look now, then again and again while the block of code runs."""
        await self.look()
        async with background(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            await self.look()

    async def look(self) -> None:
        await asyncio.gather(*map(self._look_at, self._servers))

    async def _look_at(self, server: Upstream) -> None:
        trouble = None
        listed: list[ListedModel] = []
        try:
            listed = self._wanted(await server.models())
            if not listed:
                trouble = f"The upstream {server.url} has none of the models that are to be served."
        except ApiError as error:
            trouble = f"The upstream {server.url} (does it end in /v1?): {error}"
        if trouble != self._troubles[server.url]:
            self._troubles[server.url] = trouble
            log.warning("%s", trouble or f"The upstream {server.url} answers again.")
        self._offer(server, listed)

    def _wanted(self, listed: Sequence[ListedModel]) -> list[ListedModel]:
        named = self._settings.upstream_models
        wanted = (each for each in listed if not named or each.id in named)
        return [each for each in wanted if is_model_name(each.id)][:MAX_MODELS]

    def _offer(self, server: Upstream, listed: Sequence[ListedModel]) -> None:
        served = self._served[server.url]
        for name in set(served) - {each.id for each in listed}:
            del served[name]
            self._models.withdraw(name)
        for each in listed:
            if each.id in served or each.id in self._models.current:
                continue
            served[each.id] = self._as_served(server, each)
            self._models.swap(served[each.id])

    def _as_served(self, server: Upstream, listed: ListedModel) -> Served:
        settings = self._settings
        context = listed.context or settings.upstream_context
        return Served(
            UpstreamEngine(server, listed.id, context),
            self._price,
            settings.tokens_per_second,
            UnixTime(int(self._clock())),
            shares=self._shares,
            places=server.places,
        )


def _first(given: Msat | None, otherwise: Msat) -> Msat:
    return otherwise if given is None else given


def servers(settings: ProviderSettings, http: aiohttp.ClientSession) -> tuple[Upstream, ...]:
    """Raises UserError as `api_key`."""
    urls = tuple(dict.fromkeys(settings.upstream))
    key = api_key(settings.upstream_key_file)
    if key is not None and len(urls) > 1:
        raise UserError(
            "bad-upstream-key", "The API key would be shown to several upstreams; have one."
        )
    return tuple(
        Upstream(url, http, Places(settings.upstream_capacity, settings.upstream_queue), key)
        for url in urls
    )


def api_key(path: Path | None) -> str | None:
    """Out of a file that only its owner may read, or of ODA_UPSTREAM_KEY; None for no key.

    Raises UserError("bad-upstream-key"), which does not say what it is.
    """
    if path is None:
        key = os.environ.get(KEY_VARIABLE)
    else:
        try:
            if path.stat().st_mode & 0o077:
                raise UserError(
                    "bad-upstream-key", f"Others may read {path}; chmod 600 it, it is a secret."
                )
            key = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "bad-upstream-key", f"The API key in {path} can't be read: {type(error).__name__}."
            ) from None
    if key is not None and not re.fullmatch(r"[!-~]{1,4096}", key):
        raise UserError("bad-upstream-key", "The upstream's API key has characters no key has.")
    return key
