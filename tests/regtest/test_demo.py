"""`make demo` as a program, and what README.md says can be done afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from regtest.engines import VARIABLE
from regtest.record import LEFT, Record, gains, parties

ROOT = Path(__file__).parents[2]
ROLES = ("trainer", "producer")
ODA = Path(sys.executable).parent / "oda"


def run(*command: str | Path, environ: Mapping[str, str], within: int = 60) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A data directory of the test's own; models and bitcoind come from the shared cache. Whoever
    has an Ollama is not to be asked by a test."""
    environ = {**os.environ, "ODA_DATA": str(tmp_path), VARIABLE: ""}
    try:
        yield environ
    finally:
        run(sys.executable, "-m", "regtest.demo", "--down", environ=environ)


# A first run trains the model, which takes half a minute of its own.
@pytest.mark.timeout(1200)
def test_the_demo_and_the_readme(environ: dict[str, str], tmp_path: Path) -> None:
    output = run(sys.executable, "-m", "regtest.demo", environ=environ, within=1000)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])

    assert list(result) == [
        *("tokens", "paid_msat", "refunded_msat", "topups", "max_exposure_msat"),
        *("exposure_limit_msat", "user_before_sat", "user_after_sat", "provider_after_sat"),
        *("onchain_fees_sat", "conserved", "blocks", "score_before", "score_after"),
        *("digits_accuracy_before", "digits_accuracy_after"),
        *("cheats_caught", "trainer_msat", "producer_msat", "receipts_verified"),
        *("shares_conserved", "served_after_seconds", "forced_close_sat", "seconds"),
    ]
    assert result["conserved"] is True
    assert result["tokens"] > 600
    assert 0 < result["max_exposure_msat"] <= result["exposure_limit_msat"]
    spent = result["paid_msat"] - result["refunded_msat"]
    assert result["refunded_msat"] > 0
    assert spent > 0
    # The provider has the reserve that was pushed to it and what it sold, in whole satoshis.
    assert result["provider_after_sat"] == (546_000 + spent) // 1000
    paid_out = result["provider_after_sat"] + result["onchain_fees_sat"]
    assert result["user_before_sat"] == result["user_after_sat"] + paid_out
    per_answer = [int(n) for n in re.findall(r"(\d+) top-ups .* on one connection", output)]
    assert max(per_answer) >= 3
    assert "As far as it went it is what" in output
    assert "oda-pydoc came to it over BitTorrent" in output
    learned(result, output)
    reported(result, output, tmp_path / "demo")

    by_hand(environ, tmp_path, output)


def learned(result: dict[str, Any], output: str) -> None:
    """The second half: a model got better, and those who made it so were paid."""
    assert result["blocks"] >= 5
    assert result["score_after"] < result["score_before"] // 2
    assert result["digits_accuracy_before"] < 30
    assert result["digits_accuracy_after"] > 85
    assert result["cheats_caught"] == 4
    for reason in ("root-known", "bad-score", "withdrawn", "answer-wrong-model"):
        assert reason in output
    assert result["receipts_verified"] == 3
    assert result["shares_conserved"] is True
    # 5 % and 1 % of what each session has spent, rounded up.
    sessions = [spent for row in paid("spent", output) for spent in row]
    assert len(sessions) == 3
    assert result["trainer_msat"] == sum(-(-spent // 20) for spent in sessions)
    assert result["producer_msat"] == sum(-(-spent // 100) for spent in sessions)
    # The answer that ran was the one trainer's to its end, the next one is the other's.
    rows = {who: paid(who, output) for who in ("trainer", "rival")}
    (first, (during, no_more)), ((not_yet, then),) = sorted(rows.values(), key=len, reverse=True)
    assert first == [-(-sessions[0] // 20)]
    assert (during, no_more) == (-(-sessions[1] // 20), 0)
    assert (not_yet, then) == (0, -(-sessions[2] // 20))
    assert "⇄ new weights are served" in output
    assert result["served_after_seconds"] > 0
    assert "all balances and all coins agree, to the msat" in output
    assert 95_000 < result["forced_close_sat"] < 100_000


def reported(result: dict[str, Any], output: str, directory: Path) -> None:
    """The run as a page and as data, which say what the run did."""
    page = directory / "report.html"
    assert str(page) in output and page.as_uri() in output
    html = page.read_text()
    assert "<h1>Every msat is accounted for" in html
    record = msgspec.json.decode((directory / "record.json").read_bytes(), type=Record)
    assert record.result == result
    numbers = [step.number for step in record.steps]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 13
    assert all(step.text in html.replace("&amp;", "&") for step in record.steps)
    assert {"user", "provider", "producer", "trainer", "rival"} <= set(parties(record))
    # It was killed twice. The first time it may be back before anybody looks.
    assert len(gains(record, "provider")) >= 2
    assert len(record.caught) == result["cheats_caught"]
    assert all(each.reason in html for each in record.caught)
    assert sum(each.output_tokens for each in record.answers[:3]) == result["tokens"]
    assert record.answers[1].interrupted and record.answers[2].ended == LEFT
    assert "answer-wrong-model" in [each.ended for each in record.answers]
    paid = {role: [s.msat for s in record.shares if s.role == role] for role in ROLES}
    for role in ROLES:
        assert sum(paid[role]) == result[f"{role}_msat"]
    scores = [each for each in record.scores if each.unit == "nats/byte"]
    assert scores[0].score == result["score_before"]
    assert result["score_after"] in [each.score for each in scores if each.state == "confirmed"]
    assert {each.who for each in scores if each.state == "withdrawn"} >= {"a cheat"}
    assert record.accounts and all(line.what in html for line in record.accounts[0].lines)


def paid(who: str, output: str) -> list[list[int]]:
    """The rows of the tables of shares that begin with a name, one amount for each session."""
    found = re.findall(rf"^ *{who} +([\d,]+(?: +[\d,]+)?) *$", output, re.MULTILINE)
    return [[int(amount.replace(",", "")) for amount in row.split()] for row in found]


def by_hand(environ: dict[str, str], tmp_path: Path, output: str) -> None:
    """The commands that the demo leaves behind, and the ten lines of the README."""
    found = re.search(r"OPENAI_BASE_URL=(\S+)/v1", output)
    assert found is not None
    url = found[1]
    there = {**environ, "ODA_DATA": str(tmp_path / "demo"), "ODA_CLIENT_PROVIDER": url}

    with subprocess.Popen(
        [ODA, "open", url, "--json"], cwd=ROOT, env=there, stdout=subprocess.PIPE, text=True
    ) as opening:
        while opening.poll() is None:
            run(ODA, "regtest", "mine", environ=there)
    assert opening.returncode == 0

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    printed = run(sys.executable, "-c", code[1], environ=there)
    assert len(printed) > 100
    assert "status='succeeded'" in printed

    sessions = json.loads(run(ODA, "sessions", "--all", "--json", environ=there))
    assert {session["state"] for session in sessions} == {"closed"}
    closed = json.loads(run(ODA, "close", "--channel", "--json", environ=there))
    assert closed["channels"][0]["type"] == "mutual"
