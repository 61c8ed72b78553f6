"""Our terms for forwarding over each channel: the network's default, or what setchannel said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.bolt.announcing import bounded
from channels.bolt.channel import Channel
from channels.bolt.policy import Policy
from channels.units import UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node


class Policies:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._set = node.store.load_policies()
        self._before: dict[int, tuple[Policy, UnixTime]] = {}

    def of(self, channel: Channel) -> Policy:
        return self._set.get(channel.state.index, self._node.params.forwarding)

    def accepted(self, channel: Channel) -> list[Policy]:
        """The policy in force, and the one before it while senders may not have heard."""
        policies = [self.of(channel)]
        before = self._before.get(channel.state.index)
        if before is not None and before[1] > self._node.now():
            policies.append(before[0])
        return [bounded(channel.state, policy) for policy in policies]

    def set(self, channel: Channel, policy: Policy, enforcedelay: int) -> None:
        """Change the terms; what held so far is honoured for `enforcedelay` more seconds."""
        node, index = self._node, channel.state.index
        self._before[index] = self.of(channel), UnixTime(node.now() + enforcedelay)
        self._set[index] = policy
        node.store.save_policy(index, policy)
        node.turn.begin()
        node.gossip.refresh(channel)
