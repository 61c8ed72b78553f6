"""Files of a model directory: their names, and how one that a stranger made is read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from channels.errors import UserError

ARCHITECTURE: Final = "architecture.json"
OBJECTIVE: Final = "objective.json"
WEIGHTS: Final = "weights.safetensors"
PUBLIC: Final = "public.oda"
LEARN: Final = "learn.oda"
MAX_LEARN: Final = 1_000_000
"""Bytes: a directory may have no more beside what is scored (scoring.EXTRA_BYTES)."""
MAX_SHARDS: Final = 64


def dataset_names(shards: int = MAX_SHARDS) -> list[str]:
    """public.oda, shard-00.oda … in order; a dataset ends before the first that is missing."""
    return [PUBLIC, *(f"shard-{i:02d}.oda" for i in range(shards))]


def read_plain(path: Path, most: int) -> bytes:
    """A plain file of at most `most` bytes; not a link to elsewhere, nor a pipe that blocks.

    Raises UserError("bad-file").
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise _bad(f"{path.name} is not a plain file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise _bad(f"{path.name} can't be read: {error.strerror}") from None
    if len(data) > most:
        raise _bad(f"{path.name} is longer than the {most} bytes it may have")
    return data


def _bad(sentence: str) -> UserError:
    return UserError("bad-file", f"The model can't be used: {sentence}; take another copy.")
