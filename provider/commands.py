"""`oda provider`: sell inference."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from channels.errors import UserError
from channels.settings import LightningSettings, load_section, load_settings
from channels.terminal import JsonFlag, print_json, progress, run, stderr
from channels.units import UnixTime
from provider.settings import Keys, ProviderSettings

if TYPE_CHECKING:
    from channels.lightning_answers import NodeInfo
    from channels.settings import Settings
    from provider.answers import Served

app = typer.Typer(
    name="provider",
    help="Serve a model for sats, token by token.",
    invoke_without_command=True,
)


def mount(root: typer.Typer) -> None:
    root.add_typer(app)


@app.callback()
def provider(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Where to serve.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one.")] = None,
    node: Annotated[str | None, typer.Option(help="The embedded node that is paid.")] = None,
    rpc_file: Annotated[Path | None, typer.Option(help="The socket of a real lightningd.")] = None,
    input_msat: Annotated[int | None, typer.Option(min=0, help="Price of an input token.")] = None,
    output_msat: Annotated[
        int | None, typer.Option(min=1, help="Price of an output token.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve the model until Ctrl-C. The first start trains it, which takes about half a minute."""
    if context.invoked_subcommand is not None:
        return
    flags = {
        "host": host,
        "port": port,
        "node": node,
        "rpc_file": rpc_file,
        "input_msat": input_msat,
        "output_msat": output_msat,
    }
    settings = load_section("provider", ProviderSettings, flags)
    settings.check()
    lightning = load_section("lightning", LightningSettings)
    shared = load_settings()
    embedded = shared.node_dir(settings.node) / "lightning-rpc"
    socket = settings.rpc_file or lightning.rpc_file or embedded
    run(_serve(shared, settings, socket, as_json))


async def _serve(
    shared: Settings, settings: ProviderSettings, rpc_file: Path, as_json: bool
) -> None:
    # Here, because torch takes seconds to import and `oda --help` must not.
    import logging

    from channels.lightning import Lightning
    from provider.app import Provider, serve
    from provider.ledger import Ledger

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    async with Lightning(rpc_file) as lightning:
        info = await lightning.getinfo()
        # lightningd says "bitcoin" where the drafts and our settings say "mainnet".
        network = "mainnet" if info.network == "bitcoin" else info.network
        if network != shared.network:
            raise UserError(
                "wrong-network",
                f"The Lightning node is on {network} and the settings say {shared.network}.",
            )
        directory = shared.provider_dir
        ledger = Ledger(directory / "provider.sqlite")
        served = None
        try:
            served = await _load(shared, settings)
            model = served.engine.model_id
            keys = Keys.load(directory / "key")
            made = Provider(
                ledger, lightning, keys, settings, network, {model: served}, _about(info)
            )

            def started(url: str) -> None:
                if as_json:
                    print_json({"url": url, "model": model, "node": info.id})
                else:
                    stderr().print(f"Serving {model} on {url} (Ctrl-C stops it)")

            await serve(made, started)
        finally:
            if served is not None:
                served.engine.close()
            ledger.close()


async def _load(shared: Settings, settings: ProviderSettings) -> Served:
    import asyncio

    from provider.answers import Served
    from provider.engine import FIRST_TRAINING, load_or_train
    from provider.pricing import Price

    price = Price(settings.input_msat, settings.output_msat)
    with progress("Loading the model") as show:

        def trained(step: int, nats_per_byte: float, seconds: float) -> None:
            label = f"Training the model: {nats_per_byte:.2f} nats/byte"
            show(step, FIRST_TRAINING.steps, label)

        engine = await asyncio.to_thread(load_or_train, shared.cache / "models", trained)
    return Served(engine, price, settings.tokens_per_second, UnixTime(int(time.time())))


def _about(info: NodeInfo) -> dict[str, str]:
    """Who is paid, and where a user connects to open a channel."""
    about = {"node_id": info.id}
    reachable = [
        f"[{a.address}]:{a.port}" if ":" in a.address else f"{a.address}:{a.port}"
        for a in (*info.address, *info.binding)
        if a.address and a.port
    ]
    return about | ({"address": reachable[0]} if reachable else {})
