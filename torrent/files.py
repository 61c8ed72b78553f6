"""Directories on disk: described by a manifest, copied, written so that they last.

The only module beside the swarm that touches files. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import RemoteProtocolError, UserError
from torrent.manifest import (
    LIMITS,
    MODEL_MANIFEST,
    WEIGHTS,
    File,
    Limits,
    Manifest,
    piece_length,
)
from torrent.merkle import FileHasher, FileHashes

CHUNK: Final = 1 << 20
MAX_MODEL_MANIFEST: Final = 1 << 16
FICLONE: Final = 0x40049409  # linux/fs.h; shares the blocks where the file system can

Report = Callable[[int], None]
"""Is told how many bytes were dealt with just now."""


def ignore(done: int) -> None:
    """A `Report` for those who don't want to know."""


@dataclass(frozen=True, slots=True)
class Described:
    """A directory, hashed. layers: piece layers by pieces root."""

    manifest: Manifest
    layers: Mapping[bytes, bytes]


def describe(
    directory: Path,
    *,
    limits: Limits = LIMITS,
    copy_to: Path | None = None,
    report: Report = ignore,
) -> Described:
    """The manifest of a directory's files; names that begin with a dot are left out.

    With `copy_to`, a directory that does not exist, the files are copied there first and the copy
    is what is described. Raises UserError: "not-found", "symlink", "bad-file", and the reasons of
    `Manifest.of`.
    """
    found = dict(_find(directory))
    Manifest.of(
        # Names and sizes first: what can't be shared is refused before it is read.
        (File(path, size, bytes(32) if size else b"") for path, (_, size) in found.items()),
        limits,
    )
    length = piece_length(sum(size for _, size in found.values()))
    files: list[File] = []
    layers: dict[bytes, bytes] = {}
    for path, (source, size) in found.items():
        if copy_to is not None:
            copy(source, copy_to / path)
            source = copy_to / path
        hashes = hash_file(source, length, report)
        if hashes.length != size:
            raise UserError("bad-file", f"{source} changed while it was read; try again.")
        files.append(File(path, size, hashes.root))
        if hashes.layer:
            layers[hashes.root] = hashes.layer
    return Described(Manifest.of(files, limits), layers)


def _find(directory: Path) -> Iterator[tuple[str, tuple[Path, int]]]:
    if not directory.is_dir():
        raise UserError("not-found", f"There is no directory {directory}; name one that exists.")
    for parent, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(folders):
            if (Path(parent) / name).is_symlink():
                raise UserError("symlink", f"{Path(parent) / name} is a link; copy what it names.")
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(parent) / name
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                raise UserError("symlink", f"{path} is a link; copy what it names.")
            if not stat.S_ISREG(found.st_mode):
                raise UserError("bad-file", f"{path} is not a plain file; take it away.")
            yield path.relative_to(directory).as_posix(), (path, found.st_size)


def hash_file(path: Path, piece: int, report: Report = ignore) -> FileHashes:
    hasher = FileHasher(piece)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
            report(count)
    return hasher.finish()


def copy(source: Path, target: Path) -> None:
    """A copy that shares nothing with its source but, where the file system can, its blocks.

    Never a hard link: whoever writes to one file must not change the other.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        except OSError:  # another file system, or one that can't; then byte by byte
            shutil.copyfileobj(old, new, CHUNK)
        new.flush()
        os.fsync(new.fileno())


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file so that it is whole or as it was before, whenever the machine stops."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with fresh.open("wb") as out:
            out.write(data)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync(root: Path, manifest: Manifest) -> None:
    """Return when all files and the folders they are in would survive a power cut."""
    folders = {root}
    for file in manifest.files:
        path = root / file.path
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        folders.update(parent for parent in path.parents if parent.is_relative_to(root))
    for folder in folders:
        sync_directory(folder)


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stamps(root: Path, manifest: Manifest) -> list[tuple[int, int]] | None:
    """(size, mtime in ns) of each file; None if one is missing, not plain, or of another size."""
    found = []
    for file in manifest.files:
        try:
            status = (root / file.path).lstat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.length:
            return None
        found.append((status.st_size, status.st_mtime_ns))
    return found


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def total(directory: Path) -> int:
    """Bytes of all files that `describe` would take; raises UserError as it does."""
    return sum(size for _, (_, size) in _find(directory))


def check_model(directory: Path, manifest: Manifest) -> None:
    """A model's manifest.json names its weights by SHA-256: see to it that they are those.

    What has no manifest.json, or one that names no weights, is not a model and passes. Raises
    RemoteProtocolError "manifest-mismatch".
    """
    described = manifest.file(MODEL_MANIFEST)
    if described is None or described.length > MAX_MODEL_MANIFEST:
        return
    try:
        fields = json.loads((directory / MODEL_MANIFEST).read_bytes())
    except (ValueError, RecursionError):
        return
    wanted = fields.get("weights_sha256") if isinstance(fields, dict) else None
    if wanted is None:
        return
    found = None
    if manifest.file(WEIGHTS) is not None:
        with (directory / WEIGHTS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise RemoteProtocolError(
            "manifest-mismatch", f"The torrent's {WEIGHTS} is not what its {MODEL_MANIFEST} names."
        )
