"""`oda`: one command line, to which every installed package adds its commands.

A package names a function `mount(app: typer.Typer) -> None` in the entry point group
`oda.commands`. What it imports at its top is paid for by every `oda` command, so torch, aiohttp and
the like are imported inside the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import typer

from channels.errors import UserError
from channels.settings import Network
from channels.terminal import ExitCode, report, report_reason, wants_json

EXTRAS: Final = {"torch": "provider", "numpy": "provider", "safetensors": "provider"}
"""Which extra brings a module that the base install does without."""


def build_app() -> typer.Typer:
    """The whole command line; a package that can't be imported leaves a command that says why."""
    app = typer.Typer(
        name="oda",
        help="Open Decentralized AI: inference that is paid for token by token over Lightning.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for entry in sorted(metadata.entry_points(group="oda.commands"), key=lambda entry: entry.name):
        try:
            mount = entry.load()
        except ImportError as error:
            _explain_later(app, entry.name, error)
        else:
            mount(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("oda"))
        raise typer.Exit


def _root(
    network: Annotated[
        Network | None, typer.Option(help="regtest (the default), signet or mainnet.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    config: Annotated[Path | None, typer.Option(help="The settings file.")] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    # A flag stands for its variable from here on, also in the programs that a command starts.
    for name, value in {"NETWORK": network, "DATA": data, "CONFIG": config}.items():
        if value is not None:
            os.environ[f"ODA_{name}"] = str(value)


def _explain_later(app: typer.Typer, name: str, error: ImportError) -> None:
    @app.command(
        name,
        help=f"Not available: {error}.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )
    def unavailable() -> None:
        raise error


def missing_module(error: ImportError) -> UserError:
    """One sentence for a module that is not installed: which one, and what brings it."""
    module = (error.name or "").partition(".")[0]
    if extra := EXTRAS.get(module):
        return UserError(
            "not-installed",
            f"This command needs {module}, which the base install leaves out; "
            f"install it with: pip install 'oda[{extra}]'",
        )
    return UserError("not-installed", f"This command can't be loaded: {error}; reinstall oda.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; every error becomes one sentence or document."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = wants_json(arguments)
    try:
        command = typer.main.get_command(build_app())
        result = command.main(list(arguments), prog_name="oda", standalone_mode=False)
        # Typer gives the code of `typer.Exit` (130 after Ctrl-C) as the result.
        if result == ExitCode.INTERRUPTED:
            return report(KeyboardInterrupt(), as_json)
        return result if isinstance(result, int) else ExitCode.OK
    except typer.Abort:
        return report(KeyboardInterrupt(), as_json)
    except typer.TyperException as error:
        # An empty message: the command got no arguments and its help was printed instead.
        message = error.format_message() or "Say what to do; --help lists it."
        return report_reason(ExitCode.USAGE, "usage", message, as_json)
    except ImportError as error:
        return report(missing_module(error), as_json)
    except BrokenPipeError:
        # Whoever read our output has left (`oda … | head`); nothing can be told to them any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001  (the last stop: every error becomes a sentence)
        return report(error, as_json)


if __name__ == "__main__":
    sys.exit(main())
