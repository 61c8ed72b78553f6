"""What tokens cost, and how much may be at risk between two strangers. PURE.

A price is millisatoshis per token, input and output apart. From it follow D, the most that either
side can lose to the other at any instant, and the deposit, of which D is exactly two (docs:
"exposure"). Everything here is integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from channels.errors import UserError
from channels.units import Msat, Sat, msat, sat_ceil

EXPOSURE_TOKENS: Final = 64
"""D covers at least this many output tokens, so that slow models are not all top-ups."""

EXPOSURE_SECONDS: Final = 2
"""D covers at least this long a stretch of the stream, so that a payment has time to arrive."""

PREFILL_STEP: Final = 2048
"""Input tokens that are paid for, and then shown to the engine, in one go."""

MAX_PRICE: Final = 1_000_000_000
"""Msat per token (1,000,000 sat): a price above it is a slip of the keyboard."""


@dataclass(frozen=True, slots=True)
class Price:
    """Millisatoshis per token. Raises UserError("bad-price") outside 0..MAX_PRICE.

    Output is never free: the deposit is a multiple of its price, and Lightning has no invoice
    over nothing.
    """

    input_msat: Msat
    output_msat: Msat

    def __post_init__(self) -> None:
        if not 0 <= self.input_msat <= MAX_PRICE:
            raise UserError(
                "bad-price", f"The price of an input token must be 0 to {MAX_PRICE} msat."
            )
        if not 1 <= self.output_msat <= MAX_PRICE:
            raise UserError(
                "bad-price", f"The price of an output token must be 1 to {MAX_PRICE} msat."
            )

    def input_cost(self, tokens: int) -> Msat:
        return Msat(self.input_msat * _count(tokens))

    def output_cost(self, tokens: int) -> Msat:
        return Msat(self.output_msat * _count(tokens))

    def cost(self, input_tokens: int, output_tokens: int) -> Msat:
        return Msat(self.input_cost(input_tokens) + self.output_cost(output_tokens))

    def affordable_output(self, credit: Msat) -> int:
        """The output tokens that a credit covers whole; 0 for an empty or negative one."""
        return max(0, credit) // self.output_msat

    def deposit(self, tokens_per_second: int) -> Sat:
        """What one deposit or top-up invoice asks for: half of D, rounded up to whole sats."""
        tokens = max(EXPOSURE_TOKENS, EXPOSURE_SECONDS * _count(tokens_per_second))
        return sat_ceil(Msat(-(-self.output_cost(tokens) // 2)))

    def exposure_limit(self, tokens_per_second: int) -> Msat:
        """D: the price of 64 tokens or of 2 s of stream, whichever is more.

        Invoices are whole sats, so D is rounded up to exactly two deposits (by less than 2 sat):
        otherwise a deposit on top of a rest of D/2 could exceed it.
        """
        return msat(Sat(2 * self.deposit(tokens_per_second)))


def prefill_steps(input_tokens: int) -> tuple[int, ...]:
    """How many input tokens are charged at a time: (5000) -> (2048, 2048, 904)."""
    whole, rest = divmod(_count(input_tokens), PREFILL_STEP)
    return (PREFILL_STEP,) * whole + ((rest,) if rest else ())


def _count(tokens: int) -> int:
    if tokens < 0:
        raise ValueError(f"{tokens} tokens")
    return tokens
