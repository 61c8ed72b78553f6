"""Servers behind the provider: found, listed, lost and found again; and who may be one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from channels.errors import UserError
from channels.units import Msat, UnixTime
from provider import upstreams
from provider.places import Places
from provider.serving import Models, Served
from provider.settings import ProviderSettings
from provider.upstream import Upstream
from provider.upstreams import Upstreams, api_key, servers
from sidechain.fees import Terms
from tests.nodes import until
from tests.provider import upstream_server
from tests.provider.buyers import CHAT, chat
from tests.provider.fakes import MODEL, PRICE, FakeEngine, World
from tests.provider.upstream_server import FakeUpstream

NOWHERE = "http://127.0.0.1:1/v1"
SHARES = Terms(50_000, 10_000)


def of_torch(name: str) -> Served:
    return Served(FakeEngine(model_id=name), PRICE, 10, UnixTime(1))


async def test_models_come_and_go_and_come_back() -> None:
    fake = FakeUpstream()
    fake.names = ["a/b:7b-q4", "taken", "bad name\n", "/srv/x.gguf"]
    models = Models([of_torch("taken")])
    async with upstream_server.upstream_of(fake) as upstream:
        gone = Upstream(NOWHERE, upstream._http, Places(1))
        settings = ProviderSettings(upstream_context=77, upstream_input_msat=Msat(0))
        watched = Upstreams([upstream, gone], models, settings, SHARES, lambda: 5.0)
        async with watched.running():
            assert list(models.current) == ["taken", "a/b:7b-q4"]
            served = models.current["a/b:7b-q4"]
            assert (served.engine.context_length, served.created) == (4096, 5)
            assert (served.price.input_msat, served.price.output_msat) == (0, 250)
            # Nobody trained it that the sidechain knows of: producers alone are owed.
            assert (served.model, served.weights_root, served.shares) == (None, None, SHARES)
            here, there = watched.states()
            assert (here.models, here.trouble) == (("a/b:7b-q4",), None)
            assert there.trouble is not None
            assert NOWHERE in there.trouble
            fake.names = []
            await watched.look()
            assert list(models.current) == ["taken"]
            assert models.is_away("a/b:7b-q4")
            fake.names = ["a/b:7b-q4"]
            await watched.look()
            assert not models.is_away("a/b:7b-q4")
            assert "a/b:7b-q4" in models.current


async def test_it_is_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "LOOK_AGAIN", 0.01)
    fake = FakeUpstream()
    models = Models([])

    async def is_there() -> bool:
        return MODEL in models.current

    async def is_gone() -> bool:
        return models.is_away(MODEL)

    async with upstream_server.upstream_of(fake) as upstream:
        watched = Upstreams([upstream], models, ProviderSettings(), None, lambda: 5.0)
        fake.names = []
        async with watched.running():
            assert not models.current
            for names, seen in (([MODEL], is_there), ([], is_gone), ([MODEL], is_there)):
                fake.names = names
                await until(seen, f"the models are {names}")


async def test_only_those_that_are_named() -> None:
    fake = FakeUpstream()
    fake.names = ["a", "b", "c"]
    models = Models([])
    async with upstream_server.upstream_of(fake) as upstream:
        settings = ProviderSettings(upstream_models=("c", "d"))
        watched = Upstreams([upstream], models, settings, None, lambda: 5.0)
        await watched.look()
        assert list(models.current) == ["c"]
        fake.names = ["a"]
        await watched.look()
        (state,) = watched.states()
        assert state.trouble is not None
        assert "none of the models" in state.trouble


async def test_a_provider_whose_only_server_is_down(tmp_path: Path) -> None:
    fake = FakeUpstream()
    async with upstream_server.upstream_of(fake) as upstream:
        world = World(tmp_path)
        models = Models([])
        watched = Upstreams([upstream], models, world.settings, None, world.clock)
        world.models, world.upstreams = models, watched
        fake.names = []
        await watched.look()
        await world.start()
        health = await world.client.get("/health")
        assert health.status == 503
        assert (await health.json())["upstreams"] == [{"reachable": False, "models": 0}]
        assert upstream.url not in await health.text()
        assert (await (await world.client.get("/v1/models")).json())["data"] == []
        dashboard = await (await world.client.get("/dashboard.json")).json()
        assert upstream.url in dashboard["trouble"][0]
        assert (await world.client.get(CHAT)).status == 404
        fake.names = [MODEL]
        await watched.look()
        health = await world.client.get("/health")
        assert (health.status, (await health.json())["models"]) == (200, [MODEL])
        (entry,) = (await (await world.client.get("/v1/models")).json())["data"]
        assert (entry["id"], entry["input_msat_per_token"]) == (MODEL, 50)
        assert "sidechain" not in entry
        assert "infohash" not in entry
        fake.names = []
        await watched.look()
        asked = await world.client.post(CHAT, json=chat())
        assert (asked.status, (await asked.json())["error"]["code"]) == (503, "model_unavailable")
        await world.stop()


# Settings and keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"upstream": ("ftp://127.0.0.1/v1",)}, "bad-url"),
        ({"upstream": ("http://192.168.1.5:11434/v1",)}, "insecure-upstream"),
        ({"upstream": ("http://example.org/v1",)}, "insecure-upstream"),
        ({"upstream": ("https://me:secret@example.org/v1",)}, "bad-setting"),
        ({"upstream": ("https://example.org/v1?key=1",)}, "bad-setting"),
        ({"upstream_capacity": 0}, "bad-setting"),
        ({"upstream_context": 0}, "bad-setting"),
        ({"upstream_queue": -1}, "bad-setting"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        ProviderSettings(**wrong).check()
    assert refused.value.reason == reason
    assert "secret" not in str(refused.value)


def test_settings_that_are_fine() -> None:
    ProviderSettings(upstream=("http://127.0.0.1:11434/v1", "http://[::1]:8000/v1")).check()
    ProviderSettings(upstream=("https://example.org/v1",)).check()
    told = ("http://192.168.1.5:8000/v1",)
    ProviderSettings(upstream=told, upstream_plain_http=True).check()


def test_a_key_is_read_where_nobody_else_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ODA_UPSTREAM_KEY", raising=False)
    assert api_key(None) is None
    monkeypatch.setenv("ODA_UPSTREAM_KEY", "sk-env")
    assert api_key(None) == "sk-env"
    file = tmp_path / "key"
    with pytest.raises(UserError):
        api_key(file)
    file.write_text("sk-file\n")
    file.chmod(0o640)
    with pytest.raises(UserError) as refused:
        api_key(file)
    assert refused.value.reason == "bad-upstream-key"
    file.chmod(0o600)
    assert api_key(file) == "sk-file"
    file.write_text("sk secret\r\nX: y")
    with pytest.raises(UserError) as refused:
        api_key(file)
    assert "secret" not in str(refused.value)


async def test_a_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file")
    file.chmod(0o600)
    fake = FakeUpstream()
    with caplog.at_level(logging.DEBUG):
        async with upstream_server.serving(fake) as url, aiohttp.ClientSession() as http:
            settings = ProviderSettings(upstream=(url, url), upstream_key_file=file)
            settings.check()
            (server,) = servers(settings, http)
            await server.models()
            two = ProviderSettings(upstream=(url, NOWHERE), upstream_key_file=file)
            with pytest.raises(UserError) as refused:
                servers(two, http)
            assert refused.value.reason == "bad-upstream-key"
    assert fake.headers[0]["Authorization"] == "Bearer sk-file"
    assert "sk-file" not in caplog.text
    assert "sk-file" not in repr(server)
