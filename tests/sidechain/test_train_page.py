"""docs/train.md, run as it stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from regtest.daemon import free_port
from tests.sidechain.node_processes import ROOT, environment

FOUND_BY = ("ODA_BITCOIND", "ODA_CACHE")
PAGE = (ROOT / "docs" / "train.md").read_text()


@pytest.fixture
def work() -> Iterator[Path]:
    """An empty directory; the path of a socket may be 107 bytes long."""
    with tempfile.TemporaryDirectory(prefix="oda-") as folder:
        yield Path(folder)


# Its five processes import torch one after the other, and a bitcoind and a node start.
@pytest.mark.timeout(300)
def test_the_page_runs_as_it_stands(
    tmp_path: Path, work: Path, bitcoind_program: Sequence[str]
) -> None:
    """In bash, with ports that are free; `oda regtest` finds the bitcoind that the tests have."""
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    ports = {"8403": str(free_port()), "8404": str(free_port())}
    for written, port in ports.items():
        commands = commands.replace(written, port)
    environ = environment(tmp_path / "data") | {
        "ODA_SIDECHAIN_PORT": ports["8403"],
        "ODA_SIDECHAIN_NODE": f"http://127.0.0.1:{ports['8403']}",
        "ODA_SIDECHAIN_EMPTY_AFTER": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environ |= {name: os.environ[name] for name in FOUND_BY if name in os.environ}
    said = tmp_path / "said"
    with (
        said.open("wb") as out,
        subprocess.Popen(
            ["bash", "-ec", commands],  # noqa: S607 # whichever bash there is
            cwd=work,
            env=environ,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as shell,
    ):
        try:
            code = shell.wait(timeout=200)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            _end_all(shell.pid)
            down = [sys.executable, "-m", "client.cli", "regtest", "down"]
            trainer = {"ODA_DATA": str(work / "trainer")}
            subprocess.run(down, cwd=ROOT, env=environ | trainer, capture_output=True, check=False)
    text = said.read_text()
    assert code == 0, text
    assert re.search(r"Confirmed: score \d+ is on the chain since block \d+", text), text
    assert re.search(r"paid at http://127.0.0.1:\d+/payee/invoice by node 0[23]", text), text


def _end_all(session: int) -> None:
    """What a command that failed has left: every process of the shell's session."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
