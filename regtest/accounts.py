"""Where every sat of the demo went: from the chain and both nodes, added up. Integers only.

Nothing here takes the client's or the provider's word for it: coins and fees come from bitcoind's
transactions, balances from the nodes, and what was paid and refunded from their payments.
"""

from __future__ import annotations

from dataclasses import dataclass

from channels.units import Msat, Sat, msat


@dataclass(frozen=True, slots=True)
class Accounts:
    """Everything in msat but what is on chain.

    paid, refunded: deposits of the user and what came back, by the nodes' own lists of payments.
    user_channel, provider_channel: the channel's last balances.
    """

    user_before: Sat
    provider_before: Sat
    channel: Sat
    opening_fee: Sat
    push: Msat
    paid: Msat
    refunded: Msat
    user_channel: Msat
    provider_channel: Msat
    closing_outputs: Sat
    user_after: Sat
    provider_after: Sat

    @property
    def inference(self) -> Msat:
        """What the answers cost."""
        return Msat(self.paid - self.refunded)

    @property
    def rounding(self) -> Msat:
        """BOLT 3: outputs are whole satoshis; the remainders of both sides go to the miners."""
        return Msat(self.user_channel % 1000 + self.provider_channel % 1000)

    @property
    def dust(self) -> Msat:
        """The provider's whole output, where it is too small to exist."""
        gained = msat(Sat(self.provider_after - self.provider_before))
        return Msat(self.provider_channel // 1000 * 1000 - gained)

    @property
    def closing_fee(self) -> Msat:
        """What the closing transaction pays the miners beyond rounding and dust."""
        missing = msat(Sat(self.channel - self.closing_outputs))
        return Msat(missing - self.rounding - self.dust)

    @property
    def onchain_fees(self) -> Sat:
        """All that the miners got."""
        return Sat(self.opening_fee + self.channel - self.closing_outputs)

    @property
    def conserved(self) -> bool:
        """Each line follows from the ones before it, to the msat, and nothing is left over."""
        user_left = msat(self.channel) - self.push - self.inference
        provider_has = self.push + self.inference
        user_end = (
            msat(Sat(self.user_before - self.opening_fee))
            - self.push
            - self.inference
            - self.closing_fee
            - self.user_channel % 1000
        )
        return (
            user_left == self.user_channel
            and provider_has == self.provider_channel
            and self.dust in (0, self.provider_channel // 1000 * 1000)
            and user_end == msat(self.user_after)
            and self.user_before + self.provider_before
            == self.user_after + self.provider_after + self.onchain_fees
        )

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, msat from the user's side, where it went), in the order in which it happened."""
        user_rounding = self.user_channel % 1000
        return [
            ("user's coins before", msat(self.user_before), ""),
            ("opening transaction", -msat(self.opening_fee), "miners"),
            ("provider's reserve, pushed at opening", -self.push, "provider"),
            ("deposits paid for three answers", -self.paid, "provider"),
            ("refunds of what was not used", self.refunded, "user"),
            ("closing transaction", -self.closing_fee, "miners"),
            ("user's fraction of a sat", -user_rounding, "miners"),
            ("user's coins after", msat(self.user_after), ""),
            ("provider's share of the channel", self.provider_channel, ""),
            ("provider's fraction of a sat", -(self.provider_channel % 1000), "miners"),
            ("provider's output too small to exist (dust)", -self.dust, "miners"),
            ("provider's coins after", msat(self.provider_after), ""),
        ]
