"""What every `oda` command has in common: exit codes, `--json`, one sentence per error.

With `--json` a command prints exactly one JSON document on stdout, also when it fails:
`{"error": {"reason": …, "message": …}}`. What is meant for eyes goes to stderr then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import msgspec
import typer

from channels.errors import OdaError, RemoteProtocolError, UserError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
"""The type of a command's `as_json` parameter: `def balance(as_json: JsonFlag = False)`."""


class ExitCode(IntEnum):
    """Stable: scripts rely on them."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_ENOUGH_FUNDS = 3
    UNREACHABLE = 4
    """A provider, a node or bitcoind does not answer."""
    PAYMENT_FAILED = 5
    PAYMENT_UNKNOWN = 6
    """The payment may still happen. Never pay again before its outcome is known."""
    REFUSED = 7
    """The other side said no, or broke a rule."""
    NOT_FOUND = 8
    IN_USE = 9
    """It exists already, or somebody else is using it."""
    NOT_INSTALLED = 10
    INTERRUPTED = 130


EXIT_CODES: dict[str, ExitCode] = {
    "insufficient-funds": ExitCode.NOT_ENOUGH_FUNDS,
    "not-enough-funds": ExitCode.NOT_ENOUGH_FUNDS,
    "bitcoind-unreachable": ExitCode.UNREACHABLE,
    "bitcoind-starting": ExitCode.UNREACHABLE,
    "bitcoind-login": ExitCode.UNREACHABLE,
    "bitcoind-busy": ExitCode.UNREACHABLE,
    "bitcoind-failed": ExitCode.UNREACHABLE,
    "node-unreachable": ExitCode.UNREACHABLE,
    "lightning-unreachable": ExitCode.UNREACHABLE,
    "lightning-timeout": ExitCode.UNREACHABLE,
    "not-running": ExitCode.UNREACHABLE,
    "peer-unreachable": ExitCode.UNREACHABLE,
    "provider-unreachable": ExitCode.UNREACHABLE,
    "payment-failed": ExitCode.PAYMENT_FAILED,
    "payment-unknown": ExitCode.PAYMENT_UNKNOWN,
    "refused": ExitCode.REFUSED,
    "not-found": ExitCode.NOT_FOUND,
    "already-exists": ExitCode.IN_USE,
    "already-running": ExitCode.IN_USE,
    "port-in-use": ExitCode.IN_USE,
    "store-in-use": ExitCode.IN_USE,
    "not-installed": ExitCode.NOT_INSTALLED,
    "provisioning-failed": ExitCode.NOT_INSTALLED,
}
"""From the `reason` of an OdaError. Packages add theirs: `EXIT_CODES["no-route"] = …`."""


def exit_code(error: BaseException) -> ExitCode:
    """The code for an error: by its reason first, else by its type."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return ExitCode.INTERRUPTED
    if isinstance(error, OdaError) and error.reason in EXIT_CODES:
        return EXIT_CODES[error.reason]
    if isinstance(error, UserError):
        return ExitCode.USAGE
    if isinstance(error, RemoteProtocolError):
        return ExitCode.REFUSED
    return ExitCode.UNEXPECTED


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` is among the options; what follows a bare `--` is text."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def stdout() -> Console:
    """For results that a person reads."""
    from rich.console import Console  # here, because `oda` must start quickly

    return Console()


def stderr() -> Console:
    """For progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(document: object) -> None:
    """The one document of a command with `--json`. Paths become text, bytes become hex."""
    sys.stdout.write(msgspec.json.encode(document, enc_hook=_encode).decode() + "\n")
    sys.stdout.flush()


def _encode(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def report(error: BaseException, as_json: bool) -> ExitCode:
    """Tell about an error in one sentence (or one document) and give the exit code for it.

    A bug, which is any error that was not raised on purpose, shows its traceback with ODA_DEBUG=1.
    """
    code = exit_code(error)
    if isinstance(error, OdaError):
        reason, message = error.reason, str(error)
    elif code is ExitCode.INTERRUPTED:
        reason, message = "interrupted", "Interrupted."
    else:
        reason = "unexpected"
        message = (
            f"Unexpected {type(error).__name__}: {error}. This is a bug in oda; "
            "run it again with ODA_DEBUG=1 to see where."
        )
        if os.environ.get("ODA_DEBUG"):
            traceback.print_exception(error)
    return report_reason(code, reason, message, as_json)


def report_reason(code: ExitCode, reason: str, message: str, as_json: bool) -> ExitCode:
    if as_json:
        print_json({"error": {"reason": reason, "message": message}})
    else:
        sys.stderr.write(f"oda: {message}\n")
    return code


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it, and `oda` then exits with 130."""
    return asyncio.run(coroutine)


def stop_signals() -> asyncio.Event:
    """Set by SIGINT or SIGTERM, from now on: the usual end of what serves, and no error."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    return stop


class Progress(Protocol):
    def __call__(self, done: float, total: float | None = None, label: str | None = None) -> None:
        """`total` None: not known yet. `label` None: as before."""


def no_progress(done: float, total: float | None = None, label: str | None = None) -> None:
    """A `Progress` for those who don't want to see any."""


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A bar on stderr while the block runs; nothing at all where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task(label, total=None)

        def show(done: float, total: float | None = None, label: str | None = None) -> None:
            bars.update(task, completed=done, total=total, description=label)

        yield show
