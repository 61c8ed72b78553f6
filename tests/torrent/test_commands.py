"""`oda seed`, `oda fetch` and `oda torrents`, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from channels.errors import UserError
from channels.settings import Network, Settings
from channels.terminal import ExitCode
from tests.torrent.samples import content, fill
from torrent import files, settings

ROOT = Path(__file__).parents[2]


class Oda:
    """A user with a data directory of their own."""

    def __init__(self, data: Path) -> None:
        self.environment = {
            **os.environ,
            "ODA_DATA": str(data),
            "XDG_CONFIG_HOME": str(data / "config"),
            "ODA_TORRENT_STALL_S": "2",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.torrent.oda", *arguments]

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def json(self, *arguments: str) -> tuple[int, Any]:
        code, out = self.run(*arguments, "--json")
        return code, json.loads(out)

    @contextmanager
    def seeding(self, *arguments: str) -> Iterator[Any]:
        with subprocess.Popen(
            self.command("seed", *arguments, "--json"),
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as started:
            assert started.stdout is not None
            try:
                yield json.loads(started.stdout.readline())
                started.send_signal(signal.SIGINT)
                assert started.wait(20) == ExitCode.OK
            finally:
                started.kill()


def test_given_and_taken(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"weights": 300_000, "config": 50})
    giver, taker = Oda(tmp_path / "giver"), Oda(tmp_path / "taker")
    with giver.seeding(str(source)) as seeding:
        (shared,) = seeding["torrents"]
        code, shown = giver.json("torrents")
        assert code == ExitCode.OK
        assert [each["infohash"] for each in shown["torrents"]] == [shared["infohash"]]
        assert shown["torrents"][0]["total"] == shown["bytes"] == 300_050
        code, fetched = taker.json(
            "fetch", shared["infohash"], "--peer", seeding["address"], "--to", str(tmp_path / "to")
        )
        assert code == ExitCode.OK
        assert (fetched["bytes"], fetched["directory"]) == (300_050, str(tmp_path / "to"))
        assert (tmp_path / "to" / "weights").read_bytes() == content("weights", 300_000)
        # The link says where it is by itself, and what is here is not fetched again.
        code, fetched = taker.json("fetch", shared["magnet"])
        assert (code, fetched["downloaded"]) == (ExitCode.OK, 0)
        code, shown = taker.json("fetch", shared["magnet"], "--to", str(tmp_path / "to"))
        assert (code, shown["error"]["reason"]) == (ExitCode.IN_USE, "already-exists")
        # Somebody else works on it.
        code, shown = giver.json("torrents", "--forget", shared["infohash"])
        assert (code, shown["error"]["reason"]) == (ExitCode.IN_USE, "already-running")
    # The taker gives it on.
    with taker.seeding() as seeding:
        third = Oda(tmp_path / "third")
        code, out = third.run("fetch", shared["infohash"], "--peer", seeding["address"])
        assert (code, "293.0 KiB" in out) == (ExitCode.OK, True)
    code, out = giver.run("torrents")
    assert code == ExitCode.OK
    assert shared["infohash"][:16] in out
    assert "stopped" in out
    code, shown = giver.json("torrents", "--forget", shared["infohash"])
    assert (code, shown["torrents"]) == (ExitCode.OK, [])


def test_a_live_table(tmp_path: Path) -> None:
    """On a terminal `oda torrents` draws itself again while things happen."""
    source = fill(tmp_path / "source", {"weights": 300_000, "config": 50})
    oda = Oda(tmp_path / "data")
    ours, theirs = os.openpty()
    environment = {**oda.environment, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(
        oda.command("torrents"), env=environment, cwd=ROOT, stdin=theirs, stdout=theirs
    ) as shown:
        os.close(theirs)
        try:
            seen = read_until(ours, b"infohash")
            with oda.seeding(str(source)) as seeding:
                infohash = seeding["torrents"][0]["infohash"][:16].encode()
                assert infohash not in seen
                seen = read_until(ours, infohash, b"seeding", b"293.0 KiB")
                # One table over the other, and no new one below it.
                assert b"\x1b[1A" in seen
            read_until(ours, b"stopped")
            shown.send_signal(signal.SIGINT)
            # What it says last must be read, or it waits for us.
            read_until(ours)
            assert shown.wait(20) == ExitCode.INTERRUPTED
        finally:
            shown.kill()
            os.close(ours)


def read_until(terminal: int, *wanted: bytes) -> bytes:
    """What comes until all of that has come; without any, until the other side is closed."""
    seen = b""
    while not wanted or not all(each in seen for each in wanted):
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            assert not wanted, seen
            break
    return seen


def test_challenged(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"weights": 300_000, "config": 50})
    oda = Oda(tmp_path / "data")
    code, out = oda.json("challenge", "ab" * 32)
    assert (code, out["error"]["reason"]) == (ExitCode.USAGE, "no-web-seed")
    infohash = files.describe(source).manifest.infohash.hex()
    nowhere = f"http://127.0.0.1:1/torrents/{infohash}/"
    code, out = oda.json("challenge", infohash, "--web-seed", nowhere)
    assert (code, out["error"]["reason"]) == (ExitCode.NOT_FOUND, "not-retrievable")


def test_errors(tmp_path: Path) -> None:
    oda = Oda(tmp_path / "data")

    def reason(*arguments: str) -> tuple[int, str]:
        code, shown = oda.json(*arguments)
        return code, shown["error"]["reason"]

    assert reason("fetch", "ab" * 32) == (ExitCode.UNREACHABLE, "fetch-stalled")
    assert reason("fetch", "ab") == (ExitCode.USAGE, "bad-infohash")
    assert reason("fetch", "ab" * 32, "--peer", "x") == (ExitCode.USAGE, "bad-peer")
    assert reason("seed", str(tmp_path / "none")) == (ExitCode.NOT_FOUND, "not-found")
    assert reason("torrents", "--forget", "cd" * 32) == (ExitCode.NOT_FOUND, "not-found")
    oda.environment["ODA_TORRENT_QUOTA_MIB"] = "-1"
    assert reason("torrents") == (ExitCode.USAGE, "bad-setting")


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ODA_TORRENT_HOST", "192.0.2.1")
    monkeypatch.setenv("ODA_TORRENT_DHT", "true")
    monkeypatch.setenv("ODA_TORRENT_TRACKERS", "udp://t.example:1,http://t.example/announce")
    found = settings.load(Settings(network=Network.SIGNET), {"port": 7000})
    assert (found.host, found.port, found.dht, len(found.trackers)) == ("192.0.2.1", 7000, True, 2)
    # Nothing of regtest leaves the machine.
    found = settings.load(Settings())
    assert (found.host, found.dht, found.trackers) == ("127.0.0.1", False, ())
    monkeypatch.setenv("ODA_TORRENT_TRACKERS", "ftp://t.example")
    with pytest.raises(UserError) as caught:
        settings.load(Settings())
    assert caught.value.reason == "bad-url"
