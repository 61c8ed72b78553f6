import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from sidechain.model import parts
from sidechain.model.parts import MAGIC, Labelled, Part, Regression, Text, fixed_point
from tests.sidechain.model.models import labelled, regression

shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))


def refused(data: bytes) -> None:
    with pytest.raises(UserError) as caught:
        parts.decode(data)
    assert caught.value.reason == "bad-dataset"


def made(kind: int, samples: int, inputs: int, outputs: int, seed: int) -> Part:
    draw = np.random.default_rng(seed)
    rows = draw.integers(-(1 << 15), 1 << 15, (samples, inputs + outputs), np.int16)
    if kind == 0:
        return Text(rows.tobytes())
    if kind == 1:
        return Labelled(rows[:, :inputs].copy(), rows[:, -1].astype(np.uint16))
    return Regression(rows[:, :inputs].copy(), rows[:, inputs:].copy())


@given(st.integers(0, 2), shapes)
def test_parts_are_read_back(kind: int, shape: tuple[int, int, int, int]) -> None:
    part = made(kind, *shape)
    data = parts.encode(part)
    read = parts.decode(data)
    assert type(read) is type(part)
    assert parts.encode(read) == data
    if isinstance(part, Text):
        assert read == part
    else:
        assert isinstance(read, Labelled | Regression)
        assert (read.inputs == part.inputs).all()


def test_the_format_by_hand() -> None:
    part = Labelled(np.array([[1, -1], [2, 3]], np.int16), np.array([7, 65535], np.uint16))
    assert parts.encode(part).hex() == (
        b"oda-data\x01".hex() + "01" + "0200000002000000" + "0100ffff02000300" + "0700ffff"
    )
    assert parts.encode(Text(b"hi")) == b"oda-data\x01\x00hi"


HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        b"oda-data\x02\x00hi",
        MAGIC + b"\x03hi",
        MAGIC + b"\x01",
        MAGIC + b"\x01" + bytes(7),
        MAGIC + b"\x01" + struct.pack("<II", 0, 2),
        MAGIC + b"\x01" + struct.pack("<II", 1, 0) + bytes(2),
        MAGIC + b"\x01" + struct.pack("<II", HUGE, HUGE),
        MAGIC + b"\x01" + struct.pack("<II", 1, 1) + bytes(3),
        MAGIC + b"\x01" + struct.pack("<II", 1, 1) + bytes(5),
        MAGIC + b"\x02" + struct.pack("<III", HUGE, HUGE, HUGE) + bytes(40),
        MAGIC + b"\x02" + struct.pack("<III", 1, 1, 0) + bytes(2),
        b"\x80\x04cos\nsystem\n",
        MAGIC + bytes(parts.MAX_PART),
    ],
)
def test_what_is_no_part_is_refused(data: bytes) -> None:
    refused(data)


@given(st.binary(max_size=60))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    for head in (b"", MAGIC, MAGIC + b"\x01", MAGIC + b"\x02"):
        try:
            part = parts.decode(head + data)
        except UserError as error:
            assert error.reason == "bad-dataset"
        else:
            assert parts.encode(part) == head + data


def test_windows_of_text() -> None:
    part = Text(b"abcdefg")
    assert (part.samples(3), part.samples(6), part.samples(7)) == (2, 1, 0)
    inputs, targets = part.batch(3, None, 0, 2)
    assert bytes(inputs.flatten().tolist()) == b"abcdef"
    assert bytes(targets.flatten().tolist()) == b"bcdefg"
    inputs, targets = part.batch(3, None, 1, 2)
    assert bytes(inputs[0].tolist() + targets[0].tolist()) == b"defefg"


def test_real_numbers_become_fixed_point() -> None:
    assert fixed_point([[0.5, -8 + 1 / 4096, 7.99999]]).tolist() == [[2048, -32767, 32767]]
    for value in (float("nan"), float("inf"), 8.0, -8.5):
        with pytest.raises(UserError) as caught:
            fixed_point([[value]])
        assert caught.value.reason == "bad-dataset"


def test_parts_of_one_kind_are_joined() -> None:
    rows, other = labelled(3, 4, 5), labelled(2, 4, 5)
    both = parts.join(rows, other)
    assert isinstance(both, Labelled)
    assert both.inputs.tolist() == rows.inputs.tolist() + other.inputs.tolist()
    assert both.labels.tolist() == rows.labels.tolist() + other.labels.tolist()
    assert parts.join(Text(b"ab"), Text(b"c")) == Text(b"abc")
    numbers = parts.join(regression(2, 3, 1), regression(4, 3, 1))
    assert isinstance(numbers, Regression) and numbers.targets.shape == (6, 1)
    for one, another in (
        (rows, Text(b"ab")),
        (rows, labelled(2, 3, 5)),
        (regression(2, 3, 1), regression(2, 3, 2)),
    ):
        with pytest.raises(UserError, match="can't be used"):
            parts.join(one, another)
