"""What payments have taught about the network: where liquidity is, and whom to leave alone.

Nothing of it comes from gossip, and nothing of it is ever told to anybody. It fades: liquidity
moves, so after `FORGET_SECONDS` a channel may again hold anything up to its capacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from channels.bolt.gossip_signatures import check_update
from channels.bolt.graph import DISABLE, DirectedChannel, Edge, directed, direction_of
from channels.bolt.messages import ChannelUpdate, decode
from channels.bolt.onion_failures import BADONION, NODE, PERM, Failure, FailureCode
from channels.errors import OdaError
from channels.units import Msat, ShortChannelId, UnixTime

FORGET_SECONDS = 3600
"""Bounds on liquidity fade over an hour."""

BRIEFLY, A_WHILE, FOR_LONG = 60, 600, 86_400
"""Seconds that a channel or node is left alone after a failure: what may have passed in a moment,
what needs somebody to act, and what its node calls permanent."""

MAX_KNOWN = 20_000
"""Directed channels and nodes remembered, the oldest forgotten first."""

_POLICY_CODES = (
    FailureCode.AMOUNT_BELOW_MINIMUM,
    FailureCode.FEE_INSUFFICIENT,
    FailureCode.INCORRECT_CLTV_EXPIRY,
)


class Hop(NamedTuple):
    """One hop, as Core Lightning's getroute and sendpay write it.

    `node_id` is the node at the end of the hop; `amount_msat` and `delay` (blocks above the
    current height) are those of the HTLC that it is offered over `short_channel_id`.
    """

    node_id: bytes
    short_channel_id: ShortChannelId
    amount_msat: Msat
    delay: int


@dataclass(slots=True)
class _Lesson:
    """About one directed channel. `lower` passed and `upper` is the most that might."""

    lower: int = 0
    lower_at: int = 0
    upper: int | None = None
    upper_at: int = 0
    bad_until: int = 0
    in_flight: int = 0
    policy: ChannelUpdate | None = None
    policy_until: int = 0


class Judged(NamedTuple):
    """An edge as learned: its policy, and the bounds (msat) between which its liquidity is."""

    edge: Edge
    lower: int
    upper: int


def directed_channels(source: bytes, route: Sequence[Hop]) -> Iterator[DirectedChannel]:
    """The directed channels of a route from `source`."""
    for hop in route:
        yield directed(hop.short_channel_id, direction_of(source, hop.node_id))
        source = hop.node_id


class Knowledge:
    """Learns from the outcome of each attempt. `now` never goes back."""

    def __init__(self) -> None:
        self._lessons: dict[DirectedChannel, _Lesson] = {}
        self._bad_nodes: dict[bytes, int] = {}

    def __contains__(self, channel: DirectedChannel) -> bool:
        return channel in self._lessons

    def __len__(self) -> int:
        return len(self._lessons) + len(self._bad_nodes)

    def avoids_node(self, node_id: bytes, now: UnixTime) -> bool:
        return self._bad_nodes.get(node_id, 0) > now

    def avoids_channel(self, channel: DirectedChannel, now: UnixTime) -> bool:
        lesson = self._lessons.get(channel)
        return lesson is not None and lesson.bad_until > now

    def judge(self, edge: Edge, now: UnixTime) -> Judged | None:
        """What was learned about an edge; None when it must be left alone."""
        lesson = self._lessons.get(edge.channel)
        if lesson is None:
            return Judged(edge, 0, edge.capacity_msat)
        if lesson.bad_until > now:
            return None
        if lesson.policy is not None and lesson.policy_until > now:
            edge = _with_policy(edge, lesson.policy)
        capacity = edge.capacity_msat
        age = min(now - lesson.lower_at, FORGET_SECONDS)
        lower = lesson.lower * (FORGET_SECONDS - age) // FORGET_SECONDS
        upper = capacity
        if lesson.upper is not None and lesson.upper < capacity:
            age = min(now - lesson.upper_at, FORGET_SECONDS)
            upper = lesson.upper + (capacity - lesson.upper) * age // FORGET_SECONDS
        lower = min(lower, upper)
        return Judged(edge, max(0, lower - lesson.in_flight), upper - lesson.in_flight)

    # --- lessons -------------------------------------------------------------------------------

    def reserve(self, source: bytes, route: Sequence[Hop]) -> None:
        """An attempt begins: what it carries is not there for another until it ends."""
        for channel, hop in zip(directed_channels(source, route), route, strict=True):
            self._lesson(channel).in_flight += hop.amount_msat

    def release(self, source: bytes, route: Sequence[Hop]) -> None:
        """The attempt was never sent; `succeeded` and `failed` release by themselves."""
        for channel, hop in zip(directed_channels(source, route), route, strict=True):
            lesson = self._lessons.get(channel)
            if lesson is not None:
                lesson.in_flight = max(0, lesson.in_flight - hop.amount_msat)

    def succeeded(self, source: bytes, route: Sequence[Hop], now: UnixTime) -> None:
        """The payment went through, so what it carried has left these channels."""
        self.release(source, route)
        for channel, hop in zip(directed_channels(source, route), route, strict=True):
            lesson = self._lesson(channel)
            lesson.lower = max(0, lesson.lower - hop.amount_msat)
            if lesson.upper is not None:
                lesson.upper = max(0, lesson.upper - hop.amount_msat)
            # The other side now has at least this much.
            self._passed(DirectedChannel(channel ^ 1), hop.amount_msat, now)

    def failed(
        self,
        source: bytes,
        route: Sequence[Hop],
        at: int | None,
        failure: Failure | None,
        now: UnixTime,
    ) -> None:
        """Hop `at` (0 is the first; as onion_failures.read_error counts) failed the payment.

        None when the error could not be read: anybody may have garbled it (BOLT 4).
        """
        channels = list(directed_channels(source, route))
        in_flight = [self._lesson(channel).in_flight for channel in channels]
        self.release(source, route)
        if at is None or failure is None:
            for channel in channels[1:]:
                self.avoid_channel(channel, UnixTime(now + BRIEFLY))
            return
        for channel, hop in zip(channels[: at + 1], route, strict=False):
            self._passed(channel, hop.amount_msat, now)
        if at + 1 >= len(route):
            return  # the payee itself: no channel is to blame
        node_id, channel, code = route[at].node_id, channels[at + 1], failure.code
        if code & NODE and not code & BADONION:
            self.avoid_node(node_id, UnixTime(now + (FOR_LONG if code & PERM else BRIEFLY)))
        elif code == FailureCode.TEMPORARY_CHANNEL_FAILURE:
            # The channel holds less than all that we had in flight over it, this part included.
            tried = max(in_flight[at + 1], route[at + 1].amount_msat)
            self._stopped(channel, tried, now)
        elif code in _POLICY_CODES:
            self._policy(channel, node_id, failure, now)
        elif code in (FailureCode.EXPIRY_TOO_FAR, FailureCode.INVALID_ONION_PAYLOAD):
            self.avoid_node(node_id, UnixTime(now + A_WHILE))
        else:
            # CHANNEL_DISABLED, EXPIRY_TOO_SOON, UNKNOWN_NEXT_PEER, what the next node could not
            # read, and codes that nobody has heard of: the channel after the erring node.
            permanent = code & PERM and not code & BADONION
            self.avoid_channel(channel, UnixTime(now + (FOR_LONG if permanent else A_WHILE)))

    def forgive(self, source: bytes, route: Sequence[Hop], at: int) -> None:
        """What `failed` learned when hop `at` spoke may have passed: both may be tried again.

        -1 is we ourselves: our own peer was away.
        """
        if at >= 0:
            self._bad_nodes.pop(route[at].node_id, None)
        for channel in list(directed_channels(source, route))[at + 1 : at + 2]:
            lesson = self._lesson(channel)
            lesson.upper, lesson.bad_until = None, 0

    def avoid_channel(self, channel: DirectedChannel, until: UnixTime) -> None:
        lesson = self._lesson(channel)
        lesson.bad_until = max(lesson.bad_until, until)

    def avoid_node(self, node_id: bytes, until: UnixTime) -> None:
        if len(self._bad_nodes) >= MAX_KNOWN and node_id not in self._bad_nodes:
            del self._bad_nodes[next(iter(self._bad_nodes))]
        self._bad_nodes[node_id] = max(self._bad_nodes.get(node_id, 0), until)

    def _passed(self, channel: DirectedChannel, amount: Msat, now: UnixTime) -> None:
        lesson = self._lesson(channel)
        age = min(now - lesson.lower_at, FORGET_SECONDS)
        faded = lesson.lower * (FORGET_SECONDS - age) // FORGET_SECONDS
        if amount >= faded:
            lesson.lower, lesson.lower_at = amount, now
        if lesson.upper is not None and lesson.upper < amount:
            lesson.upper = None

    def _stopped(self, channel: DirectedChannel, tried: int, now: UnixTime) -> None:
        lesson = self._lesson(channel)
        lesson.upper, lesson.upper_at = max(0, tried - 1), now
        lesson.lower = min(lesson.lower, lesson.upper)

    def _policy(
        self, channel: DirectedChannel, node_id: bytes, failure: Failure, now: UnixTime
    ) -> None:
        """The node wants other fees or delays, and may have said which (BOLT 4).

        What it said is used for our payments alone: whoever applies it to what it gossips shows
        that the payment was its own.
        """
        lesson = self._lesson(channel)
        update = _update_in(failure, channel, node_id)
        known = lesson.policy if lesson.policy_until > now else None
        if update is None or _policy_of(update) == _policy_of(known):
            # It said nothing of use, or what it said last time did not satisfy it.
            self.avoid_channel(channel, UnixTime(now + A_WHILE))
            return
        lesson.policy, lesson.policy_until = update, now + FORGET_SECONDS

    def _lesson(self, channel: DirectedChannel) -> _Lesson:
        lesson = self._lessons.get(channel)
        if lesson is None:
            if len(self._lessons) >= MAX_KNOWN:
                del self._lessons[next(iter(self._lessons))]
            lesson = self._lessons[channel] = _Lesson()
        return lesson


def _update_in(failure: Failure, channel: DirectedChannel, node_id: bytes) -> ChannelUpdate | None:
    """The channel_update of a failure, if it is about this channel and really the node's."""
    data = failure.fields.get("channel_update")
    if not isinstance(data, bytes):
        return None
    try:
        # Some nodes leave out the message's type.
        update = decode(data if data[:2] == b"\x01\x02" else b"\x01\x02" + data)
        if not isinstance(update, ChannelUpdate):
            return None
        check_update(update, node_id)
    except OdaError:
        return None  # a node that answers with rubbish gets what one gets that answers nothing
    about = directed(update.short_channel_id, update.channel_flags & 1)
    return update if about == channel and not update.channel_flags & DISABLE else None


def _policy_of(update: ChannelUpdate | None) -> tuple[int, ...] | None:
    if update is None:
        return None
    return (
        update.fee_base_msat,
        update.fee_proportional_millionths,
        update.cltv_expiry_delta,
        update.htlc_minimum_msat,
        update.htlc_maximum_msat,
    )


def _with_policy(edge: Edge, update: ChannelUpdate) -> Edge:
    return edge._replace(
        fee_base_msat=update.fee_base_msat,
        fee_proportional_millionths=update.fee_proportional_millionths,
        cltv_expiry_delta=update.cltv_expiry_delta,
        htlc_minimum_msat=update.htlc_minimum_msat,
        htlc_maximum_msat=min(update.htlc_maximum_msat, edge.capacity_msat),
    )
