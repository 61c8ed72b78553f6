"""`oda` with the commands of this package alone: python -m tests.sidechain.oda node …"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from client import cli
from sidechain.commands import mount


def main(arguments: Sequence[str]) -> int:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(cli._root)
    mount(app)
    cli.build_app = lambda: app
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
