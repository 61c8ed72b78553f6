"""Prints, as JSON, every score of the models in `models`: run by test_exact.py under settings that
are read once, when torch is imported."""

from __future__ import annotations

import hashlib
import json

import torch

from sidechain.model import exact
from tests.sidechain.model import models

BATCHES = (None, 1, 3, 7, 1000)


def scores() -> dict[str, str]:
    """The name of each model and kind of weights, with a hash of all its losses."""
    found = {}
    for name, (architecture, objective, part) in models.CASES.items():
        for kind in ("small", "any", "largest"):
            weights = models.weights(architecture, kind)
            losses = {
                exact.sample_losses(architecture, objective, weights, part, batch=batch)
                for batch in BATCHES
            }
            assert len(losses) == 1, name
            found[f"{name}, {kind}"] = hashlib.sha256(repr(losses).encode()).hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps([torch.backends.cpu.get_cpu_capability(), scores()]))
