"""A provider as the user's side sees it: HTTP requests, and what came back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

from channels import receipts
from channels.errors import OdaError, RemoteProtocolError, UserError
from channels.http.scheme import PROBLEM_BASE, Challenge, Credential, parse_challenges
from channels.http.sse import EventParser, ServerEvent
from channels.http_body import read_body
from channels.loopback import is_loopback
from channels.receipts import Receipt
from channels.terminal import EXIT_CODES, ExitCode
from channels.units import Msat
from client.question import CHAT, Question
from provider.api import Model

MAX_ANSWER: Final = 1 << 20
CONNECT_SECONDS: Final = 10
CALL_SECONDS: Final = 60
SILENCE_SECONDS: Final = 120
"""A stream on which nothing at all comes for so long is taken for dead."""

EXIT_CODES.update(
    {
        "model-not-found": ExitCode.NOT_FOUND,
        "lightning/session-not-found": ExitCode.NOT_FOUND,
        "insecure-provider": ExitCode.USAGE,
        "no-bearer-hash": ExitCode.REFUSED,
    }
)


class ProviderUnreachable(OdaError):
    """It does not answer, or hung up. What it did with the request is unknown."""


class ProviderRefused(RemoteProtocolError):
    """The provider's own final error. `status` is of HTTP; challenges: the offers it came with."""

    def __init__(
        self, reason: str, sentence: str, status: int, challenges: tuple[Challenge, ...] = ()
    ) -> None:
        super().__init__(reason, sentence)
        self.status = status
        self.challenges = challenges


class Oda(msgspec.Struct, frozen=True):
    """The `oda` member of /v1/models: who takes the payments. address: "host:port" for peers."""

    node_id: str | None = None
    address: str | None = None
    network: str | None = None


class Catalogue(msgspec.Struct, frozen=True):
    """GET /v1/models"""

    data: list[Model]
    oda: Oda = Oda()


@dataclass(frozen=True, slots=True)
class Reply:
    """A 2xx without a stream: its JSON object, and the next challenges."""

    document: dict[str, Any]
    challenges: tuple[Challenge, ...]


class Stream:
    """A 2xx with events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.challenges = _challenges(response)
        self.is_stream = response.content_type == "text/event-stream"

    async def events(self) -> AsyncIterator[ServerEvent]:
        """Ends where the connection does. Raises ProviderUnreachable when it breaks."""
        parser = EventParser()
        try:
            async for data in self._response.content.iter_any():
                for event in parser.feed(data):
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self._response.url, error) from error


class Provider:
    """The provider at `url`. Raises ProviderUnreachable, ProviderRefused and UserError."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = normal_url(url)
        self._http = http

    async def models(self) -> Catalogue:
        async with self._request("GET", "/v1/models") as response:
            await self._expect(response, 200)
            body = await _body(response)
        try:
            return msgspec.json.decode(body, type=Catalogue)
        except msgspec.DecodeError:
            raise RemoteProtocolError(
                "not-a-provider", f"What answers on {self.url} is not an ODA provider."
            ) from None

    async def offers(self, question: Question) -> tuple[Challenge, ...]:
        """The challenges of the 402 to an unpaid request."""
        async with self._request("POST", question.path, body=question.body) as response:
            await self._expect(response, 402)
            challenges = _challenges(response)
        if not challenges:
            raise RemoteProtocolError(
                "no-offer", f"The provider {self.url} wants to be paid, but offers no way to."
            )
        return challenges

    async def claim(self, credential: Credential) -> Reply:
        """topUp and close: a bodiless GET."""
        headers = {"Authorization": credential.to_header()}
        async with self._request("GET", CHAT, headers=headers) as response:
            await self._expect(response, 200)
            body = await _body(response)
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            raise RemoteProtocolError(
                "bad-answer", "The provider's answer to a credential is not a JSON object."
            ) from None
        return Reply(document, _challenges(response))

    async def receipt(self, session: bytes, secret: bytes) -> Receipt:
        """That of a closed session. Raises RemoteProtocolError `bad-receipt`."""
        headers = {"Authorization": f"Bearer {secret.hex()}"}
        path = f"/v1/receipts/{session.hex()}"
        async with self._request("GET", path, headers=headers) as response:
            await self._expect(response, 200)
            return receipts.decode(await _body(response, receipts.MAX_BYTES))

    @asynccontextmanager
    async def stream(
        self, question: Question, authorization: str, last_event_id: str = ""
    ) -> AsyncIterator[Stream]:
        """A paid request; with `last_event_id` it goes on after that event."""
        headers = {"Authorization": authorization, "Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        async with self._request(
            "POST", question.path, body=question.body, headers=headers, timeout=timeout
        ) as response:
            await self._expect(response, 200)
            yield Stream(response)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109  # aiohttp's own, by phases
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(self.url + path)
        headers = dict(headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = timeout or aiohttp.ClientTimeout(CALL_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            # A redirect would carry our secrets to somewhere else.
            response = await self._http.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(url, error) from error
        try:
            yield response
        finally:
            # Whoever leaves a stream closes its connection: that is how the provider learns.
            response.close()

    async def _expect(self, response: aiohttp.ClientResponse, status: int) -> None:
        if response.status == status:
            return
        raise _refusal(response, await _body(response))


def normal_url(text: str) -> str:
    """Without a path or a slash at its end. Raises UserError."""
    try:
        url = URL(text)
        host = url.host
    except ValueError:
        host = None
    if host is None or url.scheme not in ("http", "https"):
        raise UserError(
            "bad-provider-url", f"{text[:200]!r} is no provider's URL, such as http://host:8402."
        )
    if url.scheme == "http" and not is_loopback(host):
        raise UserError(
            "insecure-provider",
            f"Plain HTTP to {host} would show your payments to everybody in between: use https.",
        )
    return str(url.origin())


def _challenges(response: aiohttp.ClientResponse) -> tuple[Challenge, ...]:
    return parse_challenges(response.headers.getall("WWW-Authenticate", []))


async def _body(response: aiohttp.ClientResponse, most: int = MAX_ANSWER) -> bytes:
    """As http_body.read_body does. Raises ProviderUnreachable."""
    try:
        return await read_body(response.content, most)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _unreachable(response.url, error) from error


class _Error(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None


class _Problem(msgspec.Struct):
    """RFC 9457 and OpenAI's error in one body."""

    type: str | None = None
    detail: str | None = None
    error: _Error | None = None


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> OdaError:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    error = problem.error or _Error()
    reason = (problem.type or "").removeprefix(PROBLEM_BASE)
    if not reason or ":" in reason:
        reason = str(error.code or "refused").replace("_", "-")
    # What a stranger wrote goes to a terminal: bounded, and without control characters.
    text = "".join(c if c.isprintable() else " " for c in (problem.detail or error.message or ""))
    sentence = text[:500] or f"The provider answered {response.status} {response.reason or ''}."
    return ProviderRefused(reason, sentence, response.status, _challenges(response))


def _unreachable(url: URL, error: BaseException) -> ProviderUnreachable:
    what = "took too long" if isinstance(error, TimeoutError) else "does not answer"
    return ProviderUnreachable(
        "provider-unreachable",
        f"The provider {url.origin()} {what}: check the address, or try again later.",
    )


def spent_msat(data: dict[str, Any], name: str) -> Msat | None:
    """An amount in an event's JSON; None where it is missing or no amount."""
    value = data.get(name)
    return Msat(value) if type(value) is int and value >= 0 else None
