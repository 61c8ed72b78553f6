from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import LocalProtocolError, RemoteProtocolError
from tests.torrent.samples import content
from torrent import proofs
from torrent.manifest import File
from torrent.merkle import BLOCK, FileHasher
from torrent.proofs import Challenge, Sample

PIECE = 65536


def prepare(length: int) -> tuple[File, bytes, bytes]:
    data = content("proof", length)
    hasher = FileHasher(PIECE)
    hasher.update(data)
    hashes = hasher.finish()
    return File("w", length, hashes.root), data, hashes.layer


def answer(challenge: Challenge, data: bytes, layer: bytes) -> list[Sample]:
    return proofs.answer(challenge, lambda at, length: data[at : at + length], PIECE, layer)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12 * PIECE),
    st.binary(min_size=32, max_size=32),
    st.integers(1, proofs.MAX_SAMPLES),
)
def test_the_honest_one_passes(length: int, entropy: bytes, samples: int) -> None:
    file, data, layer = prepare(length)
    challenge = Challenge.draw(file, entropy, samples)
    assert challenge == Challenge.draw(file, entropy, samples)
    assert len(challenge.blocks) == min(samples, -(-length // BLOCK))
    sent = proofs.encode(answer(challenge, data, layer))
    result = proofs.verify(challenge, proofs.decode(sent))
    assert result == proofs.Retrievable(file.root, challenge.blocks)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8 * PIECE), st.data())
def test_the_liar_fails(length: int, draw: st.DataObject) -> None:
    file, data, layer = prepare(length)
    challenge = Challenge.draw(file, bytes(32), 4)
    lie = bytearray(data)
    block = draw.draw(st.sampled_from(challenge.blocks))
    at = draw.draw(st.integers(block * BLOCK, min(length, (block + 1) * BLOCK) - 1))
    lie[at] ^= 1
    with pytest.raises(RemoteProtocolError) as caught:
        proofs.verify(challenge, answer(challenge, bytes(lie), layer))
    assert caught.value.reason == "bad-branch"


def test_answers_that_are_not_to_the_question() -> None:
    file, data, layer = prepare(5 * PIECE + 1)
    challenge = Challenge(file, (3, 7, 20))
    good = answer(challenge, data, layer)

    def refused(samples: list[Sample]) -> str:
        with pytest.raises(RemoteProtocolError) as caught:
            proofs.verify(challenge, samples)
        return caught.value.reason

    assert refused([]) == "wrong-sample-count"
    assert refused([*good, good[0]]) == "wrong-sample-count"
    assert refused([good[1], good[0], good[2]]) == "bad-branch"
    assert refused([good[0], good[0], good[2]]) == "bad-branch"
    assert refused([good[0], dataclasses.replace(good[1], data=b""), good[2]]) == (
        "wrong-block-length"
    )
    # An inner node passed off as a leaf would have a shorter branch.
    short = dataclasses.replace(good[1], branch=good[1].branch[1:])
    assert refused([good[0], short, good[2]]) == "bad-branch"
    assert refused([good[0], Sample(bytes(BLOCK), good[1].branch), good[2]]) == "bad-branch"


@pytest.mark.parametrize(
    "data", [b"", b"i1e", b"li1ee", b"ll1:aee", b"ll1:a1:bee", b"l" * 200, bytes(4 << 20)]
)
def test_illegal_encodings(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        proofs.decode(data)
    assert caught.value.reason in ("bad-bencoding", "bad-answer")


@given(
    st.lists(st.integers(0, 5 * BLOCK), min_size=1, max_size=5).filter(any),
    st.binary(min_size=32, max_size=32),
    st.integers(1, proofs.MAX_SAMPLES),
)
def test_blocks_of_a_whole_torrent(lengths: list[int], entropy: bytes, samples: int) -> None:
    files = [File(str(i), length, bytes(32)) for i, length in enumerate(lengths)]
    counts = [-(-length // BLOCK) for length in lengths]
    drawn = proofs.draw(files, entropy, samples)
    assert sum(len(each.blocks) for each in drawn) == min(samples, sum(counts))
    assert len({each.file.path for each in drawn}) == len(drawn)
    for each in drawn:
        count = counts[int(each.file.path)]
        assert list(each.blocks) == sorted(set(each.blocks))
        assert all(0 <= block < count for block in each.blocks)


def test_illegal_challenges() -> None:
    file, data, layer = prepare(PIECE)
    for entropy, samples in ((bytes(31), 1), (bytes(32), 0), (bytes(32), 65)):
        with pytest.raises(LocalProtocolError):
            Challenge.draw(file, entropy, samples)
    with pytest.raises(LocalProtocolError):
        Challenge.draw(File("empty", 0, b""), bytes(32), 1)
    with pytest.raises(LocalProtocolError):
        answer(Challenge(file, (4,)), data, layer)
