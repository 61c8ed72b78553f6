"""What the gateway does, on a terminal: a line for each request, and one that lives below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.terminal import print_json, stderr
from client.display import printable, sat_text
from client.gateway.figures import Figures, Record

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from client.gateway.pool import Pool


class Display:
    """With `as_json` each request is one JSON document on stdout, and nothing else is shown."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = stderr()
        self._live: Live | None = None
        self.figures = Figures(self._ended)

    def started(self, url: str, token_file: str | None, pool: Pool) -> None:
        if self._as_json:
            print_json({"url": url, "token_file": token_file})
            return
        self._console.print(f"Programs ask at {url} (Ctrl-C stops it):", highlight=False)
        self._console.print(f"  export OPENAI_BASE_URL={url}", highlight=False, soft_wrap=True)
        key = "any-text" if token_file is None else f'"$(cat {token_file})"'
        self._console.print(f"  export OPENAI_API_KEY={key}", highlight=False, soft_wrap=True)
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(
                get_renderable=lambda: self._line(pool),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._live is not None:
            self._live.stop()

    def _ended(self, record: Record) -> None:
        if self._as_json:
            print_json(record)
        else:
            self._console.print(summary(record), highlight=False, markup=False)

    def _line(self, pool: Pool) -> Text:
        from rich.text import Text

        return Text(status(self.figures, pool.at_risk), style="dim")


def summary(record: Record) -> str:
    trouble = f" · {record.reason}" if record.reason else ""
    return (
        f"{record.status} {record.path} {printable(record.model)} · {record.input_tokens} + "
        f"{record.output_tokens} tokens · {sat_text(record.spent_msat)} sat · "
        f"{record.seconds:.1f} s{trouble}"
    )


def status(figures: Figures, at_risk: int) -> str:
    return (
        f"{figures.requests} requests, {figures.running} running, {figures.failed} failed · "
        f"{figures.tokens_per_second:.1f} tokens/s · {sat_text(figures.spent)} sat spent · "
        f"{sat_text(at_risk)} sat at risk"
    )
