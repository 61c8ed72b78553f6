"""An answer on a terminal: text as it comes, and under it one line that says what it costs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from channels.terminal import stderr, stdout
from client.answer import Cost, Done, Event, Interrupted, Text, TopUp
from client.failover import Switched

if TYPE_CHECKING:
    from rich.live import Live


class Display:
    """With `as_json` nothing is shown; `document` has all of it at the end.

    Where stdout is no terminal, it gets the bare text, and stderr the summary.
    """

    def __init__(self, as_json: bool) -> None:
        self.cost: Cost | None = None
        self._as_json = as_json
        self._pieces: list[str] = []
        self._line = ""
        self._note = ""
        self._reason = "interrupted"
        self._interruptions = 0
        self._switched: list[dict[str, str]] = []
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if not self._as_json and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(console=stdout(), refresh_per_second=12)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif not self._as_json and self._pieces:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if self.cost is not None and not self._as_json and self._live is None:
            stderr().print(summary(self.cost), highlight=False)

    def show(self, event: Event | Switched) -> None:
        match event:
            case Text(text):
                self._pieces.append(text)
                self._write(text)
            case Cost():
                self.cost = event
            case TopUp(amount, number):
                self._note = f" · top-up {number}: {amount // 1000} sat"
            case Interrupted():
                self._interruptions += 1
                self._note = " · connection lost, resuming"
            case Switched(url, reason):
                self._switched.append({"url": url, "reason": reason})
                self._pieces.clear()
                self._write(f"\n— {reason}; asking {url} —\n")
            case Done(reason, cost):
                self._reason, self.cost, self._note = reason, cost, ""
        self._refresh()

    def left(self) -> None:
        """Ctrl-C: the paying has stopped."""
        if self.cost is None or self._as_json:
            return
        stderr().print(
            f"Stopped; nothing more is paid. Of what was paid, {sat_text(self.cost.left_msat)} sat "
            "are left in the session: ask again, or get them back with: oda close",
            highlight=False,
        )

    def document(self, finished: bool) -> dict[str, Any]:
        return {
            "text": "".join(self._pieces),
            "finish_reason": self._reason if finished else "interrupted",
            "interruptions": self._interruptions,
            "switched": self._switched,
            "cost": self.cost,
        }

    def _write(self, text: str) -> None:
        if self._as_json:
            return
        if self._live is None:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
            return
        from rich.text import Text as Line

        # Whole lines go above the live region, which holds the unfinished one and the figures.
        *whole, self._line = (self._line + printable(text)).split("\n")
        if whole:
            # Printing draws the live region anew, which must not hold the finished line any more.
            self._refresh()
        for line in whole:
            self._live.console.print(Line(line))

    def _refresh(self) -> None:
        if self._live is None:
            return
        from rich.console import Group
        from rich.text import Text as Line

        status = Line(summary(self.cost) + self._note if self.cost else "…", style="dim")
        self._live.update(Group(Line(self._line), status))


def summary(cost: Cost) -> str:
    spent, left = sat_text(cost.spent_msat), sat_text(cost.left_msat)
    return (
        f"{cost.input_tokens} + {cost.output_tokens} tokens · {spent} sat spent · {left} left · "
        f"{cost.topups} top-ups"
    )


def printable(text: str) -> str:
    """What a stranger's model wrote can't move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def sat_text(amount: int) -> str:
    """Millisatoshis as satoshis: 1234 is "1.234"."""
    return f"{amount // 1000}.{amount % 1000:03}"
