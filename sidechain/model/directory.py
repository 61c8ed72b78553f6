"""A model as it is registered and shared: all that its score follows from, in one directory.

    architecture.json   registry.encode       weights.safetensors   int16 (weights.py)
    objective.json      objective.encode      public.oda, shard-…   the dataset (sealed.py)
    learn.oda           what else there is to learn from, if anything; nobody scores it

An update has the same directory with other weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from channels.errors import UserError
from sidechain.model import exact, registry, sealed, weights
from sidechain.model import objective as objectives
from sidechain.model.files import (
    ARCHITECTURE,
    LEARN,
    MAX_LEARN,
    OBJECTIVE,
    WEIGHTS,
    read_plain,
)
from sidechain.model.objective import Objective
from sidechain.model.registry import Architecture
from sidechain.model.sealed import Dataset


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    architecture: Architecture
    objective: Objective
    weights: Mapping[str, Tensor]
    dataset: Dataset
    learn: bytes | None = None
    """An encoded part, as somebody says; parts.decode() finds out."""

    @property
    def weights_root(self) -> bytes:
        return weights.weights_root(self.weights)

    def score(self) -> int:
        """On the public part; raises UserError where the four do not go together."""
        return exact.score(
            self.architecture, self.objective, self.weights, self.dataset.public_part
        )

    def score_cost(self) -> int:
        """What score() counts against a block's limit; raises as it does."""
        part = self.dataset.public_part
        samples = exact.count_samples(self.architecture, self.objective, part)
        return exact.score_cost(self.architecture, self.objective, samples)


def write(directory: Path, model: Model) -> None:
    """So that `directory`, which must not be there yet, is either whole or absent."""
    if os.path.lexists(directory):
        raise UserError("model-exists", f"{directory} is there already; name another directory.")
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    sealed.write(fresh, model.dataset)
    (fresh / ARCHITECTURE).write_bytes(registry.encode(model.architecture))
    (fresh / OBJECTIVE).write_bytes(objectives.encode(model.objective))
    (fresh / WEIGHTS).write_bytes(weights.encode(model.weights))
    if model.learn is not None:
        (fresh / LEARN).write_bytes(model.learn)
    fresh.rename(directory)


def read(directory: Path) -> Model:
    """Raises UserError, its reason "missing-model" when there is nothing, else "bad-…".

    Nothing is scored yet. Whether the dataset fits the rest, score() and score_cost() find out.
    """
    if not directory.is_dir():
        raise UserError("missing-model", f"There is no model in {directory}; train or fetch one.")
    architecture = registry.decode(read_plain(directory / ARCHITECTURE, registry.MAX_JSON))
    objective = objectives.decode(read_plain(directory / OBJECTIVE, objectives.MAX_JSON))
    shapes = architecture.shapes()
    data = read_plain(directory / WEIGHTS, weights.file_limit(shapes))
    dataset = sealed.read(directory)
    return Model(
        architecture, objective, weights.decode(data, shapes), dataset, read_learn(directory)
    )


def read_learn(directory: Path) -> bytes | None:
    """No root stands for it, so whoever made an update may have put anything there."""
    try:
        return read_plain(directory / LEARN, MAX_LEARN)
    except UserError:
        return None
