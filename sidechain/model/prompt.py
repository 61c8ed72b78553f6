"""The text that a conversation becomes for a model that knows paragraphs and no roles."""

from __future__ import annotations

from collections.abc import Iterable


def render_chat(messages: Iterable[str]) -> bytes:
    """Messages as paragraphs; the answer is what would follow them."""
    return "".join(f"{message}\n\n" for message in messages).encode()
