"""Provisioning Electrum without a network; the real thing is what tests/interop does."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.units import Sat
from regtest.electrum import bitcoin, find_electrum


def test_without_apt_one_sentence_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="There is no Electrum here, and no apt") as caught:
        find_electrum(tmp_path / "cache")
    assert caught.value.reason == "not-installed"
    assert "\n" not in str(caught.value)


def test_what_is_in_the_cache_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError):
        find_electrum(tmp_path / "cache")
    (lock,) = (tmp_path / "cache/electrum").iterdir()
    # A tree only ever appears when it is whole.
    tree = lock.parent / f"{platform.machine()}-{sys.version_info[0]}.{sys.version_info[1]}"
    tree.mkdir()
    assert find_electrum(tmp_path / "cache").tree == tree


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00000000"),
        (1, "0.00000001"),
        (123_456_789, "1.23456789"),
        (10**16, "100000000.00000000"),
    ],
)
def test_amounts_are_exact(amount: int, text: str) -> None:
    assert bitcoin(Sat(amount)) == text
