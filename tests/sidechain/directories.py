"""Model directories for tests: tiny models, whose updates really get better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from sidechain.model import directory, registry, sealed
from sidechain.model import objective as objectives
from sidechain.model.classifiers import Mlp
from sidechain.model.directory import Model
from sidechain.model.improve import improve
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Labelled
from sidechain.model.sealed import key_hash
from sidechain.model.trainer import Budget
from sidechain.scores import ScoreRequest
from sidechain.state import Definition

KEYS: Final = tuple(bytes([i]) * 32 for i in range(1, 4))
ARCHITECTURE: Final = Mlp(4, (6,), 3)
OBJECTIVE: Final = CrossEntropy()
INFOHASH: Final = bytes(32)


def samples(count: int, seed: int) -> Labelled:
    """Three classes that a line almost parts."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count, np.uint16)
    rows = draw.integers(-2000, 2000, (count, 4)) + 4000 * np.eye(4, dtype=np.int64)[labels]
    return Labelled(rows.astype(np.int16), labels)


def trained(start: dict[str, Tensor] | None = None, steps: int = 1) -> dict[str, Tensor]:
    return improve(ARCHITECTURE, OBJECTIVE, samples(80, 0), Budget(steps=steps), start=start)


def model(weights: dict[str, Tensor] | None = None, shards: int = 1) -> Model:
    hidden = [samples(40, 1 + i) for i in range(shards)]
    dataset = sealed.seal(samples(80, 0), hidden, KEYS[:shards])
    return Model(ARCHITECTURE, OBJECTIVE, weights or trained(), dataset)


def definition(made: Model, keys: Sequence[bytes] | None = None) -> Definition:
    keys = KEYS[: len(made.dataset.shards)] if keys is None else keys
    return Definition(
        registry.encode(made.architecture),
        objectives.encode(made.objective),
        made.dataset.root,
        INFOHASH,
        tuple(key_hash(key) for key in keys),
        (bytes(32),) if keys else (),
        1,
        made.score_cost(),
    )


@dataclass(frozen=True)
class Written:
    """A model on disk, and what is asked about it."""

    model: Model
    path: Path
    definition: Definition

    def request(self, infohash: bytes) -> ScoreRequest:
        return ScoreRequest(bytes(32), self.model.weights_root, infohash)


def written(path: Path, made: Model | None = None) -> Written:
    made = made or model()
    directory.write(path, made)
    return Written(made, path, definition(made))


def updated(path: Path, before: Written, steps: int = 30) -> Written:
    better = replace(before.model, weights=trained(dict(before.model.weights), steps))
    directory.write(path, better)
    return Written(better, path, before.definition)
