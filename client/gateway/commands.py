"""`oda gateway`: every program that speaks OpenAI's API can pay for what it asks."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from channels.settings import Settings, load_settings
from channels.terminal import run, stderr
from client.gateway.settings import GatewaySettings, load_gateway_settings
from client.settings import ClientSettings, load_client_settings

if TYPE_CHECKING:
    from client.failover import OpenChannel

SatOption = typer.Option(min=1, metavar="SAT")


def gateway(
    provider: Annotated[
        str | None, typer.Option("--provider", help="Only this provider; default: any.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one.")] = None,
    token: Annotated[
        bool | None, typer.Option("--token", help="Programs need the token as their API key.")
    ] = None,
    expose: Annotated[
        bool | None, typer.Option("--expose", help="Listen beyond this machine; needs --token.")
    ] = None,
    max_request_sat: Annotated[int | None, SatOption] = None,
    max_hour_sat: Annotated[int | None, SatOption] = None,
    max_day_sat: Annotated[int | None, SatOption] = None,
    max_total_sat: Annotated[
        int | None, typer.Option(min=1, metavar="SAT", help="The most until it stops.")
    ] = None,
    idle_seconds: Annotated[
        int | None, typer.Option(min=0, help="Sessions unused so long are closed.")
    ] = None,
    open_channels: Annotated[
        bool | None, typer.Option("--open-channels", help="Open channels where they are needed.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for each request.")
    ] = False,
) -> None:
    """Serve OpenAI's API to programs on this machine, and pay for what they ask.

    OPENAI_BASE_URL=http://127.0.0.1:8404/v1 is all that an existing program needs. Ctrl-C closes
    every session; what is unspent comes back.
    """
    caps = {
        "max_request_sat": max_request_sat,
        "max_hour_sat": max_hour_sat,
        "max_day_sat": max_day_sat,
    }
    client = load_client_settings({"provider": provider, **caps})
    settings = load_gateway_settings(
        {
            "host": host,
            "port": port,
            "token": token,
            "expose": expose,
            "max_total_sat": max_total_sat,
            "idle_seconds": idle_seconds,
            "open_channels": open_channels,
        }
    )
    run(_serve(load_settings(), client, settings, named=provider is not None, as_json=as_json))


async def _serve(
    shared: Settings,
    client: ClientSettings,
    settings: GatewaySettings,
    *,
    named: bool,
    as_json: bool,
) -> None:
    import logging

    from channels.terminal import stop_signals
    from client.gateway.display import Display
    from client.gateway.guard import load_token
    from client.gateway.serving import assembled, serve

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stop = stop_signals()
    token_file = shared.client_dir / "gateway-token" if settings.token else None
    token = None if token_file is None else load_token(token_file)
    with closing(Display(as_json=as_json)) as display:
        async with assembled(
            shared,
            client,
            settings,
            display.figures,
            token=token,
            named=named,
            open_channel=_open_channel(client) if settings.open_channels else None,
        ) as made:
            named_file = None if token_file is None else str(token_file)
            await serve(
                made, settings, stop, lambda url: display.started(url, named_file, made.pool)
            )
    if not as_json:
        stderr().print("Stopped. What could not be closed is in: oda sessions", highlight=False)


def _open_channel(client: ClientSettings) -> OpenChannel:
    from client.commands import open_for

    return open_for(client)
