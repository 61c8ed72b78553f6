"""Nodes that die at a chosen commit of what they are doing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from tests.faults.fragile_node import arm
from tests.nodes import LightningNode, until

FRAGILE = (sys.executable, "-m", "tests.faults.fragile_node")
"""The command of a node that can be a victim."""


def running(node: LightningNode) -> bool:
    return node.process.daemon.pid() is not None


async def attempt(victim: LightningNode, count: int, when: str, call: Any) -> bool:
    """Run an operation while the victim dies at its `count`-th commit; whether it did die.

    The victim runs again afterwards.
    """
    arm(victim.process.directory, count, when)
    operation = asyncio.ensure_future(call)

    async def ended() -> bool:
        return operation.done() or not running(victim)

    await until(ended, "the operation ends or its node does")
    if operation.done() and operation.exception() is not None:
        await victim.until_ended()  # nothing else may make it fail
    if running(victim):
        (victim.process.directory / "armed").unlink(missing_ok=True)
        # The countdown goes on in the process: a fresh one has none.
        await victim.kill()
        died = False
    else:
        died = True
    await victim.start()
    if died:
        operation.cancel()
        await asyncio.gather(operation, return_exceptions=True)
    return died
