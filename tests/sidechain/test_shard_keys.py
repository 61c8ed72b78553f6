from __future__ import annotations

import json
from pathlib import Path

import pytest

from channels.errors import UserError
from sidechain.primitives import x_only
from sidechain.shard_keys import ShardKeys
from tests.sidechain.world import h


def test_keys_come_back_and_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.keys"
    drawn = ShardKeys.draw(3)
    assert len({drawn.opener, *drawn.shards}) == 4
    drawn.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ShardKeys.read(path) == drawn
    assert drawn.opener is not None and drawn.openers == (x_only(drawn.opener),)
    with pytest.raises(UserError) as caught:
        ShardKeys.draw(3).write(path)
    assert caught.value.reason == "already-exists"
    assert ShardKeys.read(path) == drawn


def test_keys_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{h('a').hex()}\n{h('b').hex().upper()}\n")
    found = ShardKeys.read(path)
    assert found == ShardKeys(None, (h("a"), h("b")))
    assert found.openers == ()
    with pytest.raises(ValueError, match="opener"):
        found.write(tmp_path / "other")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"opener": "00", "shards": []}',
        json.dumps({"opener": "0" * 64, "shards": []}),
        json.dumps({"opener": h("a").hex(), "shards": [h("a").hex()] * 2}),
        json.dumps({"opener": h("a").hex(), "shards": [], "more": 1}),
        "not hex",
        h("a").hex()[:-2],
        "é",
        "\n".join(h(str(i)).hex() for i in range(65)),
    ],
)
def test_what_are_no_keys(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        ShardKeys.read(path)
    assert caught.value.reason == "bad-keys-file"
    assert h("a").hex()[:16] not in str(caught.value), "errors end up in logs"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        ShardKeys.read(tmp_path / "keys")
    with pytest.raises(UserError) as caught:
        ShardKeys.draw(1).write(tmp_path / "no" / "keys")
    assert caught.value.reason == "bad-keys-file"
