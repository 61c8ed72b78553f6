"""`oda provider`: sell inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from channels.settings import LightningSettings, load_section, load_settings
from channels.terminal import JsonFlag, print_json, run, stderr
from provider.settings import ProviderSettings

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
    follow: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Serve the newest version of a registered model."),
    ] = None,
    chain: Annotated[
        list[str] | None,
        typer.Option("--chain", metavar="HOST:PORT", help="A node of the sidechain; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model.")] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream",
            metavar="URL",
            help="Sell what an OpenAI-compatible server has (vLLM, Ollama, llama.cpp), such as "
            "http://127.0.0.1:11434/v1; repeatable.",
        ),
    ] = None,
    upstream_model: Annotated[
        list[str] | None,
        typer.Option("--upstream-model", metavar="NAME", help="Only this one; repeatable."),
    ] = None,
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

    Without --model and --upstream a small one is trained at the first start, which takes about
    half a minute.
    """
    if context.invoked_subcommand is not None:
        return
    flags = {
        "model": model,
        "peers": peer or None,
        "follow": follow,
        "chain": chain or None,
        "name": name,
        "upstream": upstream or None,
        "upstream_models": upstream_model or None,
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

    from provider.app import serve
    from provider.assembly import assembled

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    async with assembled(shared, settings, rpc_file) as made:

        def started(url: str) -> None:
            made.announce(url)
            _say(url, made.served, made.info, made.swarm, as_json)

        await serve(made.provider, started)


def _say(url: str, served: Served | None, info: NodeInfo, swarm: Swarm, as_json: bool) -> None:
    name = None if served is None else served.engine.model_id
    infohash = None if served is None else served.infohash
    model = None if served is None else served.model
    if as_json:
        print_json(
            {
                "url": url,
                "model": name,
                "node": info.id,
                "infohash": infohash.hex() if infohash else None,
                "registered": model.hex() if model else None,
                "address": str(swarm.address),
            }
        )
    else:
        stderr().print(f"Serving {name or 'no model yet'} on {url} (Ctrl-C stops it)")
