"""`oda model`: register models, and look at those that are registered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from channels.errors import UserError
from channels.settings import Settings, load_settings
from channels.terminal import JsonFlag, print_json, progress, run
from sidechain import settings as sidechain_settings
from sidechain.new_model import new
from sidechain.settings import Key
from sidechain.shard_keys import ShardKeys
from torrent import settings as torrent_settings

if TYPE_CHECKING:
    from sidechain import api
    from sidechain.model.directory import Model
    from sidechain.node_client import NodeClient
    from sidechain.params import Params
    from sidechain.primitives import AddModel, AnyTransaction
    from torrent.swarm import Swarm

app = typer.Typer(name="model", help="Models of the sidechain.", no_args_is_help=True)

NodeUrl = Annotated[str | None, typer.Option("--url", help="The node's URL.")]
KeysFile = Annotated[
    Path | None, typer.Option(help="The keys of the sealed shards, as `oda model new` made them.")
]

app.command()(new)

MIN_GAIN: Final = 1000
"""Part of the first score that an update has to gain, unless it is said otherwise: a thousandth."""


def _url(shared: Settings, url: str | None) -> str:
    return sidechain_settings.load(shared, {"node": url}).node


@app.command("list")
def list_models(url: NodeUrl = None, as_json: JsonFlag = False) -> None:
    """All models of the chain."""
    models = run(_all_models(_url(load_settings(), url)))
    if as_json:
        print_json({"models": models})
        return
    for each in models:
        shards = f"{each.opened}/{each.shards} shards, " if each.shards else ""
        state = ", provisional" if each.provisional else ""
        typer.echo(f"{each.model}\n  {shards}score {each.current.score}{state}")


async def _all_models(url: str) -> list[api.ModelSummary]:
    from sidechain import api
    from sidechain.node_client import NodeClient

    found: list[api.ModelSummary] = []
    async with NodeClient(url) as client:
        while True:
            page = await client.get(f"/models?limit={api.MOST}&offset={len(found)}", api.Models)
            found += page.models
            if not page.models or len(found) >= page.total:
                return found


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="The model's identity, 64 hex digits.")],
    url: NodeUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """A model with its versions and shards."""
    found = run(_model(_url(load_settings(), url), model))
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.model}\n{found.architecture}\n{found.objective}")
    typer.echo(f"infohash {(found.provisional or found.confirmed).infohash}")
    typer.echo(f"an update has to gain {found.required_gain} now")
    opened = sum(1 for shard in found.shards if shard.opened)
    typer.echo(f"{opened} of {len(found.shards)} shards are open")
    for past in found.versions:
        version = past.version
        typer.echo(f"{version.height:>8} {version.score:>16} {past.state:<12} {version.trainer}")


async def _model(url: str, model: str) -> api.Model:
    from sidechain import api
    from sidechain.node_client import NodeClient

    async with NodeClient(url) as client:
        return await client.get(f"/models/{hex32(model)}", api.Model)


def hex32(text: str) -> str:
    try:
        if len(bytes.fromhex(text)) == 32:
            return text.lower()
    except ValueError:
        pass
    raise UserError("bad-hash", f"{text!r} are not 64 hex digits.")


# --- add -----------------------------------------------------------------------------------------


@app.command()
def add(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The model's directory.")],
    min_gain: Annotated[
        int | None, typer.Option(min=1, help="What an update has to gain at least.")
    ] = None,
    shard_keys: KeysFile = None,
    opener: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Who may open shards; repeatable.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Give the bytes from here: the node is elsewhere.")
    ] = False,
    url: NodeUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Check and score a model directory, share it, and register it on the chain.

    A node on the same data directory shares it from then on.
    """
    shared = load_settings()
    if shard_keys is not None and shard_keys.resolve().is_relative_to(directory.resolve()):
        raise UserError(
            "bad-keys-file", f"{shard_keys} lies in {directory}, which everybody gets; move it."
        )
    known = ShardKeys(None, ()) if shard_keys is None else ShardKeys.read(shard_keys)
    named = (bytes.fromhex(hex32(each)) for each in opener or ())
    openers = tuple(dict.fromkeys((*known.openers, *named)))
    run(_add(shared, _url(shared, url), directory, min_gain, known.shards, openers, serve, as_json))


async def _add(
    shared: Settings,
    url: str,
    directory: Path,
    min_gain: int | None,
    keys: tuple[bytes, ...],
    openers: tuple[bytes, ...],
    serve: bool,
    as_json: bool,
) -> None:
    import asyncio

    from sidechain.node_client import NodeClient
    from sidechain.params import network
    from sidechain.primitives import signed
    from sidechain.stamping import stamp
    from torrent.swarm import Swarm

    params, key = network(shared.network), Key.load(shared)
    with progress("Scoring") as bar:
        model, score, cost = await asyncio.to_thread(_scored, directory, params, keys, openers)
    async with NodeClient(url) as client:
        await client.get("/status", dict)  # before the stamp, which takes long
        async with Swarm.of(shared, torrent_settings.load(shared, {"port": 0})) as swarm:
            infohash = await _published(swarm, directory)
            tx = _add_model(params, key, model, infohash, keys, openers, min_gain, score, cost)
            with progress("Searching for a stamp") as bar:
                tx = signed(await stamp(tx, params.model_stamp, bar), key.secret)
            if serve:
                await client.send(tx, (str(swarm.address),))
                found = await _wait(client, tx)
        if not serve:
            # Its folder in the library is free now, for the node to serve it.
            await client.send(tx)
            found = await _wait(client, tx)
    if as_json:
        print_json(
            {
                "model": tx.txid.hex(),
                "infohash": infohash.hex(),
                "weights_root": tx.weights_root.hex(),
                "score": score,
                "score_cost": cost,
                "height": found.height,
            }
        )
    else:
        typer.echo(f"{tx.txid.hex()}\n  infohash {infohash.hex()}")
        typer.echo(f"  score {score} micro-units, in block {found.height}")


def _scored(
    directory: Path, params: Params, keys: Sequence[bytes], openers: Sequence[bytes]
) -> tuple[Model, int, int]:
    """The model, its score and what scoring it costs; raises UserError for what the network
    would refuse, before anything is shared."""
    from sidechain.model import directory as directories

    model = directories.read(directory)
    dataset = model.dataset
    if len(keys) != len(dataset.shards) or bool(keys) != bool(openers):
        raise UserError(
            "bad-shards",
            f"The data has {len(dataset.shards)} sealed shards: name as many keys "
            "(--shard-keys) and who may open them (--opener), or neither.",
        )
    for index, key in enumerate(keys):
        dataset.open_shard(index, key)
    size = len(dataset.public) + sum(len(shard) for shard in dataset.shards)
    if size > params.dataset_bytes:
        raise UserError("bad-dataset", f"The data may have {params.dataset_bytes} bytes.")
    if 2 * model.architecture.parameters > params.model_bytes:
        raise UserError("bad-architecture", f"The weights may have {params.model_bytes} bytes.")
    cost = model.score_cost()
    if cost * (2 if keys else 1) > params.score_cost:
        raise UserError(
            "model-too-costly",
            f"Scoring the model costs {cost}, more than a block of this network may; "
            "take less data or a smaller model.",
        )
    return model, model.score(), cost


def _add_model(
    params: Params,
    key: Key,
    model: Model,
    infohash: bytes,
    keys: Sequence[bytes],
    openers: tuple[bytes, ...],
    min_gain: int | None,
    score: int,
    cost: int,
) -> AddModel:
    """Neither stamped nor signed."""
    from sidechain.model import objective, registry
    from sidechain.primitives import NO_SIGNATURE, AddModel, shard_key_hash

    if key.public in openers:
        raise UserError("trainer-is-opener", "You train this model; somebody else has to open it.")
    return AddModel(
        params.network_id,
        0,
        infohash,
        model.weights_root,
        registry.encode(model.architecture),
        objective.encode(model.objective),
        model.dataset.root,
        tuple(shard_key_hash(each) for each in keys),
        openers,
        max(1, score // MIN_GAIN) if min_gain is None else min_gain,
        score,
        cost,
        key.public,
        NO_SIGNATURE,
    )


async def _published(swarm: Swarm, directory: Path) -> bytes:
    """-> the infohash. What the node serves already is left to it."""
    import asyncio

    from torrent import files

    try:
        return (await swarm.publish(directory)).infohash
    except UserError as error:
        if error.reason != "already-running":
            raise
        return (await asyncio.to_thread(files.describe, directory)).manifest.infohash


async def _wait(client: NodeClient, tx: AnyTransaction) -> api.FoundTransaction:
    with progress("Waiting for a block") as bar:
        return await client.confirmed(tx, lambda seconds: bar(seconds))


# --- open ----------------------------------------------------------------------------------------


@app.command("open")
def open_shard(
    model: Annotated[str, typer.Argument(help="The model's identity.")],
    index: Annotated[int, typer.Argument(min=0, max=63, help="Which shard.")],
    shard_keys: Annotated[
        Path, typer.Option(help="The keys of all its shards, as `oda model new` made them.")
    ],
    url: NodeUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Open a sealed shard: it decides whether the model's provisional version stays."""
    shared = load_settings()
    keys = ShardKeys.read(shard_keys)
    if index >= len(keys.shards):
        raise UserError("bad-shard-key", f"{shard_keys} has no key of shard {index}.")
    run(_open(shared, _url(shared, url), bytes.fromhex(hex32(model)), index, keys, as_json))


async def _open(
    shared: Settings, url: str, model: bytes, index: int, keys: ShardKeys, as_json: bool
) -> None:
    from sidechain import api, training
    from sidechain.node_client import NodeClient
    from sidechain.params import network
    from sidechain.primitives import signed
    from sidechain.stamping import stamp

    params = network(shared.network)
    secret = Key.load(shared).secret if keys.opener is None else keys.opener
    tx = training.opening_of(params, model, index, keys.shards[index])
    with progress("Searching for a stamp") as bar:
        tx = signed(await stamp(tx, params.stamp, bar), secret)
    async with NodeClient(url) as client:
        await client.send(tx)
        found = await _wait(client, tx)
        after = await client.get(f"/models/{model.hex()}", api.Model)
    if as_json:
        print_json({"height": found.height, "confirmed": after.confirmed})
    else:
        typer.echo(f"Shard {index} is open since block {found.height}.")
        typer.echo(f"The confirmed version has the score {after.confirmed.score}.")
