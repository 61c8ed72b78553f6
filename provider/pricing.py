"""What is asked per token, and how input is charged. PURE.

What follows from a price, deposits and the limit of exposure, is the session's business:
`channels.http.session.Terms`, which both sides compute with.
"""

from __future__ import annotations

from dataclasses import dataclass

from channels.errors import UserError
from channels.http.session import MAX_PRICE, PREFILL_STEP
from channels.units import Msat


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


def prefill_steps(input_tokens: int) -> tuple[int, ...]:
    """How many input tokens are charged at a time: (5000) -> (2048, 2048, 904)."""
    whole, rest = divmod(input_tokens, PREFILL_STEP)
    return (PREFILL_STEP,) * whole + ((rest,) if rest else ())
