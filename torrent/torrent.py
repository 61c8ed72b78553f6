"""One torrent of ours: how it is found, fetched, checked, finished and seeded."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from channels.errors import RemoteProtocolError, UserError
from torrent import files, manifest, update
from torrent.library import Entry, Status
from torrent.magnet import Magnet, Peer
from torrent.manifest import Manifest
from torrent.session import Adding, Session, Transfer

T = TypeVar("T")

NOTES_EVERY: Final = 5.0
"""Seconds between libtorrent's notes on an unfinished fetch. Without them a kill costs the pieces
of a file whose piece layer was not noted yet; with them it costs nothing that was written."""

RECONNECT: Final = 2.0

Report = Callable[[Status], None]
Reserve = Callable[[int], Awaitable[None]]
"""Make room for so many bytes; raises UserError if there is none."""
Accept = Callable[[Manifest], None]
"""Raises RemoteProtocolError for a manifest whose files are not to be fetched."""


def take_any(found: Manifest) -> None:
    """An `Accept` that refuses nothing."""


class Torrent:
    """entry: claimed, its folder is ours alone. hints: where others may be found."""

    def __init__(
        self, session: Session, entry: Entry, hints: Magnet, stall: float, address: Peer
    ) -> None:
        self.entry = entry
        self.hints = hints
        self.error = ""
        self._session = session
        self._stall = stall
        self._address = address
        self._transfer: Transfer | None = None
        self._layers: dict[bytes, bytes] = {}

    @property
    def transfer(self) -> Transfer:
        assert self._transfer is not None, "asked of a torrent that is in no session"
        return self._transfer

    @property
    def is_active(self) -> bool:
        return self._transfer is not None

    async def leave(self) -> None:
        """Let libtorrent go of the files, and others have the folder."""
        try:
            if self._transfer is not None:
                transfer, self._transfer = self._transfer, None
                await transfer.remove()
        finally:
            self.entry.release()

    async def drop(self) -> None:
        """Take away all that is there of it."""
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            await transfer.remove()
        await asyncio.to_thread(self.entry.delete)

    # --- seeding ---------------------------------------------------------------------------------

    async def seed(self) -> bool:
        """False if it is not complete, or not any more; then it is to be fetched."""
        if self._transfer is not None:
            return self.entry.record.complete
        known = await asyncio.to_thread(self.entry.metainfo)
        if known is None:
            return False
        found, _, metainfo = known
        trusted = await asyncio.to_thread(self.entry.untouched, found)
        await self._add(found, metainfo=metainfo, trusted=trusted)
        if trusted:
            return True
        # Somebody has written to it: nothing is believed before it is hashed.
        self.entry.record.complete = False
        self.entry.save()
        await self._checked()
        if not self.transfer.is_done():
            await asyncio.to_thread(self.entry.write, "info", found.info)
            return False
        await asyncio.to_thread(self.entry.complete, found, metainfo)
        if self.entry.record.paused:
            await self.transfer.pause()
        return True

    # --- fetching --------------------------------------------------------------------------------

    async def fetch(
        self,
        *,
        reserve: Reserve,
        known: update.Roots,
        base: Path | None,
        wanted: Manifest | None,
        accept: Accept,
        report: Report,
    ) -> None:
        """Return when all is there, right and on disk. See `Swarm.fetch`."""
        if await self.seed():
            have = self.entry.manifest()
            if wanted is not None and have is not None:
                manifest.require_same(wanted, have)
            return
        found = await self._metadata(wanted, accept, reserve)
        if await asyncio.to_thread(update.copy_known, self.entry, found, known, base):
            await self._again(found)
        await self._rebuild(found, known, base, report)
        self.transfer.want(lambda path: True)
        await self._until_done(report)
        await self._finish(found)

    async def _metadata(
        self, wanted: Manifest | None, accept: Accept, reserve: Reserve
    ) -> Manifest:
        """The checked manifest; from here on there is a transfer that takes no file yet."""
        found = await asyncio.to_thread(self.entry.manifest)
        if found is None and self.hints.web_seeds:
            found = await self._metadata_over_http()
        if found is None:
            if self._transfer is None:
                await self._add(None, hold=True)
            seen = await self._patiently(self.transfer.info)
            found = manifest.parse_info(seen)
            if found.infohash != self.entry.infohash:
                raise RemoteProtocolError(
                    "wrong-infohash", "The metadata is another torrent's than was asked for."
                )
            self.transfer.check_layout(found)
        if wanted is not None:
            manifest.require_same(wanted, found)
        accept(found)
        await reserve(found.total)
        await asyncio.to_thread(self.entry.write, "info", found.info)
        # libtorrent has learnt only now that there is one file, which needs another folder.
        if self._transfer is None or len(found.files) == 1:
            await self._again(found)
        return found

    async def _metadata_over_http(self) -> Manifest | None:
        from torrent import webseed  # here, because aiohttp is slow to import

        answer = await webseed.fetch_metainfo(self.hints.web_seeds, self.entry.infohash)
        if answer is None:
            return None
        found, self._layers = answer
        return found

    async def _rebuild(
        self, found: Manifest, known: update.Roots, base: Path | None, report: Report
    ) -> None:
        """Fetch the delta alone and make the weights from earlier ones, where both are there."""
        earlier = await asyncio.to_thread(update.candidates, self.entry, found, known, base)
        if not earlier:
            return
        self.transfer.want(lambda path: path != manifest.WEIGHTS)
        await self._until_done(report)
        await self.transfer.flush()
        if await asyncio.to_thread(update.rebuild, self.entry, found, earlier):
            await self._again(found)

    async def _finish(self, found: Manifest) -> None:
        await self.transfer.flush()
        await asyncio.to_thread(files.check_model, self.entry.data, found)
        trees = await self.transfer.trees()
        layers = await asyncio.to_thread(update.finished_layers, self.entry, found, trees)
        metainfo = manifest.metainfo(found, layers)
        await asyncio.to_thread(self.entry.complete, found, metainfo)

    async def _again(self, found: Manifest) -> None:
        """Add it anew, with the piece layers of what is on disk; libtorrent checks the files."""
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            await transfer.remove()
        resume = await asyncio.to_thread(self.entry.resume)
        layers = self._layers | await asyncio.to_thread(self.entry.known_layers)
        layers |= await asyncio.to_thread(update.layers, self.entry, found)
        if resume is not None and not layers:
            with suppress(UserError):  # notes that can't be read are no loss
                await self._add(found, resume=resume, hold=True)
        if self._transfer is None:
            await self._add(found, metainfo=manifest.metainfo(found, layers), hold=True)
        await self._checked()

    async def _add(
        self,
        found: Manifest | None,
        *,
        metainfo: bytes | None = None,
        resume: bytes | None = None,
        trusted: bool = False,
        hold: bool = False,
    ) -> None:
        hints = self.hints
        self._transfer = await self._session.add(
            Adding(
                infohash=self.entry.infohash,
                folder=self.entry.folder,
                single=found is not None and len(found.files) == 1,
                metainfo=metainfo,
                resume=resume,
                # Named here they are dialed at once, not at libtorrent's next tick.
                peers=await resolved(hints.peers),
                trackers=hints.trackers,
                web_seeds=hints.web_seeds,
                trusted=trusted,
                hold=hold,
                # libtorrent hashes nothing of what is paused.
                paused=self.entry.record.paused and trusted,
            )
        )

    # --- waiting ---------------------------------------------------------------------------------

    async def _checked(self) -> None:
        """Return when libtorrent has hashed what it found on disk."""
        while self.transfer.is_checking():
            await self.transfer.change()

    async def _until_done(self, report: Report) -> None:
        transfer = self.transfer
        began, due = time.monotonic(), 0.0

        def look() -> bool | None:
            report(self.status())
            return transfer.is_done() or None

        async def note() -> None:
            nonlocal due
            started = time.monotonic()
            # The first as soon as there is a piece: its file's piece layer is known then.
            if started > due and transfer.status().total_done:
                data = await transfer.resume_data()
                if data is not None:
                    await asyncio.to_thread(self.entry.write, "resume", data)
                # Of a huge torrent the notes are long: they take a twentieth of the time at most.
                ended = time.monotonic()
                due = ended + max(min(NOTES_EVERY, ended - began), 20 * (ended - started))

        await self._patiently(look, note)

    async def _patiently(
        self, look: Callable[[], T | None], meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Wait until `look` sees something; raises UserError "fetch-stalled" if nothing comes."""
        transfer = self.transfer
        received, since = -1, time.monotonic()
        dialed, eager = since, True
        while (seen := look()) is None:
            await transfer.change()
            now = time.monotonic()
            status = transfer.status()
            if status.total_download != received or self.entry.record.paused:
                received, since = status.total_download, now
            if not status.num_peers and self.hints.peers:
                if eager and transfer.is_downloading():
                    eager = False
                    transfer.redial()
                elif now - dialed > RECONNECT:
                    dialed = now
                    transfer.connect(await resolved(self.hints.peers))
            if now - since > self._stall:
                raise UserError(
                    "fetch-stalled",
                    f"Nobody has sent anything of {self.entry.infohash.hex()} for "
                    f"{self._stall:g} s; name a peer that has it, or try again later.",
                )
            if meanwhile is not None:
                await meanwhile()
        return seen

    def status(self) -> Status:
        record = self.entry.record
        status = self._transfer.status() if self._transfer is not None else None
        if self.error:
            state = "failed"
        elif record.paused:
            state = "paused"
        elif status is None:
            state = "stopped"
        elif self.transfer.is_checking():
            state = "checking"
        else:
            state = "seeding" if record.complete else "fetching"
        shown = Status(
            infohash=self.entry.infohash.hex(),
            state=state,
            done=record.total if record.complete else 0,
            total=record.total,
            error=self.error,
            address=str(self._address),
        )
        if status is not None:
            if not record.complete:
                shown.done = min(status.total_done, record.total)
            shown.download_rate = status.download_payload_rate
            shown.upload_rate = status.upload_payload_rate
            shown.downloaded = status.total_payload_download
            shown.uploaded = status.total_payload_upload
            shown.peers = status.num_peers
        return shown


async def resolved(peers: Iterable[Peer]) -> Sequence[Peer]:
    """Addresses of peers; who has no address now may have one at the next try."""
    loop = asyncio.get_running_loop()
    found = []
    for peer in peers:
        with suppress(OSError):
            answers = await loop.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
            found += [Peer(str(address[0]), peer.port) for *_, address in answers]
    return list(dict.fromkeys(found))
