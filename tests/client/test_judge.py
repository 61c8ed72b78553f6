from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.judge import TAIL, FaultKind, Judge, Limits, period


def read(text: str, piece: int = 7, limits: Limits | None = None) -> FaultKind | None:
    """Feed an answer as it comes, in pieces; the first fault."""
    judge = Judge(limits or Limits(), 0.0)
    for start in range(0, len(text), piece):
        fault = judge.text(text[start : start + piece], float(start))
        if fault is not None:
            return fault.kind
    fault = judge.end(len(text))
    return None if fault is None else fault.kind


PROSE = " ".join(
    f"Number {i} is followed by {i + 1}, and {i * i} is its square." for i in range(100)
)


def test_good_answers() -> None:
    for text in ("yes", PROSE, "a\n" * 40, "-" * 79 + "\n", "é ü 漢字 🙂\t"):
        assert read(text) is None


@pytest.mark.parametrize("unit", ["a", "the the ", "\n", "I do not know that.\n"])
def test_the_same_over_and_over(unit: str) -> None:
    assert read(PROSE + unit * (2 * TAIL // len(unit))) is FaultKind.REPETITION


def test_a_piece_that_is_long_is_not_repetition() -> None:
    assert read(PROSE[: TAIL // 4] * 10) is None


@pytest.mark.parametrize("bad", ["�", "\x00", "\x1b"])
def test_garbage(bad: str) -> None:
    assert read(PROSE + (bad + "ab") * TAIL) is FaultKind.MALFORMED
    assert read(bad * 3) is FaultKind.MALFORMED
    assert read(f"one {bad} in a text of this length is forgiven") is None


def test_empty() -> None:
    assert read("") is FaultKind.EMPTY


def test_json_that_was_asked_for() -> None:
    limits = Limits(wants_json=True)
    assert read('{"a": [1, 2]}', limits=limits) is None
    for text in ("[1]", '{"a": ', "yes", "[" * 100_000):
        assert read(text, 4096, limits) in (FaultKind.MALFORMED, FaultKind.REPETITION)


def test_a_stall_is_time_in_which_nothing_is_owed() -> None:
    judge = Judge(Limits(stall=10), 100.0)
    assert judge.tick(109.9) is None
    judge.text("a", 105.0)
    assert judge.stalls_at == 115.0
    judge.paying(112.0, waiting=True)
    assert judge.tick(500.0) is None
    assert judge.stalls_at is None
    judge.paying(500.0, waiting=False)
    assert judge.tick(509.9) is None
    fault = judge.tick(510.0)
    assert fault is not None
    assert fault.kind is FaultKind.STALL


@given(st.text("ab", min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 12))
def test_period(unit: str, times: int, more: int) -> None:
    text = unit * times + unit[:more]
    expected = next(
        size
        for size in range(1, len(text) + 1)
        if all(text[i] == text[i % size] for i in range(len(text)))
    )
    assert period(text) == expected


def test_random_text_has_no_period() -> None:
    draw = random.Random(1)
    assert read("".join(draw.choice("abcdefgh ") for _ in range(5000))) is None
