"""Providers in process whose money is counted, and clients that don't wait long for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from client import session as paid_session
from tests.client.fakes import Shop


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No refund and no outcome of a payment takes long where everything is in memory."""
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)
    monkeypatch.setattr(paid_session, "PATIENCE", 1.0)


@pytest.fixture
async def shops(tmp_path: Path) -> AsyncIterator[list[Shop]]:
    """Two providers with a node each."""
    made = []
    for number in range(2):
        (tmp_path / f"shop-{number}").mkdir()
        shop = Shop(tmp_path / f"shop-{number}")
        shop.node.secret = bytes([0x11 + number]) * 32
        await shop.start()
        made.append(shop)
    yield made
    for shop in made:
        await shop.stop()
