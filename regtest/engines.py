"""Part of `make demo`: an Ollama or vLLM that runs on this machine is sold as a second model.

Nothing is asked of it but which models it has, and one short answer, which is paid for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from channels.errors import OdaError
from provider.api import ApiError, is_model_name
from provider.places import Places
from provider.upstream import Upstream
from regtest.earning import Sale, ask, receipt, told
from regtest.school import note

USUAL: Final = ("http://127.0.0.1:11434/v1", "http://127.0.0.1:8000/v1")
"""Of Ollama and of vLLM."""
VARIABLE: Final = "ODA_DEMO_ENGINES"
"""Other URLs instead, with commas between; where it is empty, none is looked for."""
PATIENCE: Final = 1.0
TOKENS: Final = 40
QUESTION: Final = "In one short sentence: what is a satoshi?"


@dataclass(frozen=True, slots=True)
class Engine:
    """A server's first model. url: with its `/v1`."""

    url: str
    model: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Of `oda provider`."""
        return ("--upstream", self.url, "--upstream-model", self.model)


def places() -> tuple[str, ...]:
    named = os.environ.get(VARIABLE)
    return USUAL if named is None else tuple(filter(None, named.split(",")))


async def look(urls: Sequence[str]) -> Engine | None:
    """The first that has a model. Whatever else answers there is left alone."""
    async with aiohttp.ClientSession(trust_env=False) as http:
        found = await asyncio.gather(*(_model(Upstream(url, http, Places(1))) for url in urls))
    return next((Engine(url, name) for url, name in zip(urls, found, strict=True) if name), None)


async def _model(server: Upstream) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE):
            listed = await server.models()
    except (ApiError, TimeoutError):
        return None
    return next((each.id for each in listed if is_model_name(each.id)), None)


async def second_engine(sale: Sale, engine: Engine | None) -> None:
    if engine is None:
        note("No Ollama and no vLLM answers on this machine: one would be sold here, too.")
        return
    note(f"{engine.model} of {engine.url} is sold as well. Nobody has registered it: its users pay")
    note("the block producer's share alone.")
    async with sale.client() as client:
        try:
            await ask(client, QUESTION, seed=1, model=engine.model, tokens=TOKENS)
        except OdaError as error:
            # What somebody else's server does is no fault of the demo. The session is paid back.
            note(f"It did not answer ({error.reason}): {error}")
            await client.close()
            return
        await told(sale.school, await receipt(client))
