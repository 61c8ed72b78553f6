"""`[torrent]` of the settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from channels.errors import UserError
from channels.settings import Network, Settings, load_section
from torrent.library import Library
from torrent.magnet import check_url

MIB: Final = 1 << 20


class TorrentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """host, port: where peers reach us; port 0 means any free one.
    dht: find peers through the DHT; None means on all networks but regtest. trackers: announced
    to for every torrent, never on regtest.
    upload_mib, download_mib: limits in MiB/s, 0 means none.
    quota_mib: what the library may take of the disk; beyond it goes what nobody needs.
    stall_s: a fetch that gets nothing for so long gives up; what it has stays.
    """

    host: str = "127.0.0.1"
    port: int = 0
    dht: bool | None = None
    trackers: tuple[str, ...] = ()
    upload_mib: int = 0
    download_mib: int = 0
    quota_mib: int = 65536
    stall_s: float = 60.0


def load(settings: Settings, flags: dict[str, object] | None = None) -> TorrentSettings:
    """Raises UserError "bad-setting", "bad-url" and those of `load_section`."""
    found = load_section("torrent", TorrentSettings, flags)
    for url in found.trackers:
        check_url(url, ("http", "https", "udp"))
    least = min(found.upload_mib, found.download_mib, found.quota_mib)
    if least < 0 or not 0 <= found.port < 1 << 16 or found.stall_s <= 0:
        raise UserError("bad-setting", "No number in [torrent] may be negative.")
    if settings.network is Network.REGTEST:
        # Everything of regtest stays on this machine.
        return msgspec.structs.replace(found, host="127.0.0.1", dht=False, trackers=())
    return found


def library_dir(settings: Settings) -> Path:
    return settings.network_dir / "torrents"


def library(settings: Settings, found: TorrentSettings) -> Library:
    return Library(library_dir(settings), found.quota_mib * MIB)
