"""`oda` with the commands of this package alone: python -m tests.torrent.oda seed DIR …"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from client import cli
from torrent.commands import mount


def main(arguments: Sequence[str]) -> int:
    app = typer.Typer(pretty_exceptions_enable=False)
    mount(app)
    cli.build_app = lambda: app
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
