"""docs/sidechain.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from sidechain import mempool, primitives, protocol
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
