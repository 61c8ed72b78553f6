"""One side of a conversation, without sockets, for the tests of what is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidechain.wire import Side, Wire


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


@pytest.fixture
def side(wire: Wire) -> Side:
    return wire.full()
