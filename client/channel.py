"""The channel to a provider: what it costs to open, and the way back to coins on chain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from channels import lightning_answers as answers
from channels.errors import OdaError, UserError
from channels.lightning import LightningError
from channels.terminal import EXIT_CODES, ExitCode, Progress, no_progress
from channels.units import BlockHeight, Msat, Sat, msat

DUST: Final = Sat(546)
"""The dust limit: the reserve of the provider, who can refund nothing below it, is pushed to it
when the channel opens. It is the provider's then: an opening cost."""
MIN_CHANNEL: Final = Sat(20_000)
MAX_CHANNEL: Final = Sat((1 << 24) - 1)
"""BOLT 2: the most without option_support_large_channel."""

USABLE: Final = "CHANNELD_NORMAL"
ENDING: Final = ("AWAITING_UNILATERAL", "FUNDING_SPEND_SEEN", "ONCHAIN")
GONE: Final = ("CLOSED", "CLOSINGD_COMPLETE", *ENDING)

FORCE_SECONDS: Final = 5
"""How long a forced close asks the provider to agree, which is cheaper and quicker for both."""

# lightningd's error codes, by what they mean to a person.
_TOO_POOR: Final = (301, 313)
_TOO_LARGE: Final = 300
_UNREACHABLE: Final = (400, 401, 402)

EXIT_CODES.update(
    {
        "amount-too-small": ExitCode.USAGE,
        "amount-too-large": ExitCode.USAGE,
        "channel-exists": ExitCode.IN_USE,
        "no-channel": ExitCode.NOT_FOUND,
        "channel-refused": ExitCode.REFUSED,
    }
)


class ChannelNode(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def listfunds(self, spent: bool | None = None) -> answers.Funds: ...

    async def connect(
        self, node_id: str, host: str | None = None, port: int | None = None
    ) -> answers.Connected: ...

    async def fundchannel(
        self,
        node_id: str,
        amount: Sat | str,
        *,
        announce: bool | None = None,
        push_msat: Msat | None = None,
        reserve: Sat | None = None,
    ) -> answers.FundedChannel: ...

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]: ...

    async def close(self, channel: str, unilateraltimeout: int = 60) -> answers.Closed: ...

    async def listcloses(self, node_id: str | None = None) -> list[answers.Close]: ...


@dataclass(frozen=True, slots=True)
class Opening:
    """A channel that was funded, and what that cost.

    fee_sat: of the funding transaction; push_sat: given to the provider.
    """

    node_id: str
    channel_id: str
    funding_txid: str
    amount_sat: Sat
    fee_sat: Sat
    push_sat: Sat


@dataclass(frozen=True, slots=True)
class Usable:
    """reserve_sat: of ours, not spendable while the channel is open."""

    spendable_msat: Msat
    reserve_sat: Sat
    provider_reserve_sat: Sat


@dataclass(frozen=True, slots=True)
class Closing:
    """type: "mutual" or "unilateral"; ours_msat: our side of the channel before closing fees.

    claims: of a unilateral close, what comes back later.
    """

    channel_id: str
    type: str
    txids: tuple[str, ...]
    ours_msat: Msat
    claims: tuple[Claimable, ...] = ()


@dataclass(frozen=True, slots=True)
class Claimable:
    """An output that will be ours: kind is lightningd's name for it; amount before the fee.

    height: the chain's height from which it can be spent; in_blocks: how far that is. The node
    spends it by itself. confirmed is whether the closing transaction is.
    """

    kind: str
    amount_msat: Msat
    height: BlockHeight
    in_blocks: int
    confirmed: bool


async def open_channel(
    node: ChannelNode, node_id: str, address: str, amount: Sat, *, another: bool = False
) -> Opening:
    """Connect and fund; `wait_until_usable` comes after. address: "host:port".

    Raises UserError `amount-too-small`, `amount-too-large`, `not-enough-funds`, `channel-exists`;
    OdaError `peer-unreachable`, `channel-refused`.
    """
    if amount < MIN_CHANNEL:
        raise UserError(
            "amount-too-small",
            f"A channel of {amount} sat is mostly fees and reserves: take at least {MIN_CHANNEL}.",
        )
    if amount > MAX_CHANNEL:
        raise UserError("amount-too-large", f"A channel has at most {MAX_CHANNEL} sat.")
    open_ones = [c for c in await node.listpeerchannels(node_id) if c.state not in GONE]
    if open_ones and not another:
        raise UserError(
            "channel-exists",
            "You have a channel with this provider already: use it, or say --another.",
        )
    before = await _coins(node)
    if before < msat(amount):
        raise UserError(
            "not-enough-funds",
            f"The wallet has {before // 1000} confirmed sat, and the channel takes {amount} and "
            "fees: send coins to the address of `oda wallet address`.",
        )
    host, _, port = address.rpartition(":")
    try:
        await node.connect(node_id, host.strip("[]"), int(port))
        funded = await node.fundchannel(
            node_id, amount, announce=False, push_msat=msat(DUST), reserve=DUST
        )
    except LightningError as error:
        raise _refusal(error) from error
    coins = (await node.listfunds(spent=True)).outputs
    return Opening(
        node_id=node_id,
        channel_id=funded.channel_id,
        funding_txid=funded.txid,
        amount_sat=amount,
        fee_sat=funded.fee(coins),
        push_sat=DUST,
    )


async def wait_until_usable(
    node: ChannelNode,
    opening: Opening,
    progress: Progress = no_progress,
    poll: float = 0.2,
) -> Usable:
    """Until the funding transaction has its confirmations. Raises OdaError `channel-refused`."""
    while True:
        for channel in await node.listpeerchannels(opening.node_id):
            if channel.channel_id != opening.channel_id:
                continue
            if channel.state == USABLE and channel.spendable_msat is not None:
                return Usable(
                    spendable_msat=channel.spendable_msat,
                    reserve_sat=Sat((channel.our_reserve_msat or 0) // 1000),
                    provider_reserve_sat=Sat((channel.their_reserve_msat or 0) // 1000),
                )
            if channel.state in GONE:
                raise OdaError("channel-refused", f"The channel failed: {channel.status}.")
            progress(0, None, (channel.status or [channel.state])[0].partition(":")[2])
        await asyncio.sleep(poll)


async def close_channels(node: ChannelNode, node_id: str, *, force: bool = False) -> list[Closing]:
    """Close every channel with a provider, together with it.

    With `force`, alone where it does not agree at once, and what is closing like that already is
    told of again. Raises UserError `no-channel`.
    """
    channels = await node.listpeerchannels(node_id)
    chosen = [c for c in channels if c.state not in GONE or (force and c.state in ENDING)]
    if not chosen:
        raise UserError("no-channel", "There is no open channel with this provider.")
    closed = []
    for channel in chosen:
        assert channel.channel_id is not None  # it was funded
        ours = channel.to_us_msat or Msat(0)
        if channel.state in ENDING:
            closed.append(Closing(channel.channel_id, _kind(channel), (), ours))
            continue
        try:
            if force:
                answer = await node.close(channel.channel_id, unilateraltimeout=FORCE_SECONDS)
            else:
                answer = await node.close(channel.channel_id)
        except LightningError as error:
            raise _refusal(error) from error
        closed.append(Closing(channel.channel_id, answer.type, tuple(answer.txids), ours))
    return closed


def _kind(channel: answers.PeerChannel) -> str:
    """Of a close on chain. Both sides had agreed to a closing transaction, or they had not."""
    agreed = any(change.new_state == "CLOSINGD_COMPLETE" for change in channel.state_changes)
    return "mutual" if agreed else "unilateral"


async def with_claims(
    node: ChannelNode, closings: Sequence[Closing], height: BlockHeight
) -> list[Closing]:
    """The closings with what each of them still has to bring, at this height of the chain."""
    closes = {close.channel_id: close for close in await node.listcloses()}
    found = []
    for closing in closings:
        close = closes.get(closing.channel_id)
        if close is None:
            found.append(closing)
            continue
        kind = "mutual" if close.closer == "mutual" else "unilateral"
        claims = _claimable(close, height)
        found.append(replace(closing, type=kind, txids=(close.txid,), claims=claims))
    return found


def _claimable(close: answers.Close, height: BlockHeight) -> tuple[Claimable, ...]:
    return tuple(
        Claimable(
            kind=output.type,
            amount_msat=output.amount_msat,
            height=output.claimable_blockheight,
            in_blocks=max(0, output.claimable_blockheight - height),
            confirmed=close.confirmed,
        )
        for output in close.outputs
        if output.claimable_blockheight is not None and output.status in ("waiting", "claiming")
    )


async def _coins(node: ChannelNode) -> Msat:
    outputs = (await node.listfunds()).outputs
    return Msat(sum(output.amount_msat for output in outputs if output.status == "confirmed"))


def _refusal(error: LightningError) -> OdaError:
    if error.code in _TOO_POOR:
        return UserError("not-enough-funds", str(error))
    if error.code == _TOO_LARGE:
        return UserError("amount-too-large", str(error))
    if error.code in _UNREACHABLE:
        return OdaError("peer-unreachable", f"The provider's Lightning node is away: {error}")
    return OdaError("channel-refused", f"The Lightning node refused: {error}")
