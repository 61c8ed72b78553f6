"""Provisioning, without a network: apt is stood in for, or hidden.

The real thing is what the `bitcoind` fixture does on a machine that has no bitcoind yet.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.terminal import ExitCode, exit_code
from regtest import provision
from regtest.bitcoind import find_bitcoind

STAND_IN = Path(__file__).with_name("apt_stand_in.py")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose whole PATH is the stand-ins for apt."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in provision.TOOLS:
        script = tools / tool
        script.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
        script.chmod(0o755)
    directory = tmp_path / "archive"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("FAKE_ARCHIVE", str(directory))
    return directory


def calls(archive: Path) -> list[str]:
    return (archive / "calls").read_text().splitlines()


def test_fetched_once_and_then_offline(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    shown: list[str | None] = []
    command = find_bitcoind(None, cache, lambda done, total=None, label=None: shown.append(label))
    assert Path(command[0]).name == "ld-linux.so.2"
    assert command[1] == "--library-path"
    assert command[-1].endswith("/usr/bin/bitcoind")
    # Debian's mirror was tried before that of a third party.
    mirror = "http://mirror.invalid/debian"
    assert calls(archive) == [f"update {mirror}", f"download {mirror}"]
    assert shown[0] == "Reading Debian's package lists"
    assert "Fetching bitcoind (0 MB)" in shown

    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_bitcoind(None, cache) == command


def test_packages_are_kept_by_their_hash(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    provision.provision(cache)
    tree = next((cache / "bitcoind").glob("*/usr"))
    (tree / "bin/bitcoind").unlink()
    tree.parent.rename(tmp_path / "lost")
    provision.provision(cache)
    assert [call.split()[0] for call in calls(archive)] == ["update", "download", "update"]


def test_two_at_once_fetch_it_once(archive: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        cache = tmp_path / "cache"
        first, second = pool.map(provision.provision, [cache, cache])
    assert first == second
    assert len(calls(archive)) == 2


def test_without_apt_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        find_bitcoind(None, tmp_path / "cache")
    assert caught.value.reason == "not-installed"
    assert exit_code(caught.value) is ExitCode.NOT_INSTALLED
    sentence = str(caught.value)
    assert "install Bitcoin Core or Bitcoin Knots" in sentence
    assert "ODA_BITCOIND" in sentence
    assert "\n" not in sentence


def test_offline_the_first_time(archive: Path, tmp_path: Path) -> None:
    (archive / "offline").touch()
    with pytest.raises(UserError, match=r"E: Could not resolve http://mirror\.invalid") as caught:
        provision.provision(tmp_path / "cache")
    assert caught.value.reason == "provisioning-failed"
    # Both of the machine's archives were asked, and a later run starts afresh.
    assert len(calls(archive)) == 2
    (archive / "offline").unlink()
    assert provision.provision(tmp_path / "cache")


def test_a_package_that_is_not_what_the_list_says(archive: Path, tmp_path: Path) -> None:
    (archive / "tampered").touch()
    with pytest.raises(UserError, match="other packages than it lists") as caught:
        provision.provision(tmp_path / "cache")
    assert caught.value.reason == "provisioning-failed"
    assert provision.command(tmp_path / "cache") is None


def test_the_order_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "bitcoind"
    program.touch(0o755)
    named = tmp_path / "mine"
    named.touch(0o755)
    assert find_bitcoind(named, tmp_path) == [str(named)]
    assert find_bitcoind(None, tmp_path) == [str(program)]
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError) as caught:
            find_bitcoind(wrong, tmp_path)
        assert caught.value.reason == "not-found"
