"""Who may spend the user's sats through the gateway: programs of this machine, and no web page.

Any page that the user looks at can send requests to this machine. It can't send them without an
`Origin` (or, for a GET, read the answer), nor as JSON without asking first, nor hide the name that
it was rebound from. A token keeps other users of the machine out, too.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from channels import secret_file
from channels.loopback import is_local, is_loopback
from client.gateway.settings import GatewaySettings
from provider.api import ApiError

JSON: Final = "application/json"
OWN_SITES: Final = ("none", "same-origin")


class Guard:
    """token: what programs must send as their API key; None: nothing."""

    def __init__(self, settings: GatewaySettings, token: str | None) -> None:
        self._only_local = is_loopback(settings.host)
        self._token = token

    def check(self, request: web.Request) -> None:
        """Raises ApiError."""
        headers = request.headers
        if self._only_local and not is_local(request.remote, request.url.host, headers):
            raise _forbidden("Only programs on this machine are served, under its own name.")
        if hdrs.ORIGIN in headers or headers.get("Sec-Fetch-Site", "none") not in OWN_SITES:
            raise _forbidden("Web pages are not served: they could spend your sats unseen.")
        if request.path == "/health":
            return
        if self._token is not None and not self._has_token(request):
            raise ApiError(
                "invalid-api-key",
                "The API key must be the gateway's token; `oda gateway` says where it is.",
                status=401,
                type_="authentication_error",
            )
        if request.method == hdrs.METH_POST and request.content_type != JSON:
            raise ApiError("not-json", f"The content type must be {JSON}.", status=415)

    def _has_token(self, request: web.Request) -> bool:
        given = request.headers.get(hdrs.AUTHORIZATION, "")
        expected = f"Bearer {self._token}"
        return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def load_token(path: Path) -> str:
    """The token in the file, which is made (0600) where there is none."""
    return secret_file.load(path, lambda size: secrets.token_hex(size // 2).encode()).decode()


def _forbidden(sentence: str) -> ApiError:
    return ApiError("forbidden", sentence, status=403, type_="permission_error")
