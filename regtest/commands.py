"""`oda regtest`: a Lightning network on this machine, to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from channels.errors import UserError
from channels.settings import Network as Chain
from channels.settings import load_section, load_settings
from channels.terminal import JsonFlag, print_json, progress, run
from channels.units import Sat

if TYPE_CHECKING:
    from regtest.network import Kind, Network, Status


class RegtestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[regtest]`.

    nodes: who is started by `up`; coins: satoshis that each is given at first.
    lightningd: new nodes are Core Lightning's, from PATH, instead of embedded ones.
    """

    nodes: tuple[str, ...] = ("user", "provider")
    coins: Sat = Sat(1_000_000)
    lightningd: bool = False


BitcoindFlag = Annotated[Path | None, typer.Option("--bitcoind", help="The bitcoind to run.")]

app = typer.Typer(
    name="regtest",
    help="A whole Lightning network on this machine: bitcoind and named nodes.",
    no_args_is_help=True,
)


def mount(root: typer.Typer) -> None:
    root.add_typer(app)


@app.command()
def up(
    names: Annotated[list[str] | None, typer.Argument(help="The nodes to start.")] = None,
    coins: Annotated[int | None, typer.Option(min=0, help="Satoshis for each new node.")] = None,
    lightningd: Annotated[
        bool | None, typer.Option("--lightningd", help="Nodes of Core Lightning, from PATH.")
    ] = None,
    bitcoind: BitcoindFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Start bitcoind and the nodes, give them coins, and leave them running."""
    flags = {"nodes": names or None, "coins": coins, "lightningd": lightningd}
    settings = load_section("regtest", RegtestSettings, flags)
    network = _network(bitcoind)
    kind: Kind = "lightningd" if settings.lightningd else "embedded"
    with progress("Starting the regtest network") as show:
        result = run(network.up(settings.nodes, settings.coins, show, kind))
    _show(result, as_json)


@app.command()
def provision(bitcoind: BitcoindFlag = None, as_json: JsonFlag = False) -> None:
    """Find bitcoind, or fetch it now, so that later commands need no network."""
    from regtest.bitcoind import find_bitcoind  # here, because it is slow to import

    settings = load_settings({"bitcoind": bitcoind})
    with progress("Looking for bitcoind") as show:
        program = find_bitcoind(settings.bitcoind, settings.cache, show)
    if as_json:
        print_json({"bitcoind": program})
    else:
        typer.echo(f"bitcoind is started by: {' '.join(program)}")


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Show what runs, and where to reach it."""
    _show(run(_network().status()), as_json)


@app.command()
def fund(
    name: Annotated[str, typer.Argument(help="The node that gets the coins.")],
    amount: Annotated[int, typer.Argument(min=1000, help="How many satoshis.")],
    as_json: JsonFlag = False,
) -> None:
    """Send coins to a node and confirm them."""
    txid = run(_network().fund(name, Sat(amount)))
    if as_json:
        print_json({"node": name, "sat": amount, "txid": txid})
    else:
        typer.echo(f"{name} has received {amount} sat in transaction {txid}")


@app.command()
def mine(
    blocks: Annotated[int, typer.Argument(min=1, max=1000, help="How many blocks.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Mine blocks; returns when all nodes have seen them."""
    hashes = run(_network().mine(blocks))
    if as_json:
        print_json({"blocks": hashes})
    else:
        typer.echo(f"Mined {len(hashes)}; the newest block is {hashes[-1]}")


@app.command()
def down(as_json: JsonFlag = False) -> None:
    """Stop everything that runs; what it has stored stays."""
    stopped = run(_network().down())
    if as_json:
        print_json({"stopped": stopped})
    else:
        typer.echo(f"Stopped {', '.join(stopped)}" if stopped else "Nothing was running.")


def _network(bitcoind: Path | None = None) -> Network:
    from regtest.network import Network  # here, because it is slow to import

    settings = load_settings({"bitcoind": bitcoind})
    if settings.network is not Chain.REGTEST:
        raise UserError(
            "wrong-network",
            f"These commands are for regtest, and the network is {settings.network}.",
        )
    return Network(settings.regtest_dir, settings.cache, settings.bitcoind)


def _show(result: Status, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    bitcoind = result.bitcoind
    if bitcoind.pid is None:
        typer.echo("bitcoind is not running; start everything with: oda regtest up")
    else:
        typer.echo(f"bitcoind  {bitcoind.url}  height {bitcoind.height}  pid {bitcoind.pid}")
        typer.echo(f"  cookie  {bitcoind.cookie}")
    for node in result.nodes:
        state = f"pid {node.pid}" if node.pid is not None else "not running"
        kind = "  lightningd" if node.kind == "lightningd" else ""
        typer.echo(f"{node.name}  {node.id or '-'}@{node.address}  {state}{kind}")
        typer.echo(f"  socket  {node.rpc_file}")
