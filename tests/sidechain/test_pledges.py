from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from channels.errors import UserError
from sidechain.pledges import Pledge, Pledges
from tests.sidechain.world import h

FIRST = Pledge(h("w"), h("infohash"), h("base"), 7, h("salt"))


def test_what_was_pledged_is_there_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "training" / "pledges"
    pledges = Pledges(path)
    pledges.add(FIRST)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Pledges(path)
    assert again.all == (FIRST,)
    second = msgspec.structs.replace(FIRST, weights_root=h("better"))
    again.add(second)
    taken = msgspec.structs.replace(FIRST, taken=True)
    again.replace(FIRST, taken)
    assert Pledges(path).all == (taken, second)
    again.remove(taken)
    assert Pledges(path).all == (second,)


def test_a_half_written_file_does_not_count(tmp_path: Path) -> None:
    """What a kill leaves of the next one lies beside the last whole one."""
    path = tmp_path / "pledges"
    Pledges(path).add(FIRST)
    (tmp_path / "pledges.new").write_bytes(path.read_bytes()[:20])
    again = Pledges(path)
    assert again.all == (FIRST,)
    again.remove(FIRST)
    assert Pledges(path).all == ()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x81\xa8pledges\x91\x81\xa1x\x01"])
def test_a_damaged_file_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pledges"
    path.write_bytes(content)
    with pytest.raises(UserError, match="move it away") as caught:
        Pledges(path)
    assert caught.value.reason == "bad-pledges"
    assert path.read_bytes() == content


def test_attempts_are_counted_for_each_base(tmp_path: Path) -> None:
    pledges = Pledges(tmp_path / "pledges")
    assert pledges.attempt(h("base")) == 0
    pledges.finished(h("base"))
    pledges.finished(h("base"))
    assert Pledges(tmp_path / "pledges").attempt(h("base")) == 2
    pledges.add(FIRST)
    assert pledges.attempt(h("base")) == 3, "should it be refuted, the next is another"
    assert pledges.attempt(h("another")) == 0
