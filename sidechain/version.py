"""A version of a model from disk and to disk: what a trainer begins with, and what he gives."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from channels.errors import UserError
from sidechain.model import directory, parts, registry, roots, sealed, weights
from sidechain.model import objective as objectives
from sidechain.model.directory import Model
from sidechain.model.files import WEIGHTS, read_plain
from sidechain.model.parts import Part
from sidechain.model.sealed import Dataset
from sidechain.state import Definition, Version


def read(path: Path, definition: Definition, version: Version) -> Model:
    """The version whose directory came from the swarm. Raises UserError where its bytes are not
    those of the chain, or can't be used."""
    architecture = registry.decode(definition.architecture)
    shapes = architecture.shapes()
    data = read_plain(path / WEIGHTS, weights.file_limit(shapes))
    public, *shards = sealed.read_files(path)
    if roots.dataset_root(public, shards) != definition.dataset_root:
        raise UserError("wrong-root", "The data is not that with the root; fetch it again.")
    return Model(
        architecture,
        objectives.decode(definition.objective),
        weights.of_root(data, version.weights_root, shapes),
        Dataset(public, tuple(shards)),
        directory.read_learn(path),
    )


def write(path: Path, base: Model, better: Mapping[str, Tensor]) -> Model:
    """The same directory with other weights, in place of what a killed process left there."""
    shutil.rmtree(path, ignore_errors=True)
    made = Model(base.architecture, base.objective, better, base.dataset, base.learn)
    directory.write(path, made)
    return made


def more_to_learn(model: Model) -> Part | None:
    """What else came with the model. Whoever made the last update may have put it there: what
    can't be used is left, and what misleads is found out on the hold-out."""
    if model.learn is None:
        return None
    try:
        found = parts.decode(model.learn)
        parts.join(model.dataset.public_part, found)
    except UserError:
        return None
    return found
