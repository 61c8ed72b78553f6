from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain import pow
from sidechain.params import MAIN, REGTEST

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "asert.json").read_text()
)
LIMIT = int(VECTORS["limit_bits"], 16)

COMPACT = {
    # Bitcoin Core, arith_uint256_tests.cpp, bignum_SetCompact; None where there is no target
    0x00000000: None,
    0x00123456: None,
    0x01003456: None,
    0x02000056: None,
    0x03000000: None,
    0x04000000: None,
    0x00923456: None,
    0x01803456: None,
    0x01123456: 0x12,
    0x02123456: 0x1234,
    0x03123456: 0x123456,
    0x04123456: 0x12345600,
    0x04923456: None,
    0x05009234: 0x92340000,
    0x20123456: 0x1234560000000000000000000000000000000000000000000000000000000000,
    0xFF123456: None,
}


@pytest.mark.parametrize("run", VECTORS["runs"], ids=lambda run: run["description"][:5])
def test_aserti3_2d_vectors(run: dict[str, Any]) -> None:
    for height, time, bits in run["rows"]:
        found = pow.asert(
            anchor_bits=int(run["anchor_bits"], 16),
            time_diff=time - run["anchor_parent_time"],
            height_diff=height - run["anchor_height"],
            spacing=VECTORS["spacing"],
            half_life=VECTORS["half_life"],
            limit_bits=LIMIT,
        )
        assert found == int(bits, 16), (height, time)


@pytest.mark.parametrize(("bits", "target"), COMPACT.items(), ids=lambda value: f"{value or 0:x}")
def test_compact_form_reads_as_bitcoins(bits: int, target: int | None) -> None:
    assert pow.target_of(bits) == target


def test_compact_form_avoids_the_sign_bit() -> None:
    assert pow.bits_of(0x80) == 0x02008000
    assert pow.bits_of(1) == 0x01010000


@given(st.integers(1, (1 << 256) - 1))
def test_compact_form_never_exceeds_the_target_and_is_stable(target: int) -> None:
    bits = pow.bits_of(target)
    rounded = pow.target_of(bits)
    assert rounded is not None and rounded <= target < rounded + (rounded >> 14) + 1
    assert pow.bits_of(rounded) == bits


@given(st.integers(0, 0xFFFFFFFF), st.binary(min_size=32, max_size=32))
def test_any_bits_are_handled(bits: int, block_hash: bytes) -> None:
    target = pow.target_of(bits)
    expected = target is not None and int.from_bytes(block_hash, "little") <= target
    assert pow.meets(block_hash, bits) == expected


def test_work_halves_when_the_target_doubles() -> None:
    assert pow.work_of(0x1D00FFFF) == 0x100010001  # as Bitcoin Core says of its genesis block
    assert pow.work_of(0x207FFFFF) == 2
    with pytest.raises(ValueError, match="no target"):
        pow.work_of(0)


def test_regtest_does_not_retarget_and_main_does() -> None:
    late = REGTEST.genesis_time + 10**8
    assert pow.next_bits(REGTEST, 5, late) == REGTEST.pow_limit_bits
    # On schedule nothing changes; a half-life behind schedule at most the limit; ahead: harder.
    start = MAIN.genesis_time
    assert pow.next_bits(MAIN, 100, start + 100 * MAIN.spacing) == MAIN.pow_limit_bits
    assert pow.next_bits(MAIN, 100, late + start) == MAIN.pow_limit_bits
    ahead = pow.next_bits(MAIN, 36, start)  # 36 spacings are one half-life
    assert pow.work_of(ahead) == pytest.approx(2 * pow.work_of(MAIN.pow_limit_bits), rel=1e-3)


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**7))
def test_asert_stays_within_bounds(time_diff: int, height_diff: int) -> None:
    bits = pow.asert(
        anchor_bits=LIMIT,
        time_diff=time_diff,
        height_diff=height_diff,
        spacing=600,
        half_life=6 * 3600,
        limit_bits=LIMIT,
    )
    target, limit = pow.target_of(bits), pow.target_of(LIMIT)
    assert target is not None and limit is not None and 0 < target <= limit


def test_asert_needs_real_targets() -> None:
    with pytest.raises(ValueError, match="must be targets"):
        pow.asert(
            anchor_bits=0, time_diff=0, height_diff=0, spacing=1, half_life=1, limit_bits=LIMIT
        )


def test_median_of_eleven() -> None:
    assert pow.median([5, 1, 9]) == 5
    assert pow.median([7]) == 7
    assert pow.median(range(11)) == 5
