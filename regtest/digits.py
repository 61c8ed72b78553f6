"""Part of `make demo`: beside the text, a model that reads handwritten digits gets better.

It is a small multi-layer perceptron on scikit-learn's digits, on the same chain and by the same
rules. Every sixth digit is kept from everybody, and tells how many the model reads right.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from regtest.learning import opening
from regtest.school import School, answers, library_path, note, remember_scores, until
from sidechain import api

KEPT: Final = 6
SCALE: Final = 4.0
"""Pixels go from 0 to 16, a model's inputs from -8 to 8."""

SHARDS: Final = 4
TRAIN_SECONDS: Final = 0.5


async def read_digits(school: School) -> None:
    """Publish it untrained, have it improved once with a sealed part opened, and look: all of it
    while the text's trainers compete, so that nobody waits for it."""
    folder = school.producer.directory / "digits"
    known, unseen = await asyncio.to_thread(write, folder)
    model = await publish(school, folder, known)
    school.pupil.start(
        *("train", model, "--connect", school.producer.address, "--once", "--json"),
        *("--port", str(school.pupil.port), "--seconds", str(TRAIN_SECONDS)),
    )
    try:
        async with opening(school, model, folder / "keys"):
            first, newest = await until(
                lambda: improved(school, model), "a better reader of digits"
            )
    finally:
        await asyncio.to_thread(school.pupil.daemon.stop)
    await remember_scores(school, model, "handwritten digits", "nats over all digits", 1)
    learned = school.learned
    learned.digits_accuracy_before, learned.digits_accuracy_after = [
        await asyncio.to_thread(right, library_path(school, version.infohash), unseen)
        for version in (first, newest)
    ]
    note(f"block {newest.height:>3}: handwritten digits, too, are read better, by the pupil")


def write(folder: Path) -> tuple[Path, Path]:
    """As CSV, 64 pixels and the digit: what is published, and what is kept."""
    # It has no types, and takes a second to import.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

    folder.mkdir(parents=True)
    pixels, digits = load_digits(return_X_y=True)
    rows = [
        ",".join(f"{number:g}" for number in (*row, digit)) + "\n"
        for row, digit in zip(pixels.tolist(), digits.tolist(), strict=True)
    ]
    known, unseen = folder / "known.csv", folder / "unseen.csv"
    known.write_text("".join(row for i, row in enumerate(rows) if i % KEPT))
    unseen.write_text("".join(rows[::KEPT]))
    return known, unseen


async def publish(school: School, folder: Path, known: Path) -> str:
    """-> the model's identity"""
    producer, model, keys = school.producer, str(folder / "model"), str(folder / "keys")
    await producer.oda(
        *("model", "new", model, "--labelled", str(known), "--divide-by", str(SCALE)),
        *("--shards", str(SHARDS), "--keys", keys),
    )
    await until(lambda: answers(producer), "the producer's node", 60)
    added = await producer.oda("model", "add", model, "--shard-keys", keys, "--url", producer.url)
    return str(added["model"])


async def improved(school: School, model: str) -> tuple[api.Version, api.Version] | None:
    """The first version and the newest, once a sealed part has confirmed another."""
    state = await school.node(f"/models/{model}", api.Model)
    first = state.versions[0].version
    if state.confirmed.weights_root != first.weights_root:
        return first, state.confirmed
    if school.pupil.daemon.pid() is None:
        raise school.pupil.daemon.failure("ended before it found anything")
    return None


def right(path: Path, unseen: Path) -> int:
    """Of a hundred digits that nobody has trained on, how many the version in `path` reads."""
    from sidechain.model import directory, exact, samples
    from sidechain.model.objective import Accuracy
    from sidechain.model.table import Table

    model = directory.read(path)
    part = samples.read_rows(unseen, Table(SCALE))
    losses = exact.sample_losses(model.architecture, Accuracy(), model.weights, part)
    return round(100 * losses.count(0) / len(losses))
