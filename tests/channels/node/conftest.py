"""Fixtures with nodes as processes; see tests/nodes.py."""

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


@pytest.fixture
def own_nodes(own_bitcoind: Chain) -> Iterator[Nodes]:
    """Makes nodes on a chain that the test may do anything to."""
    with nodes_on(own_bitcoind) as nodes:
        yield nodes
