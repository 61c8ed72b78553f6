"""docs/sidechain.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from sidechain import (
    addresses,
    bans,
    conversation,
    mempool,
    peers,
    primitives,
    protocol,
    serving,
    sync,
)
from sidechain.limits import PATIENCE
from sidechain.openapi import ENDPOINTS
from sidechain.params import MAIN, REGTEST
from sidechain.reasons import REASONS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "sidechain.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_reason_is_listed_once() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", section("Every reason for a refusal"), re.M)
    assert listed == sorted(set(listed), key=listed.index)
    assert set(listed) == REASONS.keys()


def test_every_reason_is_used_in_the_code() -> None:
    code = "".join(
        path.read_text()
        for path in sorted((ROOT / "sidechain").glob("*.py"))
        if path.name != "reasons.py"
    )
    raised = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', code)) & REASONS.keys()
    # The three that only a scorer can say come from sidechain/model through scores.Unusable.
    assert raised | {"bad-architecture", "bad-dataset", "bad-weights"} == REASONS.keys()


def test_the_parameters_are_listed() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section("Parameters"), re.M)
    table = {name: (regtest, main) for name, regtest, main in rows}

    def pair(name: str) -> tuple[str, str]:
        return str(getattr(REGTEST, name)).lower(), str(getattr(MAIN, name)).lower()

    for name in ("shard_timeout", "fee_depth", "max_reorg", "tenure", "assume_scored_depth"):
        assert table[name] == pair(name), name
    delays, ttls = pair("reveal_delay"), pair("commit_ttl")
    assert table["reveal_delay / commit_ttl"] == tuple(
        f"{delay} / {ttl}" for delay, ttl in zip(delays, ttls, strict=True)
    )


def test_the_transactions_are_listed() -> None:
    kinds = re.findall(r"^\| (\d) `(\w+)` \| ([^|]+) \|", section("Transactions"), re.M)
    assert len(kinds) == 6
    for number, name, fields in kinds:
        kind = getattr(primitives, name)
        assert kind.__struct_config__.tag == int(number)
        stated = [re.sub(r" [≤≥].*", "", field).strip() for field in fields.split(",")]
        actual = [f for f in kind.__struct_fields__ if f not in ("network_id", "stamp_nonce")]
        assert stated == [field for field in actual if field != "sig"]
        assert ("sig" in actual) == kind.SIGNED


def test_the_figures_in_the_text() -> None:
    text = " ".join(PAGE.split())
    assert f"mempool holds {mempool.MAX_BYTES >> 20} MiB" in text
    assert f"at most {mempool.REVEALS_PER_MODEL} Reveals for a model" in text
    assert f"waits {mempool.MAX_WAIT} blocks" in text
    assert f"{protocol.BAN} points end in a ban" in text
    assert f"at least {MAIN.min_shard_samples} samples" in text
    assert f"hence at most {MAIN.openings_per_block} openings" in text


def test_the_figures_of_the_network() -> None:
    text = " ".join(section("The network").split())
    first, last = sync.FIRST_WINDOW, sync.LAST_WINDOW
    assert f"{first} blocks at first, up to {last}" in text
    assert f"at most {sync.AHEAD} ahead" in text
    assert f"within {PATIENCE.steal:.0f} s is asked of an idle peer" in text
    assert f"nothing for {PATIENCE.block:.0f} s is asked for less" in text
    assert f"don't come within {PATIENCE.item:.0f} s" in text
    assert f"may send {conversation.MESSAGES_PER_SECOND:.0f} messages" in text
    assert f"and {conversation.BYTES_PER_SECOND / 1024:.0f} KiB a second" in text
    at_once = conversation.MESSAGES_AT_ONCE, conversation.BYTES_AT_ONCE / 2**20
    assert "({:.0f} and {:.0f} MiB at once)".format(*at_once) in text
    lesser = conversation.LESSER_HEADERS_PER_SECOND, conversation.LESSER_HEADERS_AT_ONCE
    assert "and {:.0f} headers a second ({:.0f} at once)".format(*lesser) in text
    assert f"at most {conversation.SERVED_PER_SECOND / 2**20:.0f} MiB a second" in text
    assert f"and {conversation.MAX_REQUESTS} questions may wait" in text
    waits = PATIENCE.unsent, PATIENCE.pong, PATIENCE.handshake
    assert (
        "read for {:.0f} s, is silent for {:.0f} s after a ping, or takes {:.0f} s".format(*waits)
        in text
    )
    assert f"{peers.MAX_INBOUND} inbound and {peers.MAX_OUTBOUND} outbound" in text
    assert f"at most {addresses.MAX_PER_SOURCE} places in a book of {addresses.MAX_BOOK}" in text
    assert f"up to {addresses.LAST_RETRY / 60:.0f} minutes" in text
    assert f"({addresses.LAST_RETRY_KEPT:.0f} s for the operator's)" in text
    assert f"the last {serving.PROOF_DEPTH} blocks" in text
    assert bans.BAN_SECONDS == 24 * 3600 and "ban of the host for a day" in text
    assert addresses.MAX_PER_GROUP == 2 and "at most two are in one network" in text


def test_the_paths_are_listed() -> None:
    rows = re.findall(
        r"^\| `(\w+ /[^`]*)` \| [^|]+ \| (yes)? ?\|$", section("Running a node"), re.M
    )
    stated = {path: bool(light) for path, light in rows}
    assert stated == {f"{each.method} {each.path}": each.light for each in ENDPOINTS}
