"""Starting and stopping: settings that can't be served, keys, ports, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import typer
from typer.testing import CliRunner

from channels.errors import OdaError, UserError
from provider import commands
from provider.api import ApiError
from provider.app import RateLimit, serve
from provider.settings import Keys, ProviderSettings
from tests.provider.fakes import World


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"host": "0.0.0.0"}, "tls-needed"),  # noqa: S104  # that is the point
        ({"host": "example.org"}, "tls-needed"),
        ({"host": "0.0.0.0", "tls_cert": Path("a")}, "bad-setting"),  # noqa: S104  # as above
        ({"capacity": 0}, "bad-setting"),
        ({"idle_timeout": 0}, "bad-setting"),
        ({"realm": 'a"b'}, "bad-setting"),
        ({"realm": "a|b"}, "bad-setting"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        ProviderSettings(**wrong).check()
    assert refused.value.reason == reason


def test_settings_that_are_fine() -> None:
    ProviderSettings().check()
    ProviderSettings(host="::1").check()
    ProviderSettings(host="localhost").check()
    ProviderSettings(host="0.0.0.0", tls_cert=Path("a"), tls_key=Path("b")).check()  # noqa: S104  # with TLS


def test_keys_are_drawn_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "provider" / "key"
    first = Keys.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Keys.load(path)
    assert again.challenges == first.challenges
    assert again.preimage(b"n") == first.preimage(b"n")
    derived = {first.challenges, first.l402, first.preimage(b"n"), first.preimage(b"m")}
    assert len(derived) == 4
    path.write_bytes(b"short")
    with pytest.raises(UserError) as refused:
        Keys.load(path)
    assert refused.value.reason == "bad-key-file"


async def test_serving_ends_with_sigterm(tmp_path: Path) -> None:
    world = World(tmp_path, port=0)
    await world.start()
    await world.client.close()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(world.provider, url.set_result))
    async with aiohttp.ClientSession() as http, http.get(f"{await url}/models") as response:
        assert response.status == 200
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    world.ledger.close()


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        world = World(tmp_path, port=taken.getsockname()[1])
        await world.start()
        await world.client.close()
        with pytest.raises(OdaError) as refused:
            await serve(world.provider, lambda url: None)
        assert refused.value.reason == "port-in-use"
        world.ledger.close()


def test_the_command_refuses_what_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODA_DATA", str(tmp_path))
    monkeypatch.setenv("ODA_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    root = typer.Typer()
    commands.mount(root)
    root.command("other")(lambda: None)
    run = CliRunner().invoke
    assert "token by token" in run(root, ["provider", "--help"]).output
    refused = run(root, ["provider", "--host", "0.0.0.0"])  # noqa: S104  # that is the point
    assert isinstance(refused.exception, UserError)
    assert refused.exception.reason == "tls-needed"
    # There is no node: one sentence, and nothing was trained or stored.
    missing = run(root, ["provider"])
    assert isinstance(missing.exception, OdaError)
    assert missing.exception.reason == "lightning-unreachable"
    assert not (tmp_path / "regtest" / "provider").exists()


def test_an_address_that_is_refused_uses_up_nothing_of_the_others() -> None:
    limit = RateLimit(5)
    for _ in range(5):
        limit.take("10.0.0.1")
    for _ in range(1000):
        with pytest.raises(ApiError):
            limit.take("10.0.0.1")
    limit.take("10.0.0.2")
