"""Who may spend the user's sats: programs of this machine, and no web page."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from channels.errors import UserError
from client.gateway.guard import load_token
from client.gateway.settings import GatewaySettings, load_gateway_settings
from tests.client.gateway.conftest import Desk
from tests.provider.fakes import MODEL

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 5}
ANYWHERE = "0.0.0.0"  # noqa: S104  # what the gateway must refuse
JSON = {"Content-Type": "application/json"}


async def post(desk: Desk, headers: dict[str, str], body: Any = ASKED) -> tuple[int, Any]:
    sent = io.BytesIO(json.dumps(body).encode())
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{desk.url}/chat/completions", data=sent, headers=headers) as response,
    ):
        assert not [name for name in response.headers if name.startswith("Access-Control-")]
        return response.status, await response.json()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that was rebound to 127.0.0.1
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ANYWHERE},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},  # another program's page
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "203.0.113.1"},
        {"Forwarded": "for=203.0.113.1"},
    ],
    ids=str,
)
async def test_what_a_web_page_or_a_proxy_sends_is_refused(
    desk: Desk, headers: dict[str, str]
) -> None:
    await desk.start()
    status, body = await post(desk, JSON | headers)
    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert desk.node.attempts == []
    assert desk.records == []
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{desk.url}/models", headers=headers) as response,
    ):
        assert response.status == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_what_a_page_can_send_without_asking_first_is_refused(desk: Desk, kind: str) -> None:
    await desk.start()
    status, body = await post(desk, {"Content-Type": kind})
    assert (status, body["error"]["code"]) == (415, "not_json")
    assert desk.node.attempts == []


async def test_a_page_that_asks_first_is_not_allowed(desk: Desk) -> None:
    await desk.start()
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with (
        aiohttp.ClientSession() as http,
        http.options(f"{desk.url}/chat/completions", headers=asked) as response,
    ):
        assert response.status == 403
        assert not [name for name in response.headers if name.startswith("Access-Control-")]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8404"])
async def test_the_names_of_this_machine(desk: Desk, host: str) -> None:
    await desk.start()
    assert (await post(desk, JSON | {"Host": host}))[0] == 200


async def test_the_token(desk: Desk, tmp_path: Path) -> None:
    desk.token = load_token(tmp_path / "secret" / "gateway-token")
    await desk.start()
    file = tmp_path / "secret" / "gateway-token"
    assert file.read_text() == desk.token == load_token(file)
    assert len(desk.token) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for given in ({}, {"Authorization": "Bearer sk-any"}, {"Authorization": desk.token}):
        assert (await post(desk, JSON | given))[0] == 401
    with pytest.raises(openai.AuthenticationError):
        await desk.client.models.list()
    assert desk.node.attempts == []
    client = desk.client.with_options(api_key=desk.token)
    assert [model.id for model in (await client.models.list()).data] == [MODEL]
    # Whoever watches whether it runs needs none.
    async with (
        aiohttp.ClientSession() as http,
        http.get(desk.url.replace("/v1", "/health")) as response,
    ):
        assert (await response.json())["status"] == "ok"


@pytest.mark.parametrize(
    ("flags", "is_allowed"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": ANYWHERE}, False),
        ({"host": "192.0.2.1", "token": True}, False),
        ({"host": "192.0.2.1", "expose": True}, False),
        ({"host": "192.0.2.1", "expose": True, "token": True}, True),
    ],
)
def test_where_it_listens(
    flags: dict[str, object],
    is_allowed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if is_allowed:
        assert isinstance(load_gateway_settings(flags), GatewaySettings)
        return
    with pytest.raises(UserError) as refused:
        load_gateway_settings(flags)
    assert refused.value.reason == "not-loopback"


async def test_one_that_is_exposed_needs_the_token_and_no_name(desk: Desk) -> None:
    desk.gateway_settings = GatewaySettings(host=ANYWHERE, expose=True, token=True)
    desk.token = "t" * 32
    await desk.start()
    named = {"Host": "gateway.example"}
    assert (await post(desk, JSON | named))[0] == 401
    paying = JSON | named | {"Authorization": f"Bearer {desk.token}"}
    assert (await post(desk, paying | {"Origin": "https://evil.example"}))[0] == 403
    assert (await post(desk, paying))[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[" * 200_000, 400),
        ([], 400),
        ({}, 400),
        ({"model": 1}, 400),
        ({"model": MODEL}, 400),
        ({"model": MODEL, "messages": [1]}, 400),
        ({"model": MODEL, "messages": [], "max_tokens": "many"}, 400),
        ({"model": MODEL, "messages": [{"role": "user", "content": "a" * (1 << 20)}]}, 413),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_nonsense(desk: Desk, body: Any, status: int) -> None:
    await desk.start()
    found, said = await post(desk, JSON, body)
    assert found == status
    assert said["error"]["message"]
    assert (said["error"]["code"] == "body_too_large") == (status == 413)
    assert desk.node.attempts == []


async def test_paths_that_are_none(desk: Desk) -> None:
    await desk.start()
    async with aiohttp.ClientSession() as http:
        for method, path, status in (("POST", "/audio", 404), ("GET", "/completions", 405)):
            async with http.request(method, desk.url + path, json={}) as response:
                assert response.status == status
                assert (await response.json())["error"]["code"] == "no_such_path"
