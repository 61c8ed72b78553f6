"""What we ask of those whose payments we forward: one side's channel_update, unsigned (BOLT 7)."""

from __future__ import annotations

from dataclasses import dataclass

from channels.units import Msat


@dataclass(frozen=True, slots=True)
class Policy:
    """The terms on which HTLCs go out over a channel. Names are those of channel_update."""

    fee_base_msat: Msat
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: Msat
    htlc_maximum_msat: Msat
