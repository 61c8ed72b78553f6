"""What a directory is called everywhere: its manifest, its infohash, its magnet link. Pure.

A torrent of ours is BitTorrent v2 (BEP 52) and nothing in it is left to choice. The name is always
"oda", the piece length follows from the total length, files are ordered by their names' bytes, and
the info dictionary has no further keys. So the same files always have the same infohash, and of a
stranger's metadata we believe only what we would have written ourselves.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from channels.errors import RemoteProtocolError, UserError
from torrent import bencode, merkle
from torrent.bencode import Value

NAME: Final = "oda"

MIN_PIECE: Final = 1 << 16
MAX_PIECE: Final = 1 << 24
MANY_PIECES: Final = 1024
"""Pieces are as small as they can be without a torrent having more of them than this."""

# What a directory calls its parts (DESIGN: a model is a directory).
MODEL_MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.safetensors"
DELTA: Final = "weights.delta"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a stranger's metadata may ask of us."""

    metadata: int = 1 << 20  # bytes of the info dictionary
    files: int = 10_000
    total: int = 1 << 40  # bytes of all files
    depth: int = 8
    name: int = 240  # bytes of one name in UTF-8; file systems end at 255
    path: int = 1024


LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class File:
    """path: "folder/name", always with "/". root: 32 bytes, none if the file is empty."""

    path: str
    length: int
    root: bytes


@dataclass(frozen=True)
class Manifest:
    """The files of a torrent in their order. Build it with `of` or `parse_info`."""

    files: tuple[File, ...]

    @classmethod
    def of(cls, files: Iterable[File], limits: Limits = LIMITS) -> Manifest:
        """Of our own files, in any order; raises UserError with the reasons of `parse_info`."""
        ordered = tuple(sorted(files, key=lambda file: _components(file.path)))
        try:
            _check(ordered, limits)
        except RemoteProtocolError as error:
            raise UserError(error.reason, str(error)) from None
        return cls(ordered)

    @cached_property
    def total(self) -> int:
        return sum(file.length for file in self.files)

    @cached_property
    def piece_length(self) -> int:
        return piece_length(self.total)

    @cached_property
    def info(self) -> bytes:
        """The info dictionary: "file tree", "meta version", "name", "piece length"."""
        tree: dict[bytes, object] = {}
        for file in self.files:
            *folders, name = _components(file.path)
            folder = tree
            for part in folders:
                below = folder.setdefault(part, {})
                assert isinstance(below, dict), "_check has seen to it"
                folder = below
            leaf: dict[bytes, object] = {b"length": file.length}
            if file.length:
                leaf[b"pieces root"] = file.root
            folder[name] = {b"": leaf}
        return bencode.encode(
            {
                b"file tree": tree,
                b"meta version": 2,
                b"name": NAME.encode(),
                b"piece length": self.piece_length,
            }
        )

    @cached_property
    def infohash(self) -> bytes:
        """32 bytes: SHA-256 of the info dictionary (BEP 52 "infohash")."""
        return hashlib.sha256(self.info).digest()

    def file(self, path: str) -> File | None:
        return next((file for file in self.files if file.path == path), None)


def piece_length(total: int) -> int:
    """A power of two from 64 KiB to 16 MiB (BEP 52: at least 16 KiB)."""
    wanted = merkle.power_of_two(-(-total // MANY_PIECES))
    return min(max(wanted, MIN_PIECE), MAX_PIECE)


def metainfo(manifest: Manifest, layers: Mapping[bytes, bytes]) -> bytes:
    """A .torrent file. `layers`: piece layers by pieces root, for as many files as are known."""
    wanted = {
        file.root: layers[file.root]
        for file in manifest.files
        if file.length > manifest.piece_length and file.root in layers
    }
    parts = {b"info": bencode.decode(manifest.info), b"piece layers": wanted}
    return bencode.encode(parts)


def parse_metainfo(data: bytes, limits: Limits = LIMITS) -> tuple[Manifest, dict[bytes, bytes]]:
    """A stranger's .torrent file: its manifest and its piece layers, checked against the roots.

    Raises RemoteProtocolError as `parse_info` does, and "bad-piece-layers".
    """
    # A piece layer has 32 bytes for each of at least 64 KiB, and the files are limited themselves.
    if len(data) > limits.metadata + limits.total // MIN_PIECE * merkle.HASH:
        raise _refuse("metadata-too-long", "is too long")
    top = _dict(bencode.decode(data), "the metadata")
    info = _dict(top.get(b"info"), "the info dictionary")
    manifest = parse_info(bencode.encode(info), limits)
    layers = _dict(top.get(b"piece layers"), "the piece layers")
    checked: dict[bytes, bytes] = {}
    for file in manifest.files:
        if file.length <= manifest.piece_length:
            continue
        layer = layers.get(file.root)
        count = -(-file.length // manifest.piece_length)
        # BEP 52: not valid if absent, not matching the roots, or of the wrong layer.
        if (
            not isinstance(layer, bytes)
            or len(layer) != count * merkle.HASH
            or merkle.layer_root(layer, manifest.piece_length) != file.root
        ):
            raise _refuse("bad-piece-layers", f"has no true piece layer for {file.path!r}")
        checked[file.root] = layer
    return manifest, checked


def parse_info(data: bytes, limits: Limits = LIMITS) -> Manifest:
    """The manifest that a stranger's info dictionary is; nothing has been written before.

    Raises RemoteProtocolError: "metadata-too-long", "bad-bencoding", "bad-metadata",
    "unsupported-version", "unsafe-path", "bad-name", "symlink", "padding-file", "empty-torrent",
    "too-many-files", "too-large", "colliding-names", "not-canonical".
    """
    if len(data) > limits.metadata:
        raise _refuse("metadata-too-long", "is too long")
    info = _dict(bencode.decode(data), "the info dictionary")
    # BEP 52: the version comes before all other checks.
    if info.get(b"meta version") != 2:
        raise _refuse("unsupported-version", "is not of BitTorrent v2")
    found: list[File] = []
    _walk(_dict(info.get(b"file tree"), "the file tree"), (), found, limits)
    files = tuple(found)
    _check(files, limits)
    manifest = Manifest(files)
    if manifest.info != data:
        raise _refuse(
            "not-canonical",
            "was not made by ODA's rules (name, piece length, no further keys); publish its "
            "files with `oda seed` and use that infohash",
        )
    return manifest


def _walk(
    tree: Mapping[bytes, Value], parents: tuple[str, ...], found: list[File], limits: Limits
) -> None:
    if len(parents) > limits.depth:
        raise _refuse("unsafe-path", f"has folders more than {limits.depth} deep")
    if not tree and parents:
        raise _refuse("not-canonical", "has an empty folder")
    for raw, value in tree.items():
        name = _name(raw)
        path = (*parents, name)
        entry = _dict(value, "an entry of the file tree")
        if b"" not in entry:
            _walk(entry, path, found, limits)
            continue
        # BEP 52: a file "must not have any sibling entries".
        if len(entry) != 1:
            raise _refuse("bad-metadata", f"has a file {'/'.join(path)!r} that is a folder too")
        found.append(_file("/".join(path), _dict(entry[b""], "a file")))
        if len(found) > limits.files:
            raise _refuse("too-many-files", f"has more than {limits.files} files")


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _refuse("bad-name", "has a name that is not UTF-8") from None
    if "/" in name:
        raise _refuse("unsafe-path", f"has a path that leaves its folder: {name!r}")
    return name


def _file(path: str, leaf: Mapping[bytes, Value]) -> File:
    attributes = leaf.get(b"attr", b"")
    # BEP 47: l is a symbolic link, p a padding file.
    if b"symlink path" in leaf or (isinstance(attributes, bytes) and b"l" in attributes):
        raise _refuse("symlink", f"has a symbolic link {path!r}")
    if isinstance(attributes, bytes) and b"p" in attributes:
        raise _refuse("padding-file", f"has a padding file {path!r}")
    length, root = leaf.get(b"length"), leaf.get(b"pieces root", b"")
    if not isinstance(length, int) or not isinstance(root, bytes):
        raise _refuse("bad-metadata", f"has no length and pieces root for {path!r}")
    return File(path, length, root)


def _check(files: tuple[File, ...], limits: Limits) -> None:
    """The rules for files, ours or a stranger's; raises RemoteProtocolError."""
    if len(files) > limits.files:
        raise _refuse("too-many-files", f"has more than {limits.files} files")
    total = 0
    # What is one name on a file system that folds case or normalizes is one name here.
    seen: dict[str, str] = {}
    for file in files:
        check_path(file.path, limits)
        if file.length < 0 or len(file.root) != (merkle.HASH if file.length else 0):
            raise _refuse("bad-metadata", f"has no valid length and root for {file.path!r}")
        total += file.length
        if total > limits.total:
            raise _refuse("too-large", f"has more than {limits.total} bytes")
        parts = file.path.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            key = unicodedata.normalize("NFKC", path).casefold()
            is_file = depth == len(parts)
            if key in seen and (is_file or seen[key] != path):
                raise _refuse("colliding-names", f"has names that collide: {path!r}")
            # A folder may come again under its own name; a file ends its name for good.
            seen[key] = "" if is_file else path
    if not total:
        raise _refuse("empty-torrent", "has nothing in it")


RESERVED: Final = frozenset('<>:"|?*\\/')


def check_path(path: str, limits: Limits = LIMITS) -> None:
    """Refuse what could leave the folder, or could not be a file on every system.

    Raises RemoteProtocolError "unsafe-path" or "bad-name".
    """
    parts = path.split("/")
    if len(parts) > limits.depth + 1 or len(path.encode(errors="replace")) > limits.path:
        raise _refuse("unsafe-path", f"has too long a path: {path[:60]!r}")
    for part in parts:
        if part in ("", ".", "..") or "\\" in part or "/" in part:
            raise _refuse("unsafe-path", f"has a path that leaves its folder: {path!r}")
        # Control characters, unassigned ones and those that turn the direction of writing.
        odd = any(unicodedata.category(char)[0] == "C" or char in RESERVED for char in part)
        if odd or part[0] == "." or part[-1] in ". " or len(part.encode()) > limits.name:
            raise _refuse("bad-name", f"has a name that is not a file's everywhere: {path!r}")


def _components(path: str) -> tuple[bytes, ...]:
    return tuple(part.encode(errors="surrogateescape") for part in path.split("/"))


def _dict(value: object, what: str) -> dict[bytes, Value]:
    if not isinstance(value, dict):
        raise _refuse("bad-metadata", f"lacks {what}")
    return value


def _refuse(reason: str, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(reason, f"The torrent {what}.")


def require_same(wanted: Manifest, found: Manifest) -> None:
    """Raises RemoteProtocolError "manifest-mismatch", naming the first file that differs."""
    if wanted == found:
        return
    ours, theirs = set(wanted.files), set(found.files)
    path = min(file.path for file in ours ^ theirs)
    raise RemoteProtocolError(
        "manifest-mismatch", f"The torrent is not what was announced: {path!r} differs."
    )
