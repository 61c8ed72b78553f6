"""Options of the programs that are a node: `oda node` and `oda train`."""

from __future__ import annotations

from typing import Annotated

import typer

ConnectOption = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST:PORT", help="A node to stay connected to; repeatable."),
]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one.")]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="How many mine.")]
EmptyAfterOption = Annotated[
    float | None, typer.Option(help="Seconds to an empty block; negative: none.")
]
PayToOption = Annotated[
    str | None,
    typer.Option(metavar="NODE", help="Answer payers with invoices of this Lightning node."),
]
EventsFlag = Annotated[
    bool, typer.Option("--json", help="Print each event as one JSON document per line.")
]
