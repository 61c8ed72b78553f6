"""`[sidechain]` of the settings file, and where a node keeps what it has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from channels import secret_file
from channels.errors import UserError
from channels.loopback import is_loopback
from channels.settings import Network, Settings, load_section
from sidechain.primitives import x_only
from torrent.magnet import Peer

PORT: Final = 8403
EMPTY_AFTER: Final = 5.0


class SidechainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """host, port: where peers, the API and the pages are served; port 0 means any free one.
    connect: nodes ("host:port") that are always connected to. node: the URL of the node that
    commands speak with.
    processes: how many mine; 0 means one per core. empty_after: seconds without a block after
    which one without transactions is mined; 0 means always, a negative number never. Left out, it
    is EMPTY_AFTER on regtest, so that what waits for blocks goes on, and 0 elsewhere. pause:
    seconds of rest after a block.
    verify_all: score also what lies so deep that its work could be trusted.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    connect: tuple[str, ...] = ()
    node: str = f"http://127.0.0.1:{PORT}"
    processes: int = 0
    empty_after: float | None = None
    pause: float = 0.0
    verify_all: bool = False


def load(settings: Settings, flags: dict[str, object] | None = None) -> SidechainSettings:
    """Raises UserError "bad-setting", "bad-peer" and those of `load_section`."""
    found = load_section("sidechain", SidechainSettings, flags)
    if not 0 <= found.port < 1 << 16 or found.processes < 0 or found.pause < 0:
        raise UserError("bad-setting", "No number in [sidechain] may be negative.")
    for text in found.connect:
        Peer.parse(text)
    local = settings.network is Network.REGTEST
    if local and not is_loopback(found.host):
        raise UserError(
            "bad-setting", "On regtest sidechain.host stays on this machine: 127.0.0.1."
        )
    if found.empty_after is None:
        after = EMPTY_AFTER if local else 0.0
        return msgspec.structs.replace(found, empty_after=after)
    return found


def directory(settings: Settings) -> Path:
    return settings.network_dir / "sidechain"


def chain_file(settings: Settings) -> Path:
    return directory(settings) / "chain.sqlite"


def headers_file(settings: Settings) -> Path:
    """Of a light node, which keeps nothing else."""
    return directory(settings) / "headers.sqlite"


class Key:
    """Who this person is on the chain, as trainer and producer."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.public = x_only(secret)
        """x-only (BIP 340)"""

    @classmethod
    def load(cls, settings: Settings) -> Key:
        """From `<data>/<network>/sidechain/key`, where it is drawn at first use."""
        return cls(secret_file.load(directory(settings) / "key"))
