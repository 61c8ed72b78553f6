"""A secret on disk: 32 bytes that only their owner may read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from channels.errors import UserError

SIZE: Final = 32


def load(path: Path, draw: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The secret in the file, which is drawn (0600) where there is none. draw: so many bytes.

    Raises UserError("bad-key-file") for a file of another length.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != SIZE:
            raise UserError(
                "bad-key-file", f"{path} is damaged; remove it to have a new one made."
            ) from None
        return secret
    with os.fdopen(handle, "wb") as file:
        secret = draw(SIZE)
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    return secret
