"""The embedded node's RPC: lightningd's methods, answered as Core Lightning 26.06 does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels.node.rpc_chain import ChainMethods
from channels.node.rpc_channels import ChannelMethods
from channels.node.rpc_closes import CloseMethods
from channels.node.rpc_forwards import ForwardMethods
from channels.node.rpc_gossip import GossipMethods
from channels.node.rpc_holdinvoices import HoldMethods
from channels.node.rpc_payments import PaymentMethods
from channels.node.rpc_sendpay import SendMethods
from channels.node.rpc_server import Arguments, Call, Command

if TYPE_CHECKING:
    from channels.node.node import Node


def commands(node: Node, stop: Callable[[], None]) -> tuple[Command, ...]:
    """Every method but `help`, which the server adds."""

    async def stop_node(arguments: Arguments, call: Call) -> dict[str, Any]:
        stop()
        return {"result": "Shutdown complete"}

    chain = ChainMethods(node)
    return (
        *chain.commands(),
        *ChannelMethods(node, chain).commands(),
        *CloseMethods(node).commands(),
        *PaymentMethods(node).commands(),
        *ForwardMethods(node).commands(),
        *HoldMethods(node).commands(),
        *SendMethods(node).commands(),
        *GossipMethods(node).commands(),
        Command("stop", (), stop_node, "Stop the node."),
    )
