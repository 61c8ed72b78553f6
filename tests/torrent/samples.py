"""Directories to share, and metadata that nobody should."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from torrent import bencode


def content(seed: str, length: int) -> bytes:
    """The bytes behind tests/vectors/bep52.json, which says how they are made."""
    blocks = range(-(-length // 32))
    stream = (hashlib.sha256(seed.encode() + i.to_bytes(8, "big")).digest() for i in blocks)
    return b"".join(stream)[:length]


def fill(directory: Path, files: dict[str, int]) -> Path:
    for path, length in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content(path, length))
    return directory


def safetensors(numbers: np.ndarray, kind: str = "F32", note: str = "") -> bytes:
    """One tensor on the int16 grid."""
    data = (
        numbers.astype("<i2").tobytes()
        if kind == "I16"
        else (numbers.astype("<f4") / np.float32(16384)).tobytes()
    )
    header = json.dumps(
        {
            "__metadata__": {"note": note},
            "w": {"dtype": kind, "shape": [numbers.size], "data_offsets": [0, len(data)]},
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + data


def model(directory: Path, weights: bytes, **more: bytes) -> Path:
    directory.mkdir(parents=True)
    (directory / "architecture.json").write_text('{"type":"stand-in"}')
    (directory / "weights.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    (directory / "manifest.json").write_text(json.dumps({"weights_sha256": digest}))
    for name, data in more.items():
        (directory / name.replace("_", ".")).write_bytes(data)
    return directory


def info(tree: dict[bytes, object], **changes: object) -> bytes:
    """An info dictionary, whatever is in it; a change to None takes a key away."""
    entries: dict[bytes, object] = {
        b"file tree": tree,
        b"meta version": 2,
        b"name": b"oda",
        b"piece length": 65536,
    }
    entries.update({key.replace("_", " ").encode(): value for key, value in changes.items()})
    return bencode.encode({key: value for key, value in entries.items() if value is not None})


def leaf(length: int = 5, **more: object) -> dict[bytes, object]:
    entries: dict[bytes, object] = {b"length": length}
    if length:
        entries[b"pieces root"] = bytes(range(32))
    return {b"": entries | {key.replace("_", " ").encode(): value for key, value in more.items()}}
