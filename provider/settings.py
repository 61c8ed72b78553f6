"""`[provider]` of the settings file, and what it is checked for."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

import msgspec
from yarl import URL

from channels import secret_file
from channels.errors import UserError
from channels.loopback import is_loopback
from channels.units import Msat
from torrent.magnet import Peer, check_url


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[provider]`.

    host, port: where HTTP is served; plain HTTP on loopback only, elsewhere `tls_cert` and
        `tls_key` (PEM files) are needed.
    rpc_file: the socket of the node that takes the payments, where it is another one than
        `lightning.rpc_file`.
    node: the embedded node that takes them, where neither is given.
    url: ours as the world knows it, where that is not the one that requests are sent to.
    model: what is served: a directory, an infohash or a magnet link; a small one of our own where
        it is not given. peers: "host:port" of who has it. name: what requests call it.
    input_msat, output_msat: the price of a token.
    tokens_per_second: the pace that is advertised; half of what may be at risk is one deposit.
    max_tokens: of an answer whose request doesn't say, and the most that one may ask for.
    capacity: answers at the same time.
    idle_timeout: seconds until an unused session is closed and refunded.
    topup_wait: seconds that a stream waits for a top-up.
    offer_lifetime: seconds in which an offer can be paid.
    engine_timeout: seconds without a token after which an answer has failed.
    offers_per_minute: unpaid requests answered with invoices, per address and (times 20) in all.
    refund_maxfee_msat: the most that routing one refund may cost us.
    chain: "host:port" of nodes of the sidechain, which say whose work is served and who is owed;
        without one nothing is passed on.
    follow: a model's id on the sidechain, whose newest confirmed version is served.
    trainer_ppm, producers_ppm: what is passed on, in millionths of what is spent.
    settle_seconds, settle_sat: shares are paid at the latest so long after the last time, or when
        one payee is owed so much. smallest_share_msat: less is carried over.
    upstream: base URLs (…/v1) of OpenAI-compatible servers whose models are served too; without
        `model` and `follow` they alone. upstream_models: only these; all where none is named.
    upstream_key_file: of an API key, which nobody else may read; else ODA_UPSTREAM_KEY is one.
    upstream_plain_http: http is allowed to other machines than this one.
    upstream_input_msat, upstream_output_msat: their price, where it is another.
    upstream_context: the context length of models whose server doesn't tell.
    upstream_capacity, upstream_queue: answers at the same time of one server, and how many may
        wait.
    public_dashboard: the dashboard is shown to others than this machine too.
    """

    host: str = "127.0.0.1"
    port: int = 8402
    tls_cert: Path | None = None
    tls_key: Path | None = None
    rpc_file: Path | None = None
    node: str = "provider"
    realm: str = "oda"
    url: str | None = None
    model: str | None = None
    peers: tuple[str, ...] = ()
    name: str | None = None
    input_msat: Msat = Msat(50)
    output_msat: Msat = Msat(250)
    tokens_per_second: int = 32
    default_max_tokens: int = 256
    max_tokens: int = 4096
    capacity: int = 8
    idle_timeout: int = 300
    topup_wait: int = 60
    offer_lifetime: int = 600
    engine_timeout: int = 60
    offers_per_minute: int = 60
    refund_maxfee_msat: Msat = Msat(1000)
    chain: tuple[str, ...] = ()
    follow: str | None = None
    trainer_ppm: int = 50_000
    producers_ppm: int = 10_000
    settle_seconds: int = 600
    settle_sat: int = 1000
    smallest_share_msat: int = 1000
    upstream: tuple[str, ...] = ()
    upstream_models: tuple[str, ...] = ()
    upstream_key_file: Path | None = None
    upstream_plain_http: bool = False
    upstream_input_msat: Msat | None = None
    upstream_output_msat: Msat | None = None
    upstream_context: int = 32_768
    upstream_capacity: int = 8
    upstream_queue: int = 16
    public_dashboard: bool = False

    def check(self) -> None:
        """Raises UserError for what can't be served."""
        least_one = ("capacity", "max_tokens", "default_max_tokens", "idle_timeout", "topup_wait")
        for name in (*least_one, "offer_lifetime", "engine_timeout", "offers_per_minute"):
            if getattr(self, name) < 1:
                raise UserError("bad-setting", f"provider.{name} must be at least 1.")
        if self.url is not None:
            check_url(self.url)
        self._check_upstreams()
        for peer in (*self.peers, *self.chain):
            Peer.parse(peer)
        if self.follow is not None and not re.fullmatch("[0-9a-f]{64}", self.follow):
            raise UserError("bad-setting", "provider.follow is a model's id: 64 hex digits.")
        if (
            self.trainer_ppm < 0
            or self.producers_ppm < 0
            or (self.trainer_ppm + self.producers_ppm > 1_000_000)
        ):
            raise UserError("bad-setting", "The shares must lie between nothing and the whole.")
        if self.settle_seconds < 1 or self.settle_sat < 1 or self.smallest_share_msat < 1:
            raise UserError("bad-setting", "What says when shares are paid must be at least 1.")
        if '"' in self.realm or "|" in self.realm or not self.realm.isprintable():
            raise UserError("bad-setting", 'provider.realm may have no " and no |.')
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError("bad-setting", "Set both provider.tls_cert and provider.tls_key.")
        if self.tls_cert is None and not is_loopback(self.host):
            raise UserError(
                "tls-needed",
                f"Serving on {self.host} needs provider.tls_cert and provider.tls_key: payments "
                "are not sent over plain HTTP except on loopback.",
            )

    def _check_upstreams(self) -> None:
        for text in self.upstream:
            check_url(text)
            url = URL(text)
            if url.user is not None or url.query_string or url.fragment:
                raise UserError(
                    "bad-setting",
                    "provider.upstream is a plain URL such as http://127.0.0.1:11434/v1; keys "
                    "belong into provider.upstream_key_file.",
                )
            if (
                url.scheme != "https"
                and not is_loopback(url.host or "")
                and not self.upstream_plain_http
            ):
                raise UserError(
                    "insecure-upstream",
                    f"Questions would go to {url.host} over plain HTTP; use https, or set "
                    "provider.upstream_plain_http.",
                )
        if min(self.upstream_context, self.upstream_capacity) < 1 or self.upstream_queue < 0:
            raise UserError("bad-setting", "The limits of provider.upstream must be at least 1.")


class Keys:
    """The provider's secrets, all derived from one that is drawn at first start (32 bytes, 0600).

    Losing it loses no money: what was paid is in the ledger and with the node.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root

    @classmethod
    def load(cls, path: Path) -> Keys:
        return cls(secret_file.load(path))

    @property
    def challenges(self) -> bytes:
        return hmac.digest(self._root, b"oda/challenges", "sha256")

    @property
    def l402(self) -> bytes:
        return hmac.digest(self._root, b"oda/l402", "sha256")

    @property
    def leaves(self) -> bytes:
        """What the salts of shares are derived from."""
        return hmac.digest(self._root, b"oda/leaves", "sha256")

    @property
    def announcements(self) -> bytes:
        """The key (BIP 340) that this provider is announced under on the sidechain."""
        return hmac.digest(self._root, b"oda/announcements", "sha256")

    def preimage(self, nonce: bytes) -> bytes:
        """Of an invoice: derived, so that it can be had again from its label."""
        return hmac.digest(self._root, b"oda/preimage" + nonce, "sha256")
