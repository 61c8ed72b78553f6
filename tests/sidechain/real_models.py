"""Models of real data: scikit-learn's handwritten digits, and Python's own help as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save
from sklearn.datasets import load_digits  # type: ignore[import-untyped] # it has no types
from torch import Tensor

from sidechain.model import roots
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Mlp
from sidechain.model.dataset import python_documentation
from sidechain.model.directory import Model
from sidechain.model.improve import improve
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Labelled, Text, fixed_point
from sidechain.model.sealed import Dataset, seal
from sidechain.model.trainer import Budget

KEYS: Final = tuple(bytes([i]) * 32 for i in range(1, 4))
PUBLIC: Final = 100
"""Digits in the public part: so few that training too long on them is overfitting."""

HIDDEN: Final = 60


@dataclass(frozen=True)
class Models:
    """Each differs from the one before it in its weights alone. overfit: better on the public
    part than `better`, and worse on what it has not seen."""

    first: Model
    better: Model
    overfit: Model


def digits() -> Models:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    inputs, labels = fixed_point(found.data[order] / 4), found.target[order].astype(np.uint16)

    def part(first: int, count: int) -> Labelled:
        return Labelled(inputs[first : first + count], labels[first : first + count])

    hidden = [part(PUBLIC + i * HIDDEN, HIDDEN) for i in range(len(KEYS))]
    return _models(Mlp(64, (16,), 10), part(0, PUBLIC), seal(part(0, PUBLIC), hidden, KEYS))


def write_digits(path: Path) -> None:
    """As CSV: 64 columns of 0 to 16, then the digit."""
    found = load_digits()
    rows = np.column_stack([found.data, found.target]).astype(int).tolist()
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


def text() -> Models:
    public = Text(python_documentation()[:8000])
    architecture = ByteTransformer(width=16, blocks=1, heads=1, context=32)
    return _models(architecture, public, seal(public, [], []))


def _models(architecture: Mlp | ByteTransformer, public: Labelled | Text, data: Dataset) -> Models:
    objective = CrossEntropy()

    def trained(start: dict[str, Tensor] | None, steps: int) -> dict[str, Tensor]:
        return improve(architecture, objective, public, Budget(steps=steps), start=start, rate=1e-2)

    first = trained(None, 5)
    better = trained(first, 60)
    overfit = trained(better, 400 if isinstance(public, Labelled) else 5)
    model = Model(architecture, objective, first, data)
    return Models(model, replace(model, weights=better), replace(model, weights=overfit))


def misshapen(model: Model) -> tuple[bytes, bytes]:
    """Weights of another architecture: the file, and its weights_root."""
    tensors = {**model.weights, "more": torch.ones(3, dtype=torch.int16)}
    root = roots.weights_root(
        roots.TensorRoot(
            name, "I16", tuple(tensor.shape), roots.bep52_root(tensor.numpy().tobytes())
        )
        for name, tensor in tensors.items()
    )
    return save(tensors), root
