"""Proof of work: compact bits, targets, work, ASERT and the median time.

Sources: Bitcoin Core's arith_uint256 (`SetCompact`, `GetCompact`), BIP 113 (median time past), and
the aserti3-2d specification of Bitcoin Cash (2020-11-15), whose vectors are in
tests/vectors/asert.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from sidechain.params import Params

MEDIAN_SPAN: Final = 11
_RADIX: Final = 1 << 16


def target_of(bits: int) -> int | None:
    """The target that compact `bits` state; None for zero, negative and too large ones."""
    size, mantissa = bits >> 24, bits & 0x007FFFFF
    target = mantissa >> 8 * (3 - size) if size <= 3 else mantissa << 8 * (size - 3)
    if target == 0 or bits & 0x00800000 or target >> 256:
        return None
    return target


def bits_of(target: int) -> int:
    """The compact form, which keeps the highest 15 to 23 bits of the target."""
    size = (target.bit_length() + 7) // 8
    mantissa = target << 8 * (3 - size) if size <= 3 else target >> 8 * (size - 3)
    if mantissa & 0x00800000:  # would read as negative
        mantissa >>= 8
        size += 1
    return size << 24 | mantissa


@lru_cache(maxsize=1024)
def work_of(bits: int) -> int:
    """The expected number of hashes behind a header with these valid bits."""
    target = target_of(bits)
    if target is None:
        raise ValueError(f"{bits:#010x} is no target")
    return (1 << 256) // (target + 1)


def meets(block_hash: bytes, bits: int) -> bool:
    """Whether the hash, read as Bitcoin reads it, is at most the target."""
    target = target_of(bits)
    return target is not None and int.from_bytes(block_hash, "little") <= target


def asert(
    *,
    anchor_bits: int,
    time_diff: int,
    height_diff: int,
    spacing: int,
    half_life: int,
    limit_bits: int,
) -> int:
    """aserti3-2d: the bits of the block after one that is `height_diff` blocks above the anchor.

    time_diff: that block's time minus the time of the anchor's parent, in seconds.
    """
    reference, limit = target_of(anchor_bits), target_of(limit_bits)
    if reference is None or limit is None:
        raise ValueError("the anchor and the limit must be targets")
    late = (time_diff - spacing * (height_diff + 1)) * _RADIX
    # The specification divides as C does, towards zero.
    exponent = late // half_life if late >= 0 else -(-late // half_life)
    shift, fraction = exponent >> 16, exponent & (_RADIX - 1)
    # 2^x for 0 <= x < 1 as a cubic polynomial, in 16 binary places
    factor = _RADIX + (
        195766423245049 * fraction + 971821376 * fraction**2 + 5127 * fraction**3 + (1 << 47) >> 48
    )
    shift -= 16
    # A shift beyond any target would only make huge integers on the way to the limit.
    if shift > 512:
        return limit_bits
    target = reference * factor
    target = target << shift if shift >= 0 else target >> -shift
    if target == 0:
        return bits_of(1)
    return limit_bits if target > limit else bits_of(target)


def next_bits(params: Params, height: int, time: int) -> int:
    """The bits that the child of a block with this height and time must have."""
    if not params.retarget:
        return params.pow_limit_bits
    # The anchor is the genesis block; its parent would have been one spacing earlier.
    return asert(
        anchor_bits=params.pow_limit_bits,
        time_diff=time - (params.genesis_time - params.spacing),
        height_diff=height,
        spacing=params.spacing,
        half_life=params.half_life,
        limit_bits=params.pow_limit_bits,
    )


def median(times: Sequence[int]) -> int:
    """BIP 113's median of the last (up to) 11 times."""
    return sorted(times)[len(times) // 2]
