"""What needs no fetching: files that are on this disk already, and weights made from a delta.

Everything here is checked by its pieces root before it counts, and libtorrent hashes it once more.
All of it blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from channels.errors import LocalProtocolError, RemoteProtocolError, UserError
from torrent import files, merkle
from torrent.library import Entry
from torrent.manifest import DELTA, WEIGHTS, File, Manifest
from torrent.merkle import FileHashes

Roots = Mapping[bytes, Path]


def copy_known(entry: Entry, manifest: Manifest, known: Roots, base: Path | None) -> bool:
    """Copy or reflink files whose pieces root is known here; whether there were any.

    known: files of the library by pieces root. base: a directory whose files of the same names
    are worth a look.
    """
    copied = False
    for file in manifest.files:
        target = entry.data / file.path
        if not file.length or target.exists():
            continue
        for source in _sources(file, known, base):
            if _hashed(source, file, manifest):
                files.copy(source, target)
                # Somebody may have written to the source meanwhile.
                if _hashed(target, file, manifest):
                    copied = True
                    break
                target.unlink()
    return copied


def _sources(file: File, known: Roots, base: Path | None) -> Iterator[Path]:
    if file.root in known:
        yield known[file.root]
    if base is not None:
        yield base / file.path


def _hashed(path: Path, file: File, manifest: Manifest) -> FileHashes | None:
    """The hashes of a plain file, if it is the manifest's."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.length:
        return None
    hashes = files.hash_file(path, manifest.piece_length)
    return hashes if hashes.root == file.root else None


def layers(entry: Entry, manifest: Manifest) -> dict[bytes, bytes]:
    """Piece layers of the files that are whole on disk, by pieces root."""
    found = {}
    for file in manifest.files:
        if file.length > manifest.piece_length:
            hashes = _hashed(entry.data / file.path, file, manifest)
            if hashes is not None:
                found[file.root] = hashes.layer
    return found


def finished_layers(entry: Entry, manifest: Manifest, trees: Sequence[bytes]) -> dict[bytes, bytes]:
    """All piece layers of a torrent whose files are all there.

    trees: leaves that libtorrent has kept, one string per file. Whatever gives the file's root is
    right; where nothing does, the file itself is hashed. Raises UserError "disk-error".
    """
    offered = {}
    for leaves in trees:
        if leaves and len(leaves) % merkle.HASH == 0:
            layer = merkle.layer_of(merkle.split(leaves), manifest.piece_length)
            offered[merkle.layer_root(layer, manifest.piece_length)] = layer
    found = {}
    for file in manifest.files:
        if file.length <= manifest.piece_length:
            continue
        layer = offered.get(file.root, b"")
        if not layer:
            path = entry.data / file.path
            hashes = _hashed(path, file, manifest)
            if hashes is None:
                raise UserError(
                    "disk-error", f"{path} is not as it was written; see to the disk, fetch again."
                )
            layer = hashes.layer
        found[file.root] = layer
    return found


def candidates(entry: Entry, manifest: Manifest, known: Roots, base: Path | None) -> list[Path]:
    """Weights that the torrent's delta may start from; empty if a delta is of no use."""
    weights = manifest.file(WEIGHTS)
    if weights is None or manifest.file(DELTA) is None or find_spec("numpy") is None:
        return []
    present = entry.data / WEIGHTS
    if present.is_file() and _hashed(present, weights, manifest):
        return []
    found = [path for path in known.values() if path.name == WEIGHTS]
    if base is not None and (base / WEIGHTS).is_file():
        found.insert(0, base / WEIGHTS)
    # A header may have grown by some bytes; other tensors make another model.
    near = [path for path in found if abs(path.stat().st_size - weights.length) <= 4096]
    return list(dict.fromkeys(near))


def rebuild(entry: Entry, manifest: Manifest, candidates: list[Path]) -> bool:
    """Make the weights from a candidate and the delta; False if they are to be fetched.

    A delta that does not fit its torrent is no reason to give up: the whole weights are there.
    """
    from torrent import delta  # here, because only this needs numpy

    weights = manifest.file(WEIGHTS)
    assert weights is not None, "candidates has seen to it"
    packed = (entry.data / DELTA).read_bytes()
    for path in candidates:
        try:
            rebuilt = delta.apply(path.read_bytes(), packed, weights.root)
        except (LocalProtocolError, UserError):
            continue  # it starts from others
        except RemoteProtocolError:
            return False
        files.write(entry.data / WEIGHTS, rebuilt)
        return True
    return False
