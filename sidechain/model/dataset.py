"""What models are trained and judged on: bytes, split into a part to learn and a part held out."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Final

HOLD_OUT: Final = 10
"""One byte in so many, at the end of the text, is never trained on."""


def python_documentation() -> bytes:
    """The help topics that every Python carries: about half a megabyte of English text.

    The text differs between versions of Python, and so does a model trained on it.
    """
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def split(text: bytes) -> tuple[bytes, bytes]:
    """(what may be trained on, what is held out)"""
    cut = len(text) - len(text) // HOLD_OUT
    return text[:cut], text[cut:]
