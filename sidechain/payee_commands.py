"""`oda payee`: where a trainer or producer is paid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from channels.errors import UserError
from channels.settings import LightningSettings, Settings, load_section, load_settings
from channels.terminal import JsonFlag, print_json, progress, run
from sidechain import settings as sidechain_settings
from sidechain.settings import Key

if TYPE_CHECKING:
    from aiohttp.web import RouteDef

app = typer.Typer(name="payee", help="Where your shares are paid.", no_args_is_help=True)

NodeUrl = Annotated[str | None, typer.Option("--url", help="The node's URL.")]


def rpc_file(shared: Settings, node: str | None) -> Path:
    """The socket of a Lightning node: an embedded one by its name, or the real one of the settings.

    Raises UserError("no-lightning").
    """
    if node is not None:
        return shared.node_dir(node) / "lightning-rpc"
    found = load_section("lightning", LightningSettings).rpc_file
    if found is None:
        raise UserError(
            "no-lightning", "Name a Lightning node with --node, or set lightning.rpc_file."
        )
    return found


@asynccontextmanager
async def payout(shared: Settings, node: str | None) -> AsyncIterator[list[RouteDef]]:
    """The routes at which this Lightning node gives payers invoices; none without a node."""
    if node is None:
        yield []
        return
    from channels.lightning import Lightning
    from sidechain.payout import Payout

    async with Lightning(rpc_file(shared, node)) as lightning:
        yield Payout(lightning).routes()


@app.command()
def show(url: NodeUrl = None, as_json: JsonFlag = False) -> None:
    """Your key on the chain, and where it is paid."""
    shared = load_settings()
    key = Key.load(shared)
    run(_show(key, sidechain_settings.load(shared, {"node": url}).node, as_json))


async def _show(key: Key, url: str, as_json: bool) -> None:
    from sidechain import api
    from sidechain.node_client import NodeClient

    async with NodeClient(url) as client:
        payee = await client.find(f"/payees/{key.public.hex()}", api.Payee)
    if as_json:
        print_json({"key": key.public.hex(), "payee": payee})
        return
    typer.echo(key.public.hex())
    if payee is None:
        typer.echo("Not registered: oda payee register")
    else:
        typer.echo(f"paid at {payee.endpoint} by node {payee.node_id}")


@app.command()
def register(
    endpoint: Annotated[
        str | None,
        typer.Option(help="Where payers ask for invoices. Default: the node with --pay-to."),
    ] = None,
    node: Annotated[str | None, typer.Option(help="Your embedded Lightning node.")] = None,
    url: NodeUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Say on the chain where your key is paid; your Lightning node signs that it agrees.

    The endpoint has to answer with invoices: `oda node --pay-to NODE` does.
    """
    shared = load_settings()
    url = sidechain_settings.load(shared, {"node": url}).node
    endpoint = endpoint or f"{url.rstrip('/')}/payee/invoice"
    run(_register(shared, url, rpc_file(shared, node), endpoint, as_json))


async def _register(shared: Settings, url: str, socket: Path, endpoint: str, as_json: bool) -> None:
    from channels.lightning import Lightning
    from sidechain import api, payee
    from sidechain.node_client import NodeClient
    from sidechain.params import network
    from sidechain.primitives import NO_SIGNATURE, RegisterPayee, signed
    from sidechain.stamping import stamp

    params, key = network(shared.network), Key.load(shared)
    if not payee.is_endpoint(endpoint):
        raise UserError("bad-payee-endpoint", "An endpoint is printable ASCII without spaces.")
    async with NodeClient(url) as client, Lightning(socket) as lightning:
        known = await client.find(f"/payees/{key.public.hex()}", api.Payee)
        seq = 1 if known is None else known.seq + 1
        node_id = bytes.fromhex((await lightning.getinfo()).id)
        text = payee.payee_text(params.network_id, key.public, seq, node_id, endpoint)
        proof = await lightning.signmessage(text)
        tx = RegisterPayee(
            params.network_id, 0, key.public, seq, node_id, endpoint, proof, NO_SIGNATURE
        )
        with progress("Searching for a stamp") as bar:
            tx = signed(await stamp(tx, params.stamp, bar), key.secret)
        await client.send(tx)
        with progress("Waiting for a block") as bar:
            found = await client.confirmed(tx, lambda seconds: bar(seconds))
    if as_json:
        print_json(
            {"key": key.public.hex(), "seq": seq, "node_id": node_id.hex(), "height": found.height}
        )
    else:
        typer.echo(f"{key.public.hex()} is paid at {endpoint} (block {found.height})")
