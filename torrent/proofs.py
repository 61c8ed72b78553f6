"""Is it there? Random ranges of a file, answered with Merkle branches (BEP 52). Pure.

Whoever answers could read those blocks when asked, from wherever: the outcome is called
*retrievable*. It says nothing about how many copies there are, or on whose disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from channels.errors import LocalProtocolError, RemoteProtocolError
from torrent import bencode, merkle
from torrent.manifest import File
from torrent.merkle import BLOCK, HASH

MAX_SAMPLES: Final = 64
"""Blocks asked for at once: the answer stays near 1 MiB."""
MAX_ANSWER: Final = MAX_SAMPLES * (BLOCK + 64 * HASH + 32)
"""Bytes, encoded."""

Read = Callable[[int, int], bytes]
"""(offset, length) -> that part of the file, shorter only at its end."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """blocks: indices of 16 KiB blocks of `file`, in rising order."""

    file: File
    blocks: tuple[int, ...]

    @classmethod
    def draw(cls, file: File, entropy: bytes, samples: int) -> Challenge:
        """`samples` blocks (all, if there are fewer), fixed by 32 bytes nobody could foresee."""
        return cls(file, tuple(_chosen(merkle.block_count(file.length), entropy, samples)))


def draw(files: Sequence[File], entropy: bytes, samples: int) -> list[Challenge]:
    """`samples` blocks of a whole torrent, each as likely as any other, grouped by file."""
    counts = [merkle.block_count(file.length) for file in files]
    chosen = _chosen(sum(counts), entropy, samples)
    challenges, first = [], 0
    for file, count in zip(files, counts, strict=True):
        blocks = tuple(index - first for index in chosen if first <= index < first + count)
        if blocks:
            challenges.append(Challenge(file, blocks))
        first += count
    return challenges


def _chosen(count: int, entropy: bytes, samples: int) -> list[int]:
    if not 0 < samples <= MAX_SAMPLES or not count or len(entropy) != 32:
        raise LocalProtocolError(
            "bad-challenge", f"A challenge is 1 to {MAX_SAMPLES} blocks of a file that has any."
        )
    chosen: set[int] = set()
    turn = 0
    while len(chosen) < min(samples, count):
        drawn = hashlib.sha256(b"oda/retrievable" + entropy + turn.to_bytes(4, "big")).digest()
        # 256 bits modulo a block count: the bias is below 2^-190.
        chosen.add(int.from_bytes(drawn, "big") % count)
        turn += 1
    return sorted(chosen)


@dataclass(frozen=True, slots=True)
class Sample:
    """One block and its branch: the sibling at each height, from the leaves up."""

    data: bytes
    branch: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Retrievable:
    """That the challenged blocks of the file with this root could be had, and no more."""

    root: bytes
    blocks: tuple[int, ...]


def answer(challenge: Challenge, read: Read, piece_length: int, layer: bytes) -> list[Sample]:
    """Prove the blocks, reading only the pieces they are in.

    layer: the file's piece layer, empty if it has one piece. Raises LocalProtocolError
    "bad-challenge" for a block the file does not have.
    """
    file = challenge.file
    count = merkle.block_count(file.length)
    if len(challenge.blocks) > MAX_SAMPLES or any(not 0 <= i < count for i in challenge.blocks):
        raise LocalProtocolError("bad-challenge", "The file has no such blocks.")
    upper = (
        merkle.rows(merkle.split(layer), padding=merkle.zero_piece(piece_length)) if layer else []
    )
    per_piece = piece_length // BLOCK
    samples = []
    for index in challenge.blocks:
        piece, within = divmod(index, per_piece)
        data = read(piece * piece_length, piece_length)
        blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        leaves = [hashlib.sha256(block).digest() for block in blocks]
        lower = merkle.rows(leaves, width=per_piece if layer else 1)
        branch = (*_branch(lower, within), *_branch(upper, piece))
        samples.append(Sample(blocks[within], branch))
    return samples


def _branch(rows: list[merkle.Row], index: int) -> tuple[bytes, ...]:
    return tuple(row[index >> height ^ 1] for height, row in enumerate(rows[:-1]))


def verify(challenge: Challenge, samples: list[Sample]) -> Retrievable:
    """Raises RemoteProtocolError "wrong-sample-count", "wrong-block-length" or "bad-branch"."""
    file = challenge.file
    if len(samples) != len(challenge.blocks):
        raise RemoteProtocolError(
            "wrong-sample-count", "The answer has not as many blocks as were asked for."
        )
    height = (merkle.block_count(file.length) - 1).bit_length()
    for index, sample in zip(challenge.blocks, samples, strict=True):
        if len(sample.data) != min(BLOCK, file.length - index * BLOCK):
            raise RemoteProtocolError(
                "wrong-block-length", f"The answer's block {index} is not as long as it should be."
            )
        found = hashlib.sha256(sample.data).digest()
        for level, sibling in enumerate(sample.branch):
            pair = (sibling, found) if index >> level & 1 else (found, sibling)
            found = merkle.node(*pair)
        if len(sample.branch) != height or found != file.root:
            raise RemoteProtocolError(
                "bad-branch", f"The answer's block {index} is not of the file; it was made up."
            )
    return Retrievable(file.root, challenge.blocks)


def encode(samples: list[Sample]) -> bytes:
    return bencode.encode([[sample.data, b"".join(sample.branch)] for sample in samples])


def decode(data: bytes) -> list[Sample]:
    """A stranger's answer; raises RemoteProtocolError "bad-bencoding" or "bad-answer"."""
    if len(data) > MAX_ANSWER:
        raise _bad_answer()
    entries = bencode.decode(data)
    if not isinstance(entries, list) or len(entries) > MAX_SAMPLES:
        raise _bad_answer()
    samples = []
    for entry in entries:
        match entry:
            case [bytes(block), bytes(branch)] if len(branch) % HASH == 0:
                samples.append(Sample(block, tuple(merkle.split(branch))))
            case _:
                raise _bad_answer()
    return samples


def _bad_answer() -> RemoteProtocolError:
    return RemoteProtocolError("bad-answer", "The answer is not a list of blocks and branches.")
