"""From a directory to a model that can be served.

There are two formats: a bundle (sidechain/model/bundle.py: float weights and a manifest that names
them), and a directory as it is registered on the sidechain and improved there
(sidechain/model/directory.py: int16 weights, objective, dataset).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import UserError
from provider.api import is_model_name
from sidechain.model import bundle, directory, files, registry, trainer, weights
from sidechain.model.architecture import ByteTransformer, ByteTransformerModule
from sidechain.model.dataset import python_documentation
from sidechain.model.files import read_plain
from sidechain.model.trainer import Budget, Progress

log = logging.getLogger(__name__)

MODEL_ID: Final = "oda-pydoc"
FIRST_TRAINING: Final = Budget(steps=1500, seconds=600)
"""Half a minute on two quiet cores. Steps, so that a busy machine gets the same model later."""
SEED: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """name: what requests call it. weights_id: names its numbers, as an answer can only go on with
    the very same. infohash: of its directory, None where that is not shared. weights_root: how the
    sidechain names the numbers; None for a bundle."""

    name: str
    module: ByteTransformerModule
    weights_id: str
    infohash: bytes | None = None
    weights_root: bytes | None = None


def load(path: Path, *, name: str | None = None, infohash: bytes | None = None) -> ServedModel:
    """Blocks. name: instead of the one that the directory itself has.

    Raises UserError: "missing-model"; "not-a-text-model" for one that can be scored and not spoken
    with; "bad-model-name"; else "bad-…".
    """
    if not path.is_dir():
        raise UserError("missing-model", f"There is no model in {path}; train or fetch one.")
    _check_reads_text(path)
    if not (path / files.OBJECTIVE).exists():
        read = bundle.read(path)
        found = _checked_name(name or read.manifest.name)
        return ServedModel(found, read.module, read.manifest.weights_sha256, infohash)
    model = directory.read(path)
    assert isinstance(model.architecture, ByteTransformer), "it reads text, as was checked"
    root = model.weights_root
    module = bundle.with_weights(model.architecture, weights.dequantise(model.weights))
    found = _checked_name(name or f"oda-{(infohash or root).hex()[:16]}")
    return ServedModel(found, module, root.hex(), infohash, root)


def _check_reads_text(path: Path) -> None:
    architecture = registry.decode(read_plain(path / bundle.ARCHITECTURE, registry.MAX_JSON))
    if not isinstance(architecture, ByteTransformer):
        raise UserError(
            "not-a-text-model",
            f"The model in {path} reads numbers and not text, so nobody can chat with it; "
            "serve another one.",
        )


def _checked_name(name: str) -> str:
    """A stranger may have chosen it, and it is shown on terminals and compared by clients."""
    if not is_model_name(name):
        raise UserError(
            "bad-model-name",
            f"{name[:40]!r} can't be a model's name (letters, digits and ._:/@+- up to 128); "
            "set provider.name.",
        )
    return name


def first_model(
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    budget: Budget = FIRST_TRAINING,
    architecture: ByteTransformer | None = None,
) -> Path:
    """The directory of a model to begin with, trained when there is none that can be read.

    Blocks for as long as the budget of a first training; a second process waits for the first
    and finds what it trained. `progress` is called with (step, nats per byte, seconds).
    """
    path = cache_dir / MODEL_ID
    wanted = architecture or ByteTransformer()
    with _locked(cache_dir / f"{MODEL_ID}.lock"):
        try:
            if bundle.read(path).architecture == wanted:
                return path
            log.info("The cached model has another architecture; training a new one.")
        except UserError as error:
            if error.reason != "missing-model":
                log.warning("%s Training a new one in its place.", error)
        trained = trainer.train(
            wanted, python_documentation(), budget, seed=SEED, progress=progress
        )
        bundle.write(
            path,
            trained.module,
            name=MODEL_ID,
            holdout_nats_per_byte=trained.holdout_nats_per_byte,
            steps=trained.steps,
            seed=SEED,
        )
        return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on a file; the system lets go of it even after a kill -9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
