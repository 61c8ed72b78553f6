from __future__ import annotations

import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import LocalProtocolError, RemoteProtocolError, UserError
from tests.torrent.samples import safetensors
from torrent import delta

GRID = st.lists(st.integers(-32767, 32767), min_size=1, max_size=50)


def numbers(seed: int, count: int, spread: float) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, spread, count)
    return np.clip(np.rint(drawn), -32767, 32767).astype(np.int16)


@given(st.sampled_from(["F32", "I16"]), st.data())
def test_round_trip(kind: str, draw: st.DataObject) -> None:
    old = draw.draw(GRID)
    new = draw.draw(st.lists(st.integers(-32767, 32767), min_size=len(old), max_size=len(old)))
    base = safetensors(np.array(old, np.int16), kind, "base")
    target = safetensors(np.array(new, np.int16), kind, "another header")
    packed = delta.make(base, target)
    root = delta.file_root(target)
    assert delta.roots(packed) == delta.Roots(delta.file_root(base), root)
    assert delta.apply(base, packed, root) == target


def test_a_training_step_is_a_third_of_the_floats() -> None:
    # A step moves weights by about the learning rate: 16 units of 2^-14 are 0.001.
    old = numbers(1, 100_000, 1500)
    new = np.clip(old.astype(int) + numbers(2, 100_000, 16), -32767, 32767).astype(np.int16)
    packed = delta.make(safetensors(old), safetensors(new))
    assert len(packed) < 0.35 * 4 * old.size


def test_quantise() -> None:
    rough = np.array([0.0, -0.0, 1.00001, -3.0, 1e-9, 0.5], "<f4")
    weights = safetensors(np.zeros(6, np.int16))
    weights = weights[: -rough.nbytes] + rough.tobytes()
    with pytest.raises(UserError) as caught:
        delta.make(weights, weights)
    assert caught.value.reason == "not-quantised"
    fine = delta.quantise(weights)
    assert delta.quantise(fine) == fine
    assert np.frombuffer(fine[-24:], "<f4").tolist() == [0, 0, 1, -32767 / 16384, 0, 0.5]
    assert delta.apply(fine, delta.make(fine, fine), delta.file_root(fine)) == fine
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError) as caught:
            delta.quantise(weights[:-4] + np.float32(bad).tobytes())
        assert caught.value.reason == "bad-weights"


def test_files_that_have_no_delta() -> None:
    one, two = safetensors(np.zeros(3, np.int16)), safetensors(np.zeros(4, np.int16))
    for base, target in ((one, two), (one, safetensors(np.zeros(3, np.int16), "I16"))):
        with pytest.raises(UserError) as caught:
            delta.make(base, target)
        assert caught.value.reason == "not-alike"
    entry = b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
    for header in (
        b"{}",
        b"[]",
        b"x",
        b"[" * 100_000,
        entry % (b"2", b"0,4"),
        entry % (b"1", b"4,8"),
        entry % (b'"1"', b"0,4"),
        entry % (b"1", b"0"),
        entry.replace(b"F32", b"F16") % (b"2", b"0,4"),
    ):
        bad = len(header).to_bytes(8, "little") + header + bytes(4)
        with pytest.raises(UserError) as caught:
            delta.make(bad, bad)
        assert caught.value.reason == "bad-weights"
    for bad in (b"", bytes(8), b"\xff" * 100):
        with pytest.raises(UserError):
            delta.make(bad, bad)


def test_hostile_deltas() -> None:
    base, target = safetensors(numbers(1, 999, 9)), safetensors(numbers(2, 999, 9))
    other = safetensors(numbers(3, 999, 9))
    packed, root = delta.make(base, target), delta.file_root(target)

    def refused(data: bytes, root: bytes = root) -> str:
        with pytest.raises(RemoteProtocolError) as caught:
            delta.apply(base, data, root)
        return caught.value.reason

    flipped = bytearray(packed)
    flipped[-30] ^= 1
    bomb = packed[: delta.PREFIX] + lzma.compress(
        bytes(100 << 20), format=lzma.FORMAT_RAW, filters=delta.FILTERS
    )
    wrong = delta.make(base, other)
    lying = wrong[: delta.PREFIX - 32] + root + wrong[delta.PREFIX :]
    for data in (b"", packed[:50], packed[:-1], packed + b"x", bytes(flipped), bomb, lying):
        assert refused(data) == "bad-delta"
    assert refused(wrong) == "bad-delta"
    with pytest.raises(LocalProtocolError) as caught:
        delta.apply(other, packed, root)
    assert caught.value.reason == "wrong-base"
