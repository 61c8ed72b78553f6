"""libtorrent, made awaitable. The only module that imports it.

libtorrent has a thread of its own. It writes to a socket when it has something to tell, which wakes
the event loop; nothing here waits for it in any other way.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import libtorrent as lt

from channels.errors import OdaError, RemoteProtocolError, UserError
from torrent import bencode, library
from torrent.magnet import Peer
from torrent.manifest import LIMITS, NAME, Manifest

POLL: Final = 0.25
"""Seconds between two looks at a torrent about which nothing is told."""

DEFAULT_PRIORITY: Final = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """local: nothing but loopback, so no uTP (a tenth of TCP's speed there) and no encryption.
    Limits in bytes per second, 0 means none."""

    listen: str = "127.0.0.1:0"
    local: bool = True
    dht: bool = False
    upload_limit: int = 0
    download_limit: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def settings_pack(options: Options) -> dict[str, Any]:
    category = lt.alert.category_t
    plain = int(lt.enc_policy.pe_disabled if options.local else lt.enc_policy.pe_enabled)
    return {
        "listen_interfaces": options.listen,
        "user_agent": "oda",
        "enable_dht": options.dht,
        "enable_lsd": False,
        # While we hold back all files we look like a seed, and two seeds would part and meet again
        # only after seconds.
        "close_redundant_connections": False,
        "enable_upnp": not options.local,
        "enable_natpmp": not options.local,
        "enable_incoming_utp": not options.local,
        "enable_outgoing_utp": not options.local,
        "in_enc_policy": plain,
        "out_enc_policy": plain,
        # On one machine all peers have one address.
        "allow_multiple_connections_per_ip": options.local,
        "upload_rate_limit": options.upload_limit,
        "download_rate_limit": options.download_limit,
        "max_metadata_size": LIMITS.metadata,
        # Short queues: with long ones the last pieces wait behind slow peers (one to eight took
        # twice a single fetch, and 1.4 times so).
        "request_queue_time": 1,
        # Few at a time and 1 MiB asked of each: the peers of one that has the only copy soon have
        # something to give to each other (one to eight: 1.6 times a single fetch without it).
        "max_allowed_in_request_queue": 64,
        "unchoke_slots_limit": 4,
        # And quick turns, or four slow peers would keep all others waiting for half a minute.
        "unchoke_interval": 2,
        "seeding_piece_quota": 4,
        # A peer is tried again soon: the seeder of a fresh model may start after its fetchers.
        "min_reconnect_time": 2 if options.local else 15,
        "alert_queue_size": 20_000,
        "alert_mask": category.error_notification
        | category.status_notification
        | category.storage_notification
        | category.peer_notification,
        **options.extra,
    }


def session_params(options: Options) -> lt.session_params:
    params = lt.session_params()
    # The stub's typed dictionary has no room for `extra`.
    params.settings = cast("lt.settings_pack", settings_pack(options))
    # The only one that writes a piece before it says HAVE (BEP 3): docs/adr/0005.
    params.disk_io_constructor = "posix_disk_io_constructor"
    return params


@dataclass(frozen=True, kw_only=True)
class Adding:
    """What to start with. Either `metainfo` (a .torrent file, piece layers may be missing), or
    `resume` (libtorrent's own notes), or the infohash alone.

    trusted: the files were complete; each piece is hashed before its first upload all the same.
    single: known to have one file. hold: take no file before `Transfer.want` says so.
    """

    infohash: bytes
    folder: Path
    single: bool = False
    metainfo: bytes | None = None
    resume: bytes | None = None
    peers: Sequence[Peer] = ()
    trackers: Sequence[str] = ()
    web_seeds: Sequence[str] = ()
    trusted: bool = False
    hold: bool = False
    paused: bool = False


class Transfer:
    """One torrent in the session."""

    def __init__(self, session: Session, handle: lt.torrent_handle, infohash: bytes) -> None:
        self.infohash = infohash
        self.banned: list[str] = []
        self.bad_pieces = 0
        self._wanted = 0
        self._session = session
        self._handle = handle
        self._error: OdaError | None = None
        self._changed = asyncio.Event()
        self._waiting: dict[type, list[asyncio.Future[Any]]] = {}

    # --- what libtorrent tells -------------------------------------------------------------------

    def told(self, alert: Any) -> None:
        match alert:
            case lt.hash_failed_alert():
                self.bad_pieces += 1
            case lt.peer_ban_alert():
                self.banned.append("{}:{}".format(*alert.endpoint))
            case lt.file_error_alert():
                self.fail(library.disk_error(_errno(alert.error), alert.message()))
            case lt.torrent_error_alert():
                self.fail(UserError("torrent-error", f"libtorrent gave up: {alert.message()}."))
            case lt.metadata_failed_alert():
                pass  # the next peer may send the right one
            case lt.save_resume_data_failed_alert():
                self._resolve(lt.save_resume_data_alert, None)
        for kind in (
            lt.save_resume_data_alert,
            lt.cache_flushed_alert,
            lt.torrent_paused_alert,
            lt.torrent_removed_alert,
        ):
            if isinstance(alert, kind):
                self._resolve(kind, alert)
        self._changed.set()

    def fail(self, error: OdaError) -> None:
        self._error = self._error or error
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # whoever waits hears of it; if nobody does, no matter
        self._waiting.clear()
        self._changed.set()

    def _resolve(self, kind: type, result: object) -> None:
        for future in self._waiting.pop(kind, []):
            if not future.done():
                future.set_result(result)

    async def _expect(self, kind: type, start: Callable[[], object]) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(kind, []).append(future)
        start()
        return await future

    async def change(self) -> None:
        """Return when something was told, or after a short while; raises what went wrong."""
        if self._error is not None:
            raise self._error
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), POLL)
        except TimeoutError:
            return
        if self._error is not None:
            raise self._error

    # --- what it is asked ------------------------------------------------------------------------

    def info(self) -> bytes | None:
        """The info dictionary, once it is known."""
        found = self._handle.torrent_file()
        return found.info_section() if found is not None else None

    def check_layout(self, manifest: Manifest) -> None:
        """See to it that libtorrent would write the very files that the manifest names.

        Raises RemoteProtocolError "unsafe-path".
        """
        wanted = {file.path: file.length for file in manifest.files}
        if {path: length for _, path, length in self._files()} != wanted:
            raise RemoteProtocolError(
                "unsafe-path", "The torrent has names that are not what they seem; leave it."
            )

    def want(self, wanted: Callable[[str], bool]) -> None:
        """Fetch the files whose paths are wanted, and no others."""
        priorities = [0] * len(self._handle.get_file_priorities())
        self._wanted = 0
        for index, path, length in self._files():
            if wanted(path):
                priorities[index] = DEFAULT_PRIORITY
                self._wanted += length
        # Files of later additions would not be wanted otherwise.
        self._handle.unset_flags(lt.torrent_flags.default_dont_download)
        self._handle.prioritize_files(priorities)

    def _files(self) -> Iterable[tuple[int, str, int]]:
        found = self._handle.torrent_file()
        assert found is not None, "asked for before the metadata was there"
        layout = found.layout()
        for index in range(layout.num_files()):
            # libtorrent fills the gaps between files (BEP 52) with files of its own.
            if layout.file_flags(index) & lt.file_storage.flag_pad_file:
                continue
            path = layout.file_path(index).removeprefix(f"{NAME}/")
            yield index, path, layout.file_size(index)

    def status(self) -> lt.torrent_status:
        return self._handle.status()

    def is_done(self) -> bool:
        """Whether all that is wanted is there, checked."""
        status = self.status()
        states = lt.torrent_status
        return (
            status.state in (states.finished, states.seeding)
            # Until libtorrent has taken note of `want` it is done with less.
            and status.total_wanted == (self._wanted or status.total)
            and status.total_wanted_done == status.total_wanted
        )

    def is_checking(self) -> bool:
        states = lt.torrent_status
        return self.status().state in (states.checking_files, states.checking_resume_data)

    def is_downloading(self) -> bool:
        return self.status().state == lt.torrent_status.downloading

    def redial(self) -> None:
        """Dial the known peers now; libtorrent looks for somebody to dial but once a second,
        except when a torrent is started. Only for a torrent that has no peers."""
        self._handle.pause()
        self._handle.resume()

    def connect(self, peers: Iterable[Peer]) -> None:
        for peer in peers:
            self._handle.connect_peer((peer.host, peer.port))

    async def flush(self) -> None:
        """Return when all that was received is written."""
        await self._expect(lt.cache_flushed_alert, self._handle.flush_cache)

    async def resume_data(self, *, flush: bool = True) -> bytes | None:
        """libtorrent's notes: metadata, Merkle trees, and which pieces are written."""
        flags = lt.torrent_handle.save_info_dict
        if flush:
            flags |= lt.torrent_handle.flush_disk_cache
        alert = await self._expect(
            lt.save_resume_data_alert, lambda: self._handle.save_resume_data(flags)
        )
        return None if alert is None else lt.write_resume_data_buf(alert.params)

    async def trees(self) -> list[bytes]:
        """For each file, the hashes that libtorrent keeps of it: of a whole file, all leaves."""
        data = await self.resume_data(flush=False)
        entries = bencode.decode(data) if data else None
        trees = entries.get(b"trees") if isinstance(entries, dict) else None
        found = []
        for tree in trees if isinstance(trees, list) else ():
            hashes = tree.get(b"hashes") if isinstance(tree, dict) else None
            found.append(hashes if isinstance(hashes, bytes) else b"")
        return found

    async def pause(self) -> None:
        if not self.status().flags & lt.torrent_flags.paused:
            await self._expect(lt.torrent_paused_alert, self._handle.pause)

    def resume(self) -> None:
        self._handle.resume()

    async def remove(self) -> None:
        """Return when libtorrent has closed its files."""
        await self._session.remove(self)

    async def removed(self, start: Callable[[], object]) -> None:
        self._error = None
        await self._expect(lt.torrent_removed_alert, start)


def _errno(error: lt.error_code) -> int:
    return error.value() if error.category().name() in ("system", "generic") else 0


class Session:
    """Open within a running event loop; close with `close`."""

    def __init__(self, options: Options) -> None:
        self._transfers: dict[lt.torrent_handle, Transfer] = {}
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._ours, self._read)
        self._session = lt.session(session_params(options))
        self._limit_everybody()
        self._session.set_alert_fd(self._theirs.fileno())
        self._read()

    async def port(self) -> int:
        """Where peers connect to; raises UserError "port-in-use"."""
        return await asyncio.shield(self._listening)

    async def add(self, adding: Adding) -> Transfer:
        """Raises UserError "torrent-error" if libtorrent will not have it."""
        try:
            handle = self._session.add_torrent(_params(adding))
        except RuntimeError as error:
            raise UserError("torrent-error", f"libtorrent refuses the torrent: {error}.") from None
        if adding.resume is not None:
            handle.force_recheck()
        transfer = Transfer(self, handle, adding.infohash)
        self._transfers[handle] = transfer
        return transfer

    async def remove(self, transfer: Transfer) -> None:
        handle = transfer._handle
        await transfer.removed(lambda: self._session.remove_torrent(handle))
        self._transfers.pop(handle, None)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        session = self._session
        del self._session
        session.set_alert_fd(-1)
        # Its destructor waits for trackers to hear that we leave.
        await asyncio.to_thread(session.pause)
        del session
        self._ours.close()
        self._theirs.close()

    def _limit_everybody(self) -> None:
        """libtorrent would exempt the local network, loopback too, from all rate limits."""
        everybody = lt.ip_filter()
        ours = 1 << self._session.global_peer_class_id
        everybody.add_rule("0.0.0.0", "255.255.255.255", ours)  # noqa: S104 # a range, no binding
        everybody.add_rule("::", "ffff:" * 7 + "ffff", ours)
        self._session.set_peer_class_filter(everybody)

    def _read(self) -> None:
        try:
            while self._ours.recv(4096):
                pass
        except BlockingIOError:
            pass
        for alert in self._session.pop_alerts():
            if isinstance(alert, lt.torrent_alert):
                transfer = self._transfers.get(alert.handle)
                if transfer is not None:
                    transfer.told(alert)
            elif not self._listening.done():
                self._hear_listening(alert)

    def _hear_listening(self, alert: Any) -> None:
        if isinstance(alert, lt.listen_succeeded_alert):
            self._listening.set_result(alert.port)
        elif isinstance(alert, lt.listen_failed_alert):
            self._listening.set_exception(
                UserError("port-in-use", f"Peers can't reach us: {alert.message()}.")
            )
            self._listening.exception()


def _params(adding: Adding) -> lt.add_torrent_params:
    if adding.resume is not None:
        params = lt.read_resume_data(adding.resume)
        # The notes may be newer than the disk: which pieces are there is found by hashing them.
        params.have_pieces = []
        params.verified_pieces = []
        params.unfinished_pieces = {}
    elif adding.metainfo is not None:
        params = lt.load_torrent_buffer(adding.metainfo)
    else:
        params = lt.parse_magnet_uri(f"magnet:?xt=urn:btmh:1220{adding.infohash.hex()}")
    # A torrent of one file has no folder of its own in libtorrent; in ours it has.
    params.save_path = str(adding.folder / NAME if adding.single else adding.folder)
    params.peers = [(peer.host, peer.port) for peer in adding.peers]
    params.trackers = list(adding.trackers)
    params.url_seeds = list(adding.web_seeds)
    flags = lt.torrent_flags
    params.flags &= ~(flags.auto_managed | flags.paused | flags.seed_mode)
    for wanted, flag in (
        (adding.trusted, flags.seed_mode),
        (adding.hold, flags.default_dont_download),
        (adding.paused, flags.paused),
    ):
        if wanted:
            params.flags |= flag
    return params
