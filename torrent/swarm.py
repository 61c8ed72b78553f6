"""The swarm: models and data are published, fetched, kept and served to others.

    async with Swarm(library, options) as swarm:
        magnet = await swarm.publish(directory)
        path = await swarm.fetch(Magnet(infohash, peers))

A fetch returns, and a torrent counts as held, when all its files are right and on disk. Metadata
that breaks a rule of manifest.py is refused before anything of it is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from channels.errors import OdaError, RemoteProtocolError, UserError
from channels.settings import Network, Settings
from torrent import files, manifest, settings
from torrent.library import OWNER, Library, Status, disk_errors
from torrent.magnet import Magnet, Peer
from torrent.manifest import Manifest
from torrent.session import Options, Session
from torrent.settings import MIB, TorrentSettings
from torrent.torrent import Accept, Report, Torrent, take_any

STALL: Final = 60.0
STATUS_EVERY: Final = 1.0
LEAVING: Final = 10.0

MOST_PEERS: Final = 64
"""That are remembered of a torrent, the newest first: who asks for ever names ever new ones."""


def no_report(status: Status) -> None:
    """For those who don't want to see any progress."""


class Swarm:
    """Use it as an async context manager; several may share one library, in one process or many.

    trackers: announced to for each torrent, beside those of its magnet link. stall: a fetch that
    gets nothing for so many seconds gives up.
    """

    def __init__(
        self,
        library: Library,
        options: Options,
        *,
        trackers: Sequence[str] = (),
        stall: float = STALL,
    ) -> None:
        self.library = library
        self._options = options
        self._trackers = tuple(trackers)
        self._stall = stall
        self._torrents: dict[bytes, Torrent] = {}
        self._turns: dict[bytes, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, shared: Settings, found: TorrentSettings) -> Self:
        """As `[torrent]` of the settings file says, on the library of this data directory."""
        local = shared.network is Network.REGTEST
        host = f"[{found.host}]" if ":" in found.host else found.host
        options = Options(
            listen=f"{host}:{found.port}",
            local=local,
            dht=not local if found.dht is None else found.dht,
            upload_limit=found.upload_mib * MIB,
            download_limit=found.download_mib * MIB,
        )
        library = settings.library(shared, found)
        return cls(library, options, trackers=found.trackers, stall=found.stall_s)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._session = Session(self._options)
        try:
            host = self._options.listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
            self.address = Peer(host, await self._session.port())
            await asyncio.to_thread(self.library.tidy)
        except BaseException:
            await self._session.close()
            raise
        self._start(self._tell())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for infohash in list(self._torrents):
            await self._leave(infohash)
        await self._session.close()

    # --- giving ----------------------------------------------------------------------------------

    async def publish(
        self, directory: Path, *, pin: str = OWNER, report: files.Report = files.ignore
    ) -> Magnet:
        """Copy (or reflink) a directory into the library and seed it. pin: who needs it; it is not
        evicted until keep() says otherwise.

        The link names our address. Raises UserError as `files.describe` and `Library.reserve` do.
        """
        total = await asyncio.to_thread(files.total, directory)
        with self.library.incoming() as folder, disk_errors():
            await asyncio.to_thread(self.library.reserve, None, total, self._let_go)
            described = await asyncio.to_thread(
                files.describe, directory, copy_to=folder, report=report
            )
            found = described.manifest
            async with self._turn(found.infohash):
                await self._leave(found.infohash)
                torrent = self._claim(Magnet(found.infohash))
                entry = torrent.entry
                entry.record.pin(pin)
                if entry.untouched(found):
                    entry.save()
                else:
                    await asyncio.to_thread(files.remove, entry.data)
                    folder.rename(entry.data)
                    metainfo = manifest.metainfo(found, described.layers)
                    await asyncio.to_thread(entry.complete, found, metainfo)
                await torrent.seed()
        return Magnet(found.infohash, (self.address,))

    async def seed(self, infohash: bytes, *, pin: str | None = None) -> Path:
        """Serve a complete torrent of the library; pin: as of publish().

        Raises UserError "not-found", "not-complete" or "already-running".
        """
        self.library.entry(infohash)
        async with self._turn(infohash):
            torrent = self._claim(Magnet(infohash))
            if not await torrent.seed():
                await self._leave(infohash)
                raise UserError("not-complete", f"{infohash.hex()} is not complete; fetch it.")
            if pin is not None and pin not in torrent.entry.record.pins:
                torrent.entry.record.pin(pin)
                torrent.entry.save()
            return torrent.entry.data

    async def restore(self) -> list[bytes]:
        """Seed all complete torrents of the library, and go on fetching the others in the
        background. Returns their infohashes; what another process works on is left to it."""
        found = []
        for entry in await asyncio.to_thread(self.library.entries):
            infohash = entry.infohash
            if infohash in self._torrents or entry.is_claimed():
                continue
            if entry.record.complete:
                with suppress(UserError):
                    await self.seed(infohash)
            if infohash not in self._torrents and not entry.record.paused:
                self._start(self._fetch_quietly(entry.magnet()))
            found.append(infohash)
        return found

    # --- taking ----------------------------------------------------------------------------------

    async def fetch(
        self,
        magnet: Magnet,
        *,
        base: Path | None = None,
        wanted: Manifest | None = None,
        accept: Accept = take_any,
        pin: str | None = None,
        report: Report = no_report,
    ) -> Path:
        """The directory with the torrent's files, complete and on disk; it is seeded from then on.

        base: a directory with an earlier version, for what needs no fetching. wanted: what was
        announced; anything else is refused. accept: is shown the manifest before any file is
        fetched, and raises RemoteProtocolError to refuse it. pin: as of publish().

        Raises RemoteProtocolError with the reasons of `manifest.parse_info` and
        "manifest-mismatch", or what `accept` raises (nothing of it stays then); UserError
        "fetch-stalled", "disk-full", "disk-quota", "disk-error", "torrent-error",
        "already-running" (what was fetched stays).
        """
        async with self._turn(magnet.infohash):
            with disk_errors():
                torrent = self._claim(magnet)
                entry = torrent.entry
                if pin is not None:
                    entry.record.pin(pin)
                entry.record.paused = False
                entry.remember(torrent.hints)
                try:
                    await torrent.fetch(
                        reserve=lambda total: asyncio.to_thread(
                            self.library.reserve, entry, total, self._let_go
                        ),
                        known=await asyncio.to_thread(self.library.roots),
                        base=base,
                        wanted=wanted,
                        accept=accept,
                        report=report,
                    )
                except RemoteProtocolError:
                    self._torrents.pop(magnet.infohash)
                    await torrent.drop()
                    raise
                except BaseException as error:
                    # Whatever it was, what is on disk stays, and another try may go on.
                    torrent.error = str(error)
                    await self._leave(magnet.infohash)
                    raise
                entry.record.used = time.time()
                entry.save()
                report(torrent.status())
                return entry.data

    # --- keeping ---------------------------------------------------------------------------------

    async def keep(self, who: str, infohashes: Collection[bytes]) -> None:
        """From now on these are pinned for `who`, and nothing else is: what it pinned before may be
        evicted. What is not here, or is being fetched or in another program's hands, is left as it
        is. Raises UserError "disk-full" or "disk-error"."""
        for entry in await asyncio.to_thread(self.library.entries):
            needed = entry.infohash in infohashes
            if (who in entry.record.pins) == needed or self._turn(entry.infohash).locked():
                continue
            torrent = self._torrents.get(entry.infohash)
            try:
                mine = self.library.claim(entry.infohash) if torrent is None else torrent.entry
            except UserError as error:
                if error.reason != "already-running":
                    raise
                continue
            try:
                with disk_errors():
                    mine.record.pin(who, needed)
                    mine.save()
            finally:
                if torrent is None:
                    mine.release()

    async def pause(self, infohash: bytes) -> None:
        """Neither fetch nor serve it until `resume`, also after a restart."""
        torrent = self._active(infohash)
        torrent.entry.record.paused = True
        torrent.entry.save()
        await torrent.transfer.pause()

    def resume(self, infohash: bytes) -> None:
        torrent = self._active(infohash)
        torrent.entry.record.paused = False
        torrent.entry.save()
        torrent.transfer.resume()

    async def forget(self, infohash: bytes) -> None:
        """Delete a torrent; raises UserError "not-found" or "already-running"."""
        self.library.entry(infohash)
        async with self._turn(infohash):
            torrent = self._claim(Magnet(infohash))
            del self._torrents[infohash]
            await torrent.drop()

    def status(self, infohash: bytes) -> Status:
        """Raises UserError "not-found" for one that is not active here."""
        return self._active(infohash).status()

    def banned(self, infohash: bytes) -> list[str]:
        """Addresses that have sent wrong pieces of it, and are not spoken with any more."""
        return list(self._active(infohash).transfer.banned)

    # --- inside ----------------------------------------------------------------------------------

    def _active(self, infohash: bytes) -> Torrent:
        torrent = self._torrents.get(infohash)
        if torrent is None or not torrent.is_active:
            raise UserError("not-found", f"The torrent {infohash.hex()} is not active here.")
        return torrent

    def _turn(self, infohash: bytes) -> asyncio.Lock:
        """Who asks for a torrent that is being fetched waits until that is over."""
        return self._turns.setdefault(infohash, asyncio.Lock())

    def _claim(self, magnet: Magnet) -> Torrent:
        torrent = self._torrents.get(magnet.infohash)
        if torrent is None:
            entry = self.library.claim(magnet.infohash)
            known = entry.magnet()
            hints = Magnet(
                magnet.infohash,
                tuple(dict.fromkeys((*magnet.peers, *known.peers)))[:MOST_PEERS],
                tuple(dict.fromkeys((*magnet.trackers, *known.trackers, *self._trackers))),
                tuple(dict.fromkeys((*magnet.web_seeds, *known.web_seeds))),
            )
            torrent = Torrent(self._session, entry, hints, self._stall, self.address)
            self._torrents[magnet.infohash] = torrent
        return torrent

    async def _leave(self, infohash: bytes) -> None:
        torrent = self._torrents.pop(infohash, None)
        if torrent is not None:
            self._write_status(torrent)
            with suppress(OdaError, TimeoutError):  # it is left all the same
                async with asyncio.timeout(LEAVING):
                    await torrent.leave()

    def _let_go(self, infohash: bytes) -> bool:
        """Called in a thread by `Library.reserve`: whether we have given up one of ours."""
        torrent = self._torrents.get(infohash)
        if torrent is None or not torrent.entry.record.complete:
            return False
        asyncio.run_coroutine_threadsafe(self._leave(infohash), self._loop).result()
        return True

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch_quietly(self, magnet: Magnet) -> None:
        with suppress(OdaError):  # it is in the status, and tried again at the next start
            await self.fetch(magnet)

    async def _tell(self) -> None:
        """Write down for others what each torrent does, and that it is of use."""
        while True:
            for torrent in list(self._torrents.values()):
                self._write_status(torrent)
            await asyncio.sleep(STATUS_EVERY)

    def _write_status(self, torrent: Torrent) -> None:
        status = torrent.status()
        if status.upload_rate:
            torrent.entry.record.used = time.time()
        with suppress(OSError):  # for eyes alone: the disk may be full, or the torrent just gone
            torrent.entry.write("status.json", msgspec.json.encode(status), durable=False)
