"""The gateway put together, and served until it is told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from channels.errors import OdaError
from channels.lightning import Lightning, LightningUnreachable
from channels.listening import listen
from channels.settings import Settings
from channels.units import UnixTime, msat
from client.discovery import Seller
from client.failover import OpenChannel
from client.gateway.app import Gateway
from client.gateway.figures import Figures
from client.gateway.guard import Guard
from client.gateway.pool import Pool
from client.gateway.sellers import Sellers
from client.gateway.settings import GatewaySettings
from client.market import market
from client.sdk import Client, check_network, connect, no_node
from client.settings import ClientSettings, lightning_rpc_file
from client.telling import looking

SHUTDOWN: Final = 5.0
"""Seconds that running answers get to end."""


@asynccontextmanager
async def assembled(
    shared: Settings,
    client: ClientSettings,
    settings: GatewaySettings,
    figures: Figures,
    *,
    token: str | None = None,
    named: bool = False,
    open_channel: OpenChannel | None = None,
) -> AsyncIterator[Gateway]:
    """named: only the provider of the settings.

    Raises OdaError `lightning-unreachable`, `wrong-network`, and as client.market.market does.
    """
    total = settings.max_total_sat
    budget = client.budget(None if total is None else msat(total), UnixTime(int(time.time())))
    async with AsyncExitStack() as stack:
        lightning = await stack.enter_async_context(Lightning(lightning_rpc_file(shared)))
        await _check_node(lightning, shared)
        fair = await stack.enter_async_context(market(shared, client, named=named))
        await stack.enter_async_context(looking(fair))

        def new_client(seller: Seller) -> AbstractAsyncContextManager[Client]:
            return connect(
                seller.url,
                lightning,
                network=shared.network,
                settings=client,
                chain=fair.chain,
                budget=budget,
            )

        async def is_ready() -> bool:
            try:
                await lightning.getinfo()
            except OdaError:
                return False
            return True

        yield Gateway(
            Sellers(fair.survey),
            Pool(new_client, settings.idle_seconds),
            Guard(settings, token),
            figures,
            settings.capacity,
            is_ready,
            one_at_a_time(open_channel) if open_channel is not None else None,
        )


async def _check_node(lightning: Lightning, shared: Settings) -> None:
    """A gateway that can't pay is of no use: its user hears of it at once."""
    try:
        info = await lightning.getinfo()
    except LightningUnreachable as error:
        raise no_node(error) from error
    check_network(info.network, shared.network)


def one_at_a_time(open_channel: OpenChannel) -> OpenChannel:
    """Requests that can't be paid at the same time need one channel and not one each."""
    lock = asyncio.Lock()
    opened: set[str] = set()

    async def open_one(seller: Seller) -> bool:
        async with lock:
            if seller.url not in opened and not await open_channel(seller):
                return False
            opened.add(seller.url)
            return True

    return open_one


async def serve(
    gateway: Gateway, settings: GatewaySettings, stop: asyncio.Event, started: Callable[[str], None]
) -> None:
    """Serve until `stop`; `started` is told the URL. At the end every session is closed and its
    rest comes back. Raises OdaError("port-in-use")."""
    runner = web.AppRunner(
        gateway.app(),
        # A program that hangs up stops its answer, and the paying with it.
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN,
        access_log=None,
    )
    await runner.setup()
    try:
        started(await listen(runner, settings.host, settings.port) + "/v1")
        await stop.wait()
    finally:
        await runner.cleanup()
