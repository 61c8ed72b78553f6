"""A unix socket that speaks lightningd's JSON-RPC.

Requests arrive as bare JSON objects with nothing between them; replies end with an empty line.
The file permissions are the whole of the access control: the socket is 0600 in a 0700 directory.
Facts about the dialect are from Core Lightning 26.06 and its client library.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channels.errors import OdaError, UserError
from channels.node import rpc_params as params
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError, parse_params

__all__ = ["Arguments", "Call", "Command", "Param", "RpcErrorCode", "RpcMethodError", "RpcServer"]

log = logging.getLogger(__name__)

MAX_REQUEST = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_IN_FLIGHT = 64
READ_SIZE = 65536
SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes on Linux, 104 on macOS

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One running command, as its handler sees it."""

    id: Any
    notify: Callable[[str], None]
    """Send a line of progress to a caller that enabled notifications; else nothing happens."""


Handler = Callable[[Arguments, Call], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the RPC: `handler` gets every name of `params`, parsed.

    Only a command that merely waits may be `abandonable`: it is cancelled when its caller hangs
    up. Everything else runs to its end, because it may already have moved money.
    """

    name: str
    params: tuple[Param, ...]
    handler: Handler
    description: str
    abandonable: bool = False

    @property
    def usage(self) -> str:
        """lightningd's own form: `invoice amount_msat label [expiry]`."""
        words = (p.name if p.required else f"[{p.name}]" for p in self.params)
        return " ".join((self.name, *words))


def _malformed(message: str) -> RpcMethodError:
    return RpcMethodError(RpcErrorCode.INVALID_REQUEST, message)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_OUTSIDE_STRING = re.compile(r'["{}\[\]]')
_INSIDE_STRING = re.compile(r'\\.|"', re.DOTALL)


class RequestDecoder:
    """Cuts a byte stream into JSON objects, in time linear in its length."""

    def __init__(self, max_request: int = MAX_REQUEST) -> None:
        self._max_request = max_request
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield each object that is now whole; raises `RpcMethodError` (-32600) on anything else.

        After an error the stream has no known position, so it can only be closed.
        """
        try:
            self._text += self._utf8.decode(data)
        except UnicodeDecodeError:
            raise _malformed("Request is not UTF-8") from None
        while (end := self._end_of_object()) is not None:
            text, self._text = self._text[:end], self._text[end:]
            self._scanned = 0
            try:
                request = json.loads(text, parse_constant=_no_constant)
            except ValueError:
                raise _malformed("Invalid token in json input") from None
            yield request
        if len(self._text) > self._max_request:
            raise _malformed(f"Request is larger than {self._max_request} characters")

    def _end_of_object(self) -> int | None:
        if self._depth == 0:
            self._text = self._text.lstrip(" \t\r\n")
            if self._text and self._text[0] != "{":
                raise _malformed("Expected {} for json command")
        while self._scanned < len(self._text):
            pattern = _INSIDE_STRING if self._in_string else _OUTSIDE_STRING
            match = pattern.search(self._text, self._scanned)
            if match is None:
                # A backslash at the very end waits for the character that it escapes.
                self._scanned = len(self._text)
                if self._in_string and self._text.endswith("\\"):
                    self._scanned -= 1
                return None
            self._scanned = match.end()
            mark = match[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif mark in "{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise _malformed(f"Request is nested deeper than {MAX_DEPTH}")
            elif mark in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return self._scanned
        return None


def check_filter(wanted: Any, path: str = "filter") -> None:
    """Refuse what is not a filter: `true`, an object of filters, or an array of one filter."""
    if isinstance(wanted, dict):
        for key, inner in wanted.items():
            check_filter(inner, f"{path}.{key}")
    elif isinstance(wanted, list) and len(wanted) == 1:
        check_filter(wanted[0], f"{path}[]")
    elif wanted is not True:
        raise params.bad_param(path, "should be true, an object or an array of one", wanted)


def apply_filter(result: Any, wanted: Any) -> Any:
    """Keep of `result` what `wanted` names; a filter of the wrong shape keeps nothing there."""
    if isinstance(wanted, dict) and isinstance(result, Mapping):
        return {k: apply_filter(result[k], inner) for k, inner in wanted.items() if k in result}
    if isinstance(wanted, list) and isinstance(result, list | tuple):
        return [apply_filter(element, wanted[0]) for element in result]
    if wanted is True:
        return result
    return {} if isinstance(result, Mapping) else []


class RpcServer:
    """Serves `commands` on a unix socket from `start()` until `close()`."""

    def __init__(self, path: Path, commands: tuple[Command, ...]) -> None:
        self.path = path
        lister = Command(
            "help",
            (Param("command", False, params.string),),
            self._help,
            "List the commands, or show one.",
        )
        self.commands = {command.name: command for command in (*commands, lister)}
        self.closing = False
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._handlers: set[asyncio.Task[Mapping[str, Any]]] = set()

    async def start(self) -> None:
        """Listen; raises `UserError` when another process answers on the same socket."""
        listener = _bind(self.path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def close(self, grace: float = 5.0) -> None:
        """Stop listening, tell waiting callers that the node is going, and remove the socket.

        Running commands are answered with -5, which says nothing about money they already moved.
        Callers that do not read their replies within `grace` seconds are cut off.
        """
        if self._server is None:
            return
        self.closing = True
        self._server.close()
        self._server = None
        self.path.unlink(missing_ok=True)
        for handler in self._handlers:
            handler.cancel()
        for connection in self._connections:
            connection.stop_reading()
        if self._connections:
            _, stuck = await asyncio.wait(self._connections.values(), timeout=grace)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck)

    def run(self, command: Command, given: Any, call: Call) -> asyncio.Task[Mapping[str, Any]]:
        """Start a command; raises `RpcMethodError` for parameters that do not fit."""
        if self.closing:
            raise RpcMethodError(RpcErrorCode.SHUTDOWN, "The node is shutting down")
        arguments = parse_params(command.params, given)
        task = asyncio.ensure_future(_handle(command, arguments, call))
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        return task

    async def _help(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        wanted = arguments["command"]
        chosen = list(self.commands.values()) if wanted is None else [self.find(wanted)]
        return {
            "help": [{"command": c.usage, "description": c.description} for c in chosen],
            "format-hint": "simple",
        }

    def find(self, name: str) -> Command:
        command = self.commands.get(name)
        if command is None:
            message = f"Unknown command '{name[:100]}'"
            raise RpcMethodError(RpcErrorCode.METHOD_NOT_FOUND, message)
        return command

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        try:
            await connection.run()
        finally:
            del self._connections[connection]


async def _handle(command: Command, arguments: Arguments, call: Call) -> Mapping[str, Any]:
    return await command.handler(arguments, call)


class _Connection:
    """One caller. Its commands run side by side; each reply is one write."""

    def __init__(
        self, server: RpcServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._decoder = RequestDecoder()
        self._notifications = False
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._answers: set[asyncio.Task[None]] = set()
        self._abandonable: set[asyncio.Task[Mapping[str, Any]]] = set()

    def stop_reading(self) -> None:
        """Let `run()` end as if the caller had said all that it wanted to."""
        self._reader.feed_eof()

    async def run(self) -> None:
        try:
            await self._read_requests()
            for task in self._abandonable:
                task.cancel()
            if self._answers:
                await asyncio.wait(self._answers)
            self._writer.close()
            # A caller that hung up before its reply has nothing left to be told.
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        finally:
            for answer in self._answers:
                answer.cancel()
            # Only a connection that was cut off still has unsent bytes, and they are dropped.
            self._writer.transport.abort()

    async def _read_requests(self) -> None:
        try:
            while data := await self._reader.read(READ_SIZE):
                for request in self._decoder.feed(data):
                    await self._accept(request)
        except RpcMethodError as malformed:
            await self._send_error(None, malformed)
        except ConnectionError:
            return

    async def _accept(self, request: dict[str, Any]) -> None:
        """Start answering; raises `RpcMethodError` when there is no telling what to answer to."""
        id_, method = request.get("id"), request.get("method")
        if not isinstance(id_, str) and type(id_) is not int:
            raise _malformed("No id" if id_ is None else "Expected string/primitive for id")
        if not isinstance(method, str):
            raise _malformed("No method" if method is None else "Expected string for method")
        given = request.get("params", {})
        if method == "notifications":
            await self._enable_notifications(id_, given)
            return
        await self._slots.acquire()
        answer = asyncio.ensure_future(self._answer(id_, method, given, request.get("filter")))
        self._answers.add(answer)
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Task[None]) -> None:
        self._answers.discard(answer)
        self._slots.release()

    async def _enable_notifications(self, id_: str | int, given: Any) -> None:
        try:
            wanted = parse_params((Param("enable", True, params.boolean),), given)
        except RpcMethodError as refused:
            await self._send_error(id_, refused)
            return
        self._notifications = wanted["enable"]
        await self._send(_encode({"id": id_, "result": {}}))

    async def _answer(self, id_: str | int, method: str, given: Any, wanted: Any) -> None:
        try:
            if wanted is not None:
                check_filter(wanted)
            command = self._server.find(method)
            task = self._server.run(command, given, Call(id_, self._notifier(id_)))
            if command.abandonable:
                self._abandonable.add(task)
                task.add_done_callback(self._abandonable.discard)
            result = await _outcome(task)
            shown = result if wanted is None else apply_filter(result, wanted)
            reply = _encode({"id": id_, "result": shown})
        except RpcMethodError as refused:
            await self._send_error(id_, refused)
        except OdaError as refused:
            await self._send_error(id_, RpcMethodError(RpcErrorCode.LIGHTNINGD, str(refused)))
        except Exception:
            log.exception("RPC command %s failed unexpectedly", method)
            message = f"'{method}' failed unexpectedly; the node's log says why"
            await self._send_error(id_, RpcMethodError(RpcErrorCode.LIGHTNINGD, message))
        else:
            await self._send(reply)

    def _notifier(self, id_: str | int) -> Callable[[str], None]:
        def notify(message: str) -> None:
            if self._notifications and not self._writer.is_closing():
                inner = {"id": id_, "level": "info", "message": message}
                self._writer.write(_encode({"method": "message", "params": inner}))

        return notify

    async def _send_error(self, id_: str | int | None, error: RpcMethodError) -> None:
        body: dict[str, Any] = {"code": int(error.code), "message": str(error)}
        if error.data is not None:
            body["data"] = error.data
        await self._send(_encode({"id": id_, "error": body}))

    async def _send(self, reply: bytes) -> None:
        # A caller that hung up is not told; what its command did is in the store.
        if self._writer.is_closing():
            return
        with contextlib.suppress(ConnectionError):
            self._writer.write(reply)
            await self._writer.drain()


async def _outcome(task: asyncio.Task[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The handler's result; a handler that was cancelled on purpose is an error of -5."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        raise RpcMethodError(RpcErrorCode.SHUTDOWN, "The node is shutting down") from None


def _encode(reply: dict[str, Any]) -> bytes:
    # ASCII, because a lone surrogate in a caller's own string cannot be written as UTF-8.
    return json.dumps({"jsonrpc": "2.0", **reply}, allow_nan=False).encode() + b"\n\n"


def _bind(path: Path) -> socket.socket:
    """A listening socket of mode 0600 at `path`, in a directory that only its owner may enter."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            "rpc-directory-open",
            f"Others may enter {path.parent}, where the node's socket belongs: chmod 700 it.",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_name(path) as name:
            if path.exists() or path.is_symlink():
                _remove_stale(path, name)
            listener.bind(name)
        path.chmod(0o600)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket address: through an open directory if need be."""
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_DIRECTORY | os.O_RDONLY)
    try:
        link = Path(f"/proc/self/fd/{directory}")
        if not link.exists():
            raise UserError(
                "rpc-path-too-long",
                f"{path} is too long for a socket: choose a shorter data directory.",
            )
        yield str(link / path.name)
    finally:
        os.close(directory)


def _remove_stale(path: Path, name: str) -> None:
    """Remove the socket of a process that is gone; refuse one that answers, or another file."""
    if not path.is_socket():
        raise UserError("rpc-path-taken", f"{path} is not a socket: move it out of the way.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise UserError("rpc-socket-in-use", f"Another node already answers on {path}: stop it first.")
