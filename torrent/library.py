"""The torrents on this disk: one folder each, and what is known about them.

    <library>/<infohash>/oda/…       the files; nothing of a torrent is ever written elsewhere
                         record.json what we know; `complete` is written after all files are synced
                         info        the info dictionary, checked
                         torrent     metadata with all piece layers, once complete
                         resume      libtorrent's notes on an unfinished one
                         status.json what it does right now, for others to look at
                         lock        held by the process that works on it

Several processes may use one library: each torrent belongs to whoever holds its lock. All of it
blocks: call it in a thread where it touches more than a record.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from channels.errors import RemoteProtocolError, UserError
from torrent import files
from torrent.magnet import Magnet, Peer
from torrent.manifest import NAME, Manifest, parse_info, parse_metainfo

MARGIN: Final = 16 << 20
"""Of the disk stays free whatever we fetch."""

OWNER: Final = "owner"
"""Who pins what was asked for by hand."""

INCOMING: Final = ".incoming-"


class Record(msgspec.Struct, kw_only=True):
    """pins: who needs it, so that it is not evicted. stamps: size and mtime of each file when it
    was complete. used: UNIX time, for eviction."""

    complete: bool = False
    pins: list[str] = []
    paused: bool = False
    total: int = 0
    added: float = 0
    used: float = 0
    stamps: list[tuple[int, int]] = []
    peers: list[Peer] = []
    trackers: list[str] = []
    web_seeds: list[str] = []

    def pin(self, who: str, needed: bool = True) -> None:
        if who not in self.pins and needed:
            self.pins.append(who)
        elif who in self.pins and not needed:
            self.pins.remove(who)


class Status(msgspec.Struct, kw_only=True):
    """What is shown of a torrent. state: "fetching", "checking", "seeding", "paused", "stopped",
    "failed"; error: the sentence, if failed. Rates in bytes per second."""

    infohash: str
    state: str
    done: int = 0
    total: int = 0
    download_rate: int = 0
    upload_rate: int = 0
    downloaded: int = 0
    uploaded: int = 0
    peers: int = 0
    error: str = ""
    address: str = ""


class Entry:
    """One torrent's folder. Whoever writes holds the lock: `Library.claim` gives it."""

    def __init__(self, folder: Path, lock: int | None = None) -> None:
        self.folder = folder
        self.infohash = bytes.fromhex(folder.name)
        self._lock = lock
        self.record = self._read_record()

    @property
    def data(self) -> Path:
        return self.folder / NAME

    def resume(self) -> bytes | None:
        """libtorrent's notes on an unfinished fetch, if there are any."""
        try:
            return (self.folder / "resume").read_bytes()
        except FileNotFoundError:
            return None

    def forget_resume(self) -> None:
        (self.folder / "resume").unlink(missing_ok=True)

    @property
    def metainfo_file(self) -> Path:
        return self.folder / "torrent"

    def manifest(self) -> Manifest | None:
        """None as long as the metadata is not known."""
        try:
            data = (self.folder / "info").read_bytes()
        except FileNotFoundError:
            return None
        found = parse_info(data)
        return found if found.infohash == self.infohash else None

    def metainfo(self) -> tuple[Manifest, dict[bytes, bytes], bytes] | None:
        """Manifest, piece layers and the whole file; None unless it is complete."""
        if not self.record.complete:
            return None
        data = self.metainfo_file.read_bytes()
        manifest, layers = parse_metainfo(data)
        return (manifest, layers, data) if manifest.infohash == self.infohash else None

    def known_layers(self) -> dict[bytes, bytes]:
        """Piece layers from a time when it was complete."""
        try:
            return parse_metainfo(self.metainfo_file.read_bytes())[1]
        except (FileNotFoundError, RemoteProtocolError):
            return {}

    def untouched(self, manifest: Manifest) -> bool:
        """Whether the files are, by size and time, those that were once found complete."""
        found = files.stamps(self.data, manifest)
        return self.record.complete and found == self.record.stamps

    def magnet(self) -> Magnet:
        record = self.record
        return Magnet(
            self.infohash, tuple(record.peers), tuple(record.trackers), tuple(record.web_seeds)
        )

    def remember(self, magnet: Magnet) -> None:
        """Where it may be found, for the time after a restart."""
        self.record.peers = [Peer(*peer) for peer in magnet.peers]
        self.record.trackers = list(magnet.trackers)
        self.record.web_seeds = list(magnet.web_seeds)
        self.save()

    def save(self) -> None:
        files.write(self.folder / "record.json", msgspec.json.encode(self.record))

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        files.write(self.folder / name, data, durable=durable)

    def sync(self, manifest: Manifest) -> None:
        """Return when all files, the empty ones too, would survive a power cut."""
        for file in manifest.files:
            if not file.length:
                (self.data / file.path).parent.mkdir(parents=True, exist_ok=True)
                (self.data / file.path).touch()
        files.sync(self.data, manifest)

    def complete(self, manifest: Manifest, metainfo: bytes) -> None:
        """All files are there and right: first they are on disk, then it says so."""
        self.sync(manifest)
        self.write("torrent", metainfo)
        self.write("info", manifest.info)
        stamps = files.stamps(self.data, manifest)
        if stamps is None:
            raise UserError(
                "disk-error", f"A file in {self.data} is gone or cut off; fetch it again."
            )
        self.record.stamps = stamps
        self.record.total = manifest.total
        self.record.used = time.time()
        self.record.complete = True
        self.save()
        self.forget_resume()

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def delete(self) -> None:
        """For whoever holds the lock. A crash in the midst leaves an incomplete torrent."""
        self.record.complete = False
        self.save()
        files.remove(self.data)
        files.remove(self.folder)
        self.release()

    def is_claimed(self) -> bool:
        """Whether some process works on it."""
        if self._lock is not None:
            return True
        try:
            lock = _lock(self.folder / "lock")
        except FileNotFoundError:
            return False
        if lock is not None:
            os.close(lock)
        return lock is None

    def status(self) -> Status:
        """As its process last told, or from the record if there is none."""
        if self.is_claimed():
            try:
                return msgspec.json.decode((self.folder / "status.json").read_bytes(), type=Status)
            except (OSError, ValueError):
                pass  # not written yet
        record = self.record
        return Status(
            infohash=self.infohash.hex(),
            state="stopped",
            done=record.total if record.complete else 0,
            total=record.total,
        )

    def _read_record(self) -> Record:
        try:
            return msgspec.json.decode((self.folder / "record.json").read_bytes(), type=Record)
        except FileNotFoundError:
            return Record(added=time.time(), used=time.time())
        except ValueError:
            # Not ours, or a disk gone bad. Nothing is believed; the files are checked again.
            return Record(added=time.time(), used=time.time())


class Library:
    """Raises UserError "disk-full" when not even the folder can be made."""

    def __init__(self, root: Path, quota: int) -> None:
        self.root = root
        self._quota = quota
        with disk_errors():
            root.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        """All torrents, without their locks, in the order in which they came."""
        found = [
            Entry(folder)
            for folder in self.root.iterdir()
            if re.fullmatch("[0-9a-f]{64}", folder.name) and folder.is_dir()
        ]
        return sorted(found, key=lambda entry: (entry.record.added, entry.infohash))

    def entry(self, infohash: bytes) -> Entry:
        """To look at; raises UserError "not-found"."""
        folder = self.root / infohash.hex()
        if not folder.is_dir():
            raise UserError("not-found", f"There is no torrent {infohash.hex()} here; fetch it.")
        return Entry(folder)

    def is_complete(self, infohash: bytes) -> bool:
        folder = self.root / infohash.hex()
        return folder.is_dir() and Entry(folder).record.complete

    def claim(self, infohash: bytes) -> Entry:
        """The torrent's entry with its lock; raises UserError "already-running"."""
        folder = self.root / infohash.hex()
        while True:
            with disk_errors():
                folder.mkdir(exist_ok=True)
            try:
                lock = _lock(folder / "lock")
            except FileNotFoundError:
                continue  # it was being deleted
            if lock is None:
                raise UserError(
                    "already-running", f"Another program works on {infohash.hex()}; stop it first."
                )
            if (folder / "lock").exists():
                return Entry(folder, lock)
            os.close(lock)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for files whose infohash is not known yet; gone after the block."""
        folder = self.root / f"{INCOMING}{os.getpid()}-{time.monotonic_ns()}"
        with disk_errors():
            folder.mkdir()
        lock = _lock(folder / "lock")
        try:
            yield folder / NAME
        finally:
            files.remove(folder)
            if lock is not None:
                os.close(lock)

    def tidy(self) -> None:
        """Take away what a killed process left half copied."""
        for folder in self.root.glob(f"{INCOMING}*"):
            try:
                lock = _lock(folder / "lock")
            except FileNotFoundError:
                continue
            if lock is not None:
                files.remove(folder)
                os.close(lock)

    def used(self) -> int:
        return sum(entry.record.total for entry in self.entries())

    def reserve(
        self, entry: Entry | None, total: int, evict: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        """Make room for `total` bytes and write them down for `entry`, before any is fetched.

        What is not pinned goes first, the longest unused before others; never what another
        process works on. `evict` is asked for torrents that are claimed: it answers whether it
        has let go of one. Raises UserError "disk-quota" or "disk-full".
        """
        with _exclusive(self.root / "lock"):
            mine = entry.infohash if entry else b""
            others = [each for each in self.entries() if each.infohash != mine]
            excess = sum(each.record.total for each in others) + total - self._quota
            free = shutil.disk_usage(self.root).free
            present = _present(entry.data) if entry else 0
            excess = max(excess, total - present + MARGIN - free)
            for each in sorted(others, key=lambda each: each.record.used):
                if excess <= 0:
                    break
                if not each.record.pins and self._evict(each, evict):
                    excess -= each.record.total
            if excess > 0:
                if total - present + MARGIN > shutil.disk_usage(self.root).free:
                    raise disk_full()
                raise UserError(
                    "disk-quota",
                    f"{total} bytes don't fit into the library's {self._quota}; raise "
                    "torrent.quota_mib or let go of something (oda torrents --forget).",
                )
            if entry is not None:
                entry.record.total = total
                entry.save()

    def _evict(self, entry: Entry, let_go: Callable[[bytes], bool]) -> bool:
        if entry.is_claimed() and not let_go(entry.infohash):
            return False
        try:
            self.claim(entry.infohash).delete()
        except UserError:
            return False
        return True

    def roots(self) -> dict[bytes, Path]:
        """Files of complete torrents by pieces root; what they hold is to be checked by the user
        of this."""
        found: dict[bytes, Path] = {}
        for entry in self.entries():
            manifest = entry.manifest() if entry.record.complete else None
            for file in manifest.files if manifest else ():
                if file.length:
                    found[file.root] = entry.data / file.path
        return found


def _present(data: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in data.rglob("*") if path.is_file())


def _lock(path: Path) -> int | None:
    """A handle that holds the lock until it is closed or the process ends; None if it is taken."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_full() -> UserError:
    return UserError(
        "disk-full", "The disk is full; make room and try again, what is there is kept."
    )


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the system says about the disk into a sentence: "disk-full" or "disk-error"."""
    try:
        yield
    except OSError as error:
        raise disk_error(error.errno or 0, str(error)) from None


def disk_error(code: int, message: str) -> UserError:
    if code in FULL:
        return disk_full()
    return UserError("disk-error", f"The disk can't be used: {message[:300]}; see to it.")
