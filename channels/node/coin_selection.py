"""Which coins to spend, and how much change comes back: integers only, no keys, no IO.

All coins are P2WPKH. Amounts are satoshis, rates satoshis per 1000 weight units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from channels.bolt.transactions import TxOut
from channels.errors import UserError
from channels.units import FeeratePerKw, Sat

Coin = TypeVar("Coin")

# Weights by BIP 141; the signature is counted with its largest size, 71 bytes and the sighash.
INPUT_WEIGHT = 4 * (32 + 4 + 1 + 4) + (1 + 1 + 72 + 1 + 33)
BASE_WEIGHT = 4 * (4 + 4) + 2
P2WPKH_SIZE = 22
CHANGE_WEIGHT = 4 * (8 + 1 + P2WPKH_SIZE)
CHANGE_DUST = Sat(294)

MIN_RELAY = FeeratePerKw(253)
"""1 sat per virtual byte, rounded up: the least that nodes relay by default."""

MAX_INPUTS = 1000
"""Keeps a transaction within the 400,000 weight units that nodes relay."""


@dataclass(frozen=True, slots=True)
class Selection(Generic[Coin]):
    """`sum(coins) = sum(outputs) + change + fee`; change is 0 when there is none."""

    coins: tuple[Coin, ...]
    change: Sat
    fee: Sat


def _count_size(count: int) -> int:
    """Bytes of a compact size."""
    return 1 if count < 0xFD else 3


def weight(inputs: int, script_sizes: Sequence[int]) -> int:
    """The weight of a transaction of so many P2WPKH inputs and outputs of these script sizes."""
    outputs = sum(8 + _count_size(size) + size for size in script_sizes)
    counts = _count_size(inputs) + _count_size(len(script_sizes))
    return BASE_WEIGHT + inputs * INPUT_WEIGHT + 4 * (outputs + counts)


def fee_for(weight_units: int, feerate: FeeratePerKw) -> Sat:
    """Rounded up, so that the feerate is never below what was asked."""
    return Sat(-(-weight_units * feerate // 1000))


def economic(coins: Sequence[tuple[Coin, Sat]], feerate: FeeratePerKw) -> list[tuple[Coin, Sat]]:
    """The coins worth more than it costs to spend them, largest first, ties as given."""
    cost = fee_for(INPUT_WEIGHT, feerate)
    worthwhile = [(coin, value) for coin, value in coins if value > cost]
    return sorted(worthwhile, key=lambda entry: -entry[1])[:MAX_INPUTS]


def select(
    coins: Sequence[tuple[Coin, Sat]], outputs: Sequence[TxOut], feerate: FeeratePerKw, keep: Sat
) -> Selection[Coin]:
    """The fewest coins that pay for the outputs and leave `keep` in the wallet.

    What is left over becomes change, or fee where change would be dust; more than a fifth of the
    fee is given away like that only when no further coin could make it change. Raises UserError
    "not-enough-funds".
    """
    usable = economic(coins, feerate)
    have = sum(value for _, value in usable)
    paid = sum(output.value for output in outputs)
    sizes = [len(output.script) for output in outputs]
    with_change = [*sizes, P2WPKH_SIZE]
    chosen: list[Coin] = []
    total = 0
    fallback: Selection[Coin] | None = None
    for coin, value in usable:
        chosen.append(coin)
        total += value
        rest = have - total
        fee = fee_for(weight(len(chosen), with_change), feerate)
        change = total - paid - fee
        if change >= CHANGE_DUST and rest + change >= keep:
            return Selection(tuple(chosen), Sat(change), fee)
        least = fee_for(weight(len(chosen), sizes), feerate)
        given = total - paid
        if given >= least and rest >= keep:
            selection = Selection(tuple(chosen), Sat(0), Sat(given))
            if 5 * given <= 6 * least:
                return selection
            fallback = fallback or selection
    if fallback is not None:
        return fallback
    need = paid + keep + fee_for(weight(max(1, len(usable)), with_change), feerate)
    raise not_enough(have, need, keep)


def top_up(
    coins: Sequence[tuple[Coin, Sat]],
    missing: Sat,
    weight_units: int,
    feerate: FeeratePerKw,
    paid_for: tuple[int, Sat],
) -> Selection[Coin]:
    """The fewest coins that pay the fee of a transaction which lacks only that, and change.

    It weighs `weight_units` without the coins and the change, and its outputs are worth `missing`
    more than its inputs. `paid_for` is the weight and fee of a parent for which it pays, too.
    Raises UserError "not-enough-funds".
    """
    usable = economic(coins, feerate)
    chosen: list[Coin] = []
    total = 0
    fee = Sat(0)
    for coin, value in usable:
        chosen.append(coin)
        total += value
        own = weight_units + len(chosen) * INPUT_WEIGHT + CHANGE_WEIGHT
        parent_weight, parent_fee = paid_for
        fee = Sat(fee_for(own + parent_weight, feerate) - parent_fee)
        # A child must be relayed for what it pays itself, too.
        fee = max(fee, fee_for(own, MIN_RELAY))
        change = total - missing - fee
        if change >= CHANGE_DUST:
            return Selection(tuple(chosen), Sat(change), fee)
    raise not_enough(total, missing + fee + CHANGE_DUST, 0)


def sweep(
    coins: Sequence[tuple[Coin, Sat]], script: bytes, feerate: FeeratePerKw, keep: Sat
) -> tuple[Selection[Coin], Sat]:
    """All coins, and what one output to `script` gets; `keep` comes back as change."""
    usable = economic(coins, feerate)
    have = sum(value for _, value in usable)
    change = Sat(0) if keep == 0 else max(keep, CHANGE_DUST)
    sizes = [len(script)] + ([P2WPKH_SIZE] if change else [])
    fee = fee_for(weight(len(usable), sizes), feerate)
    value = have - fee - change
    if value <= 0:
        raise not_enough(have, fee + change + 1, keep)
    return Selection(tuple(coin for coin, _ in usable), change, fee), Sat(value)


def not_enough(have: int, need: int, keep: int) -> UserError:
    kept = f", of which {keep} sat stay in the wallet for fee bumping" if keep else ""
    return UserError(
        "not-enough-funds",
        f"The wallet can spend {have} sat and this takes about {need} sat{kept}: add funds.",
    )
