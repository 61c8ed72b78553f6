"""What we ask of those whose payments we forward: one side's channel_update, unsigned (BOLT 7)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from channels.bolt.channel_state import ChannelState
from channels.units import Msat, msat


@dataclass(frozen=True, slots=True)
class Policy:
    """The terms on which HTLCs go out over a channel. Names are those of channel_update."""

    fee_base_msat: Msat
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: Msat
    htlc_maximum_msat: Msat

    def fee(self, amount_msat: Msat) -> Msat:
        """BOLT 7 "HTLC Fees": what forwarding this amount costs."""
        proportional = amount_msat * self.fee_proportional_millionths // 1_000_000
        return Msat(self.fee_base_msat + proportional)

    def within(self, state: ChannelState) -> Policy:
        """These terms, as far as the channel's capacity and its peer allow them."""
        # BOLT 7: no more than the capacity, than the peer lets be in flight, and no less than the
        # minimum; the peer accepts nothing below its own minimum.
        most = min(
            self.htlc_maximum_msat,
            msat(state.funding_satoshis),
            state.peer.max_htlc_value_in_flight_msat,
        )
        least = min(max(self.htlc_minimum_msat, state.peer.htlc_minimum_msat), most)
        return replace(self, htlc_minimum_msat=Msat(least), htlc_maximum_msat=Msat(most))
