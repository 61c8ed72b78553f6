"""The body of an HTTP answer from somebody who may send for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp


async def read_body(content: aiohttp.StreamReader, most: int) -> bytes:
    """Hardly more than `most` bytes of it: that it is longer shows, and it is no document then.

    Raises what the reader raises.
    """
    body = bytearray()
    async for data in content.iter_any():
        body += data
        if len(body) > most:
            break
    return bytes(body)
