"""A new model from somebody's data: what is scored, what is sealed, what is left to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from channels.errors import UserError
from sidechain.model import exact, parts, sealed
from sidechain.model.directory import Model
from sidechain.model.files import MAX_LEARN
from sidechain.model.network import Network
from sidechain.model.objective import Objective
from sidechain.model.parts import Labelled, Part, Regression, Text
from sidechain.model.registry import Architecture
from sidechain.model.weights import quantise

MIN_SHARD: Final = 32
"""Samples; fewer prove nothing (Params.min_shard_samples)."""

MAX_SHARD: Final = 256
"""As many decide well; more are better learnt from."""

SEALED: Final = 4
"""One sample in so many is sealed, unless it is said otherwise."""

STRETCHES: Final = 8
"""A shard of a text is so many pieces from different places, so that it tells of all of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the network allows of one model: the cost of scoring, bytes of data and of weights."""

    score_cost: int
    dataset_bytes: int
    model_bytes: int


@dataclass(frozen=True, slots=True)
class Amounts:
    """Samples: of the public part, of each shard, and what is left."""

    public: int
    shard: int
    rest: int


def amounts(
    architecture: Architecture,
    objective: Objective,
    part: Part,
    shards: int,
    limits: Limits,
    *,
    public: int | None = None,
    shard: int | None = None,
) -> Amounts:
    """How the samples of `part` are shared out; `public` and `shard` where somebody has said so.

    Raises UserError: "model-too-costly", "bad-dataset", "bad-architecture", and as
    exact.count_samples does.
    """
    total = exact.count_samples(architecture, objective, part)
    if 2 * architecture.parameters > limits.model_bytes:
        raise UserError("bad-architecture", f"Weights may have {limits.model_bytes} bytes.")
    # Opening a shard scores two versions in one block.
    cost = limits.score_cost // (2 if shards else 1)
    affordable = _most(architecture, objective, total, cost)
    least = MIN_SHARD if shards else 1
    if affordable < least:
        raise UserError(
            "model-too-costly",
            f"A block pays for scoring {affordable} samples of this model, and {least} are needed; "
            "take a smaller one, or a shorter context.",
        )
    if shard is None:
        shard = max(MIN_SHARD, min(MAX_SHARD, total // (SEALED * max(1, shards)), affordable))
    fit = limits.dataset_bytes // _sample_bytes(architecture, part) - 1
    room = min(total, fit) - shards * shard
    public = min(room, affordable) if public is None else public
    if public < max(1, shard if shards else 1) or public > room:
        raise UserError(
            "bad-dataset",
            f"{total} samples ({max(0, fit)} are allowed in all) are too few for {shards} shards "
            f"of {shard} and a public part that is no smaller; take more data or fewer shards.",
        )
    if public > affordable:
        raise UserError(
            "model-too-costly",
            f"A block pays for scoring {affordable} samples of this model, not {public}.",
        )
    return Amounts(public, shard, total - public - shards * shard)


def _most(architecture: Architecture, objective: Objective, total: int, cost: int) -> int:
    """How many samples, up to `total`, are scored for no more than `cost`."""
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        if exact.score_cost(architecture, objective, middle) <= cost:
            low = middle
        else:
            high = middle - 1
    return low


def _sample_bytes(architecture: Architecture, part: Part) -> int:
    if isinstance(part, Text):
        return architecture.input_shape[0]
    answers = 1 if isinstance(part, Labelled) else part.targets.shape[1]
    return 2 * int(part.inputs.shape[1] + answers)


def create(
    architecture: Architecture,
    objective: Objective,
    part: Part,
    found: Amounts,
    keys: Sequence[bytes],
    seed: int,
) -> Model:
    """Untrained weights, and the data shared out at random: one sealed shard for each of `keys`.

    What is left over is to be learnt from, as far as a directory may have it.
    """
    draw = np.random.default_rng(seed)
    sizes = [*(found.shard for _ in keys), found.public, found.rest]
    *hidden, public, rest = _shared_out(part, architecture.input_shape[0], sizes, draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draw.integers(1 << 62)))
        weights = quantise(Network(architecture).state_dict()).weights
    learn = None if found.rest == 0 else parts.encode(rest)
    if learn is not None and len(learn) > MAX_LEARN:
        fewer = found.rest * (MAX_LEARN - 64) // len(learn)
        learn = parts.encode(_first(rest, architecture.input_shape[0], fewer))
    return Model(architecture, objective, weights, sealed.seal(public, hidden, keys), learn)


def _shared_out(
    part: Part, size: int, sizes: Sequence[int], draw: np.random.Generator
) -> list[Part]:
    """Parts with so many samples each, drawn at random; the last has what is left."""
    samples = sum(sizes)
    stretch = max(1, sizes[0] // STRETCHES) if isinstance(part, Text) else 1
    starts = np.arange(0, samples, stretch)
    order = [
        sample
        for start in draw.permutation(starts).tolist()
        for sample in range(start, min(start + stretch, samples))
    ]
    made, first = [], 0
    for count in sizes:
        made.append(_chosen(part, size, np.sort(order[first : first + count]).astype(np.int64)))
        first += count
    return made


def _chosen(part: Part, size: int, chosen: npt.NDArray[np.int64]) -> Part:
    if isinstance(part, Text):
        windows = [part.data[i * size : (i + 1) * size] for i in chosen.tolist()]
        end = (int(chosen[-1]) + 1) * size if len(chosen) else 0
        return Text(b"".join(windows) + part.data[end : end + 1])
    if isinstance(part, Labelled):
        return Labelled(part.inputs[chosen], part.labels[chosen])
    return Regression(part.inputs[chosen], part.targets[chosen])


def _first(part: Part, size: int, count: int) -> Part:
    return _chosen(part, size, np.arange(count))
