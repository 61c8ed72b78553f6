"""`oda provider`: sell inference."""

from __future__ import annotations

import functools
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from channels.errors import UserError
from channels.settings import LightningSettings, load_section, load_settings
from channels.terminal import JsonFlag, print_json, progress, run, stderr
from channels.units import UnixTime
from provider.settings import Keys, ProviderSettings
from torrent import settings as torrent_settings

if TYPE_CHECKING:
    from channels.lightning_answers import NodeInfo
    from channels.settings import Settings
    from provider.serving import Served
    from torrent.swarm import Swarm

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
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|INFOHASH|MAGNET", help="What to serve; fetched if need be."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="HOST:PORT", help="Who has the model; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model.")] = None,
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
    """Serve a model until Ctrl-C, and share it with others over BitTorrent.

    Without --model a small one is trained at the first start, which takes about half a minute.
    """
    if context.invoked_subcommand is not None:
        return
    flags = {
        "model": model,
        "peers": peer or None,
        "name": name,
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
    from provider.serving import Models
    from provider.sharing import Sharing
    from torrent.swarm import Swarm

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
        models = Models(())
        with closing(Ledger(directory / "provider.sqlite")) as ledger, closing(models):
            async with Swarm.of(shared, torrent_settings.load(shared)) as swarm:
                served = await _load(shared, settings, swarm)
                models.swap(served)
                keys = Keys.load(directory / "key")
                sharing = Sharing(swarm.library, swarm.address, settings.url)
                made = Provider(
                    ledger,
                    lightning,
                    keys,
                    settings,
                    network,
                    models,
                    _about(info),
                    sharing=sharing,
                )

                def started(url: str) -> None:
                    _say(url, served, info, swarm, as_json)

                await serve(made, started)


def _say(url: str, served: Served, info: NodeInfo, swarm: Swarm, as_json: bool) -> None:
    name, infohash = served.engine.model_id, served.infohash
    if as_json:
        print_json(
            {
                "url": url,
                "model": name,
                "node": info.id,
                "infohash": infohash.hex() if infohash else None,
                "address": str(swarm.address),
            }
        )
    else:
        stderr().print(f"Serving {name} on {url} (Ctrl-C stops it)")


async def _load(shared: Settings, settings: ProviderSettings, swarm: Swarm) -> Served:
    import asyncio

    from provider import models
    from provider.engine import TorchEngine
    from provider.pricing import Price
    from provider.serving import Served
    from provider.sharing import obtain

    price = Price(settings.input_msat, settings.output_msat)
    with progress("Loading the model") as show:

        def trained(step: int, nats_per_byte: float, seconds: float) -> None:
            label = f"Training the model: {nats_per_byte:.2f} nats/byte"
            show(step, models.FIRST_TRAINING.steps, label)

        what = settings.model
        if what is None:
            cache = shared.cache / "models"
            what = str(await asyncio.to_thread(models.first_model, cache, trained))
        load = functools.partial(models.load, name=settings.name)
        found = await obtain(swarm, what, settings.peers, load, show)
        model = await asyncio.to_thread(load, found.path, infohash=found.infohash)
    now = UnixTime(int(time.time()))
    return Served(TorchEngine(model), price, settings.tokens_per_second, now, found.infohash)


def _about(info: NodeInfo) -> dict[str, str]:
    """Who is paid, and where a user connects to open a channel."""
    about = {"node_id": info.id}
    reachable = [
        f"[{a.address}]:{a.port}" if ":" in a.address else f"{a.address}:{a.port}"
        for a in (*info.address, *info.binding)
        if a.address and a.port
    ]
    return about | ({"address": reachable[0]} if reachable else {})
