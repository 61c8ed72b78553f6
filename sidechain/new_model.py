"""`oda model new`: a model directory from somebody's own data."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from channels.errors import UserError
from channels.settings import load_settings
from channels.terminal import EXIT_CODES, ExitCode, JsonFlag, print_json
from sidechain.model.table import Table

if TYPE_CHECKING:
    from sidechain.model.creating import Amounts
    from sidechain.model.directory import Model
    from sidechain.model.objective import Objective
    from sidechain.model.parts import Part
    from sidechain.model.registry import Architecture
    from sidechain.params import Params

EXIT_CODES["model-exists"] = ExitCode.IN_USE

SHARDS: Final = 8

TextOption = Annotated[Path | None, typer.Option(help="Learn to write like this file.")]
LabelledOption = Annotated[
    Path | None, typer.Option(help="Learn from rows of numbers: a .csv or .npz file.")
]
TargetOption = Annotated[
    str | None, typer.Option(help="The CSV's column with the label. [default: the last one]")
]
DivideOption = Annotated[
    float, typer.Option(help="Divide all inputs by this, so that they lie between -8 and 8.")
]


ArchitectureOption = Annotated[
    str | None, typer.Option(help="byte-transformer, mlp or cnn. [default: by the data]")
]
TransformerSize = Annotated[int, typer.Option(help="Of a byte-transformer.")]
HeadsOption = Annotated[int, typer.Option(help="Of a byte-transformer: width/4, /16 or /64.")]
ContextOption = Annotated[int, typer.Option(help="Bytes that a byte-transformer sees at once.")]
HiddenOption = Annotated[str, typer.Option(help="Sizes of an mlp's hidden layers.")]
ImageOption = Annotated[
    str | None, typer.Option(help="Of a cnn: HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS.")
]
FiltersOption = Annotated[str, typer.Option(help="Channels of a cnn's convolutions.")]
KernelOption = Annotated[int, typer.Option(help="Side of a cnn's windows: 1, 3, 5 or 7.")]
ObjectiveOption = Annotated[
    str, typer.Option(help="cross-entropy, accuracy or mean-squared-error.")
]
ComplexityOption = Annotated[
    int, typer.Option(help="What each unit of the weights' squared norm costs a sample.")
]
ShardsOption = Annotated[int, typer.Option(min=0, max=64, help="Sealed shards.")]
ShardSamplesOption = Annotated[int | None, typer.Option(min=32, help="Of each shard.")]
PublicSamplesOption = Annotated[int | None, typer.Option(min=1, help="That are scored.")]
KeysOption = Annotated[
    Path | None, typer.Option(help="Where the shards' keys go. [default: DIR.keys]")
]


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What is made; must be new.")],
    text: TextOption = None,
    labelled: LabelledOption = None,
    target: TargetOption = None,
    divide_by: DivideOption = 1.0,
    architecture: ArchitectureOption = None,
    width: TransformerSize = 64,
    blocks: TransformerSize = 2,
    heads: HeadsOption = 4,
    context: ContextOption = 64,
    hidden: HiddenOption = "64",
    image: ImageOption = None,
    filters: FiltersOption = "16,32",
    kernel: KernelOption = 3,
    objective: ObjectiveOption = "cross-entropy",
    complexity: ComplexityOption = 0,
    shards: ShardsOption = SHARDS,
    shard_samples: ShardSamplesOption = None,
    public_samples: PublicSamplesOption = None,
    keys: KeysOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a model: data shared out at random, some of it sealed, and untrained weights.

    What a block can't pay to score stays in the model to learn from. Keep the file with the keys:
    each of them decides about one improvement, and nobody else may have it.
    """
    from sidechain.params import network

    if (text is None) == (labelled is None):
        raise UserError("bad-option", "Name the data: --text FILE or --labelled FILE.")
    keys = _outside(keys or directory.with_name(f"{directory.name}.keys"), directory)
    goal = _objective(objective, complexity)
    part = _part(text, labelled, Table(divide_by, objective == "mean-squared-error", target))
    shapes: dict[str, dict[str, Any]] = {
        "byte-transformer": {"width": width, "blocks": blocks, "heads": heads, "context": context},
        "mlp": {"hidden": _sizes(hidden)},
        "cnn": {**_image(image), "filters": _sizes(filters), "kernel": kernel},
    }
    kind = architecture or ("mlp" if text is None else "byte-transformer")
    chosen = _architecture(kind, shapes, part)
    params = network(load_settings().network)
    asked = (public_samples, shard_samples)
    model, found = _create(directory, keys, chosen, goal, part, params, shards, asked)
    _tell(directory, keys if shards else None, model, found, params, as_json)


def _outside(keys: Path, directory: Path) -> Path:
    """Where keys may be; raises UserError("bad-keys-file")."""
    if keys.resolve().is_relative_to(directory.resolve()):
        raise UserError("bad-keys-file", f"{keys} lies in {directory}, which everybody gets.")
    return keys


def _objective(name: str, complexity: int) -> Objective:
    from sidechain.model import objective as objectives

    try:
        return objectives.decode(
            msgspec.json.encode({"type": name, "complexity": complexity, "noise": None})
        )
    except UserError as error:
        raise UserError(error.reason, f"There is no objective {name!r} like that.") from None


def _part(text: Path | None, labelled: Path | None, table: Table) -> Part:
    from sidechain.model import samples

    if text is not None:
        return samples.read_text(text)
    assert labelled is not None  # one of the two is there
    return samples.read_rows(labelled, table)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",") if size)
    except ValueError:
        raise UserError(
            "bad-option", f"{text!r} are not sizes with commas between, like 64,32."
        ) from None


def _image(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    sizes = text.split("x")
    if len(sizes) not in (2, 3) or not all(size.isascii() and size.isdigit() for size in sizes):
        raise UserError("bad-option", f"{text!r} is no image; write HEIGHTxWIDTH, like 8x8.")
    return dict(zip(("height", "width", "channels"), map(int, sizes), strict=False))


def _architecture(kind: str, shapes: dict[str, dict[str, Any]], part: Part) -> Architecture:
    """As its data needs it: rows say how many inputs there are, labels how many classes."""
    from sidechain.model import registry
    from sidechain.model.parts import Labelled, Regression

    if kind not in shapes:
        raise UserError(
            "bad-architecture", f"No {kind!r} is known; take one of {', '.join(shapes)}."
        )
    shape = shapes[kind]
    if isinstance(part, Labelled):
        shape["outputs"] = int(part.labels.max()) + 1
    elif isinstance(part, Regression):
        shape["outputs"] = part.targets.shape[1]
    if kind == "cnn":
        if "height" not in shape:
            raise UserError("bad-option", "Say which images a cnn sees, like --image 8x8.")
        shape.setdefault("channels", 1)
    elif isinstance(part, Labelled | Regression):
        shape["inputs"] = part.inputs.shape[1]
    try:
        chosen: Architecture = msgspec.convert({"type": kind, **shape}, registry.Architecture)
    except msgspec.ValidationError as error:
        raise UserError("bad-architecture", f"That makes no {kind}: {error}.") from None
    return chosen


def _create(
    directory: Path,
    keys: Path,
    architecture: Architecture,
    objective: Objective,
    part: Part,
    params: Params,
    shards: int,
    asked: tuple[int | None, int | None],
) -> tuple[Model, Amounts]:
    """The keys are on disk before what they open is."""
    from sidechain.model import creating
    from sidechain.model import directory as directories
    from sidechain.shard_keys import ShardKeys

    limits = creating.Limits(params.score_cost, params.dataset_bytes, params.model_bytes)
    public, shard = asked
    found = creating.amounts(
        architecture, objective, part, shards, limits, public=public, shard=shard
    )
    drawn = ShardKeys.draw(shards)
    seed = secrets.randbits(64)
    model = creating.create(architecture, objective, part, found, drawn.shards, seed)
    if directory.exists():
        raise UserError("model-exists", f"{directory} is there already; name another directory.")
    if shards:
        drawn.write(keys)
    directories.write(directory, model)
    return model, found


def _tell(
    directory: Path,
    keys: Path | None,
    model: Model,
    found: Amounts,
    params: Params,
    as_json: bool,
) -> None:
    """Reads the directory again: what is told is what others will find."""
    from sidechain.model import directory as directories
    from sidechain.model import registry

    model = directories.read(directory)
    score, cost = model.score(), model.score_cost()
    shards = len(model.dataset.shards)
    if as_json:
        document = {
            "directory": directory,
            "keys": keys,
            "architecture": registry.encode(model.architecture).decode(),
            "parameters": model.architecture.parameters,
            "weights_root": model.weights_root.hex(),
            "dataset_root": model.dataset.root.hex(),
            "score": score,
            "score_cost": cost,
            "score_cost_limit": params.score_cost // (2 if shards else 1),
            "samples": {"public": found.public, "shard": found.shard, "rest": found.rest},
            "shards": shards,
        }
        print_json(document)
        return
    typer.echo(f"{registry.encode(model.architecture).decode()}")
    typer.echo(f"{model.architecture.parameters} parameters, root {model.weights_root.hex()}")
    typer.echo(f"{found.public} samples are scored, {found.rest} more are there to learn from")
    part = 100 * cost * (2 if shards else 1) / params.score_cost
    typer.echo(f"score {score} (untrained), which takes {part:.1f} % of what a block may cost")
    add = f"oda model add {directory}"
    if keys is not None:
        typer.echo(f"{shards} shards of {found.shard} samples are sealed; their keys: {keys}")
        add += f" --shard-keys {keys}"
    typer.echo(f"Register it: {add}")
