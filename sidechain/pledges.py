"""What a trainer must not forget: weights that are committed to, and the salts that reveal them.

A pledge is on disk before its commit is sent. Everything else that a trainer does follows from the
chain and from these, so it may be killed at any instant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from channels.errors import UserError

MAX_FILE: Final = 1 << 20

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Pledge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Better weights, published and ready to be committed to. base: the root of what they improve.
    score: exact, on the public part. taken: the chain has confirmed them once."""

    weights_root: Hash
    infohash: Hash
    base: Hash
    score: Annotated[int, Meta(ge=0)]
    salt: Hash
    taken: bool = False


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many attempts there were on a base; each draws other numbers."""

    base: Hash
    number: Annotated[int, Meta(ge=0)]


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    pledges: list[Pledge] = []
    attempt: Attempt | None = None


class Pledges:
    """Of one model and one trainer, in a file of his own; the oldest first."""

    def __init__(self, path: Path) -> None:
        """Raises UserError("bad-pledges") for a file that is not whole: what is in it may be
        worth money, so it is not overwritten."""
        self._path = path
        self._content = _Content()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with path.open("rb") as file:
                self._content = msgspec.msgpack.decode(file.read(MAX_FILE), type=_Content)
        except FileNotFoundError:
            pass
        except ValueError as error:  # msgspec's errors are ValueErrors, as UTF-8's
            raise UserError(
                "bad-pledges", f"{path} is damaged ({error}); move it away to begin anew."
            ) from None

    @property
    def all(self) -> tuple[Pledge, ...]:
        return tuple(self._content.pledges)

    def add(self, pledge: Pledge) -> None:
        """And should it be refuted, the next attempt on its base is another."""
        self._content.pledges.append(pledge)
        self.finished(pledge.base)

    def replace(self, pledge: Pledge, by: Pledge) -> None:
        self._content.pledges[self._content.pledges.index(pledge)] = by
        self._save()

    def remove(self, pledge: Pledge) -> None:
        self._content.pledges.remove(pledge)
        self._save()

    def attempt(self, base: bytes) -> int:
        """The number of the attempt on a base that is under way or comes next."""
        found = self._content.attempt
        return found.number if found is not None and found.base == base else 0

    def finished(self, base: bytes) -> None:
        self._content.attempt = Attempt(base, self.attempt(base) + 1)
        self._save()

    def _save(self) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.msgpack.encode(self._content))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
