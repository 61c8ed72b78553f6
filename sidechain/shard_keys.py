"""The keys of a model's sealed shards, and the opener's own: one file, 0600, beside the model.

    {"opener": 64 hex digits, "shards": [64 hex digits, …]}

or, where the opener keeps a key of his own, the shards' keys alone, one on each line. Whoever has
it can train to the test, so it never goes into the model's directory.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from channels.errors import UserError
from sidechain.primitives import MAX_SHARDS, x_only

MAX_FILE: Final = 1 << 14

Secret = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

_Lines = Annotated[list[Secret], Meta(max_length=MAX_SHARDS)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    opener: Secret
    shards: _Lines


class ShardKeys(msgspec.Struct, frozen=True):
    """opener: the secret that signs openings, if it is here. shards: one key each, in order."""

    opener: bytes | None
    shards: tuple[bytes, ...]

    @classmethod
    def draw(cls, shards: int) -> Self:
        drawn = tuple(secrets.token_bytes(32) for _ in range(shards))
        return cls(secrets.token_bytes(32), drawn)

    @property
    def openers(self) -> tuple[bytes, ...]:
        """The opener's x-only key (BIP 340), if it is known; never a trainer's."""
        return () if self.opener is None else (x_only(self.opener),)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError("bad-keys-file")."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE)
            found = cls._decode(data)
            if found.openers and len({*found.shards}) < len(found.shards):
                raise ValueError("a key is there twice")
        except OSError as error:
            raise _bad(path, error.strerror or str(error)) from None
        except ValueError as error:  # msgspec's errors are ValueErrors, as is a secret of zeros
            # What it says may quote what stands in the file.
            raise _bad(path, re.sub("[0-9a-f]{8,}", "…", str(error))) from None
        return found

    @classmethod
    def _decode(cls, data: bytes) -> Self:
        if data.lstrip().startswith(b"{"):
            file = msgspec.json.decode(data, type=_File)
            return cls(bytes.fromhex(file.opener), tuple(map(bytes.fromhex, file.shards)))
        lines = msgspec.convert(data.decode("ascii").lower().split(), _Lines)
        return cls(None, tuple(map(bytes.fromhex, lines)))

    def write(self, path: Path) -> None:
        """Into a file that must be new, on disk when this returns. Raises UserError:
        "already-exists" or "bad-keys-file"."""
        if self.opener is None:
            raise ValueError("a file that we write has the opener's key")
        content = _File(self.opener.hex(), [key.hex() for key in self.shards])
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            raise UserError("already-exists", f"{path} exists; name another file.") from None
        except OSError as error:
            raise _bad(path, error.strerror or str(error)) from None
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _bad(path: Path, what: str) -> UserError:
    return UserError("bad-keys-file", f"{path} can't be used: {what}.")
