"""Nodes that can be made to die at a moment of the test's choice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Chain
from tests.nodes import Nodes, nodes_on


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    """Makes nodes on the chain that tests share."""
    with nodes_on(bitcoind) as nodes:
        yield nodes
