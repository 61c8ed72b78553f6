"""What a node tells its peers that it has, seen from a peer that only listens (BEP 3)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.torrent.nodes import node
from tests.torrent.samples import fill
from torrent import files
from torrent.magnet import Magnet, Peer

HAVE = 4
V2 = bytes(7) + b"\x10"  # BEP 52: the bit that says we know of v2


class Listener:
    """It shakes hands, and from then on asks for nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, peer: Peer, infohash: bytes) -> Listener:
        reader, writer = await asyncio.open_connection(peer.host, peer.port)
        writer.write(b"\x13BitTorrent protocol" + V2 + infohash[:20] + b"-TT0001-" + bytes(12))
        await reader.readexactly(68)
        return cls(reader, writer)

    async def have(self) -> int:
        """The next piece that it says HAVE of."""
        while True:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            message = await self._reader.readexactly(length)
            if message[:1] == bytes([HAVE]):
                return int.from_bytes(message[1:], "big")

    def close(self) -> None:
        self._writer.close()


@pytest.mark.parametrize("limit", [0, 16 << 20], ids=["at full speed", "limited"])
async def test_nothing_is_announced_before_it_is_written(tmp_path: Path, limit: int) -> None:
    # Two files: a torrent of one is begun anew when its metadata comes, and we would be left.
    source = fill(tmp_path / "source", {"c": 5, "w": 16 << 20})
    data = (source / "w").read_bytes()
    found = files.describe(source).manifest
    infohash, size = found.infohash, found.piece_length
    written = tmp_path / "b" / infohash.hex() / "oda" / "w"
    there: dict[int, bool] = {}
    async with node(tmp_path / "a") as a, node(tmp_path / "b", download_limit=limit) as b:
        fetching = asyncio.create_task(b.fetch(Magnet(infohash)))
        while infohash not in b._torrents or not b._torrents[infohash].is_active:
            await asyncio.wait({fetching}, timeout=0.01)
        listener = await Listener.dial(b.address, infohash)
        try:
            await a.publish(source)
            b._torrents[infohash].transfer.connect([a.address])
            while len(there) < -(-len(data) // size):
                piece = await listener.have() - 1  # the first is the file "c"
                if piece >= 0:
                    with written.open("rb") as file:
                        seen = os.pread(file.fileno(), size, piece * size)
                    there[piece] = seen == data[piece * size : (piece + 1) * size]
        finally:
            listener.close()
        await fetching
    assert all(there.values())
