from __future__ import annotations

import libtorrent as lt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from torrent.magnet import Magnet, Peer

HASH = bytes(range(32))
XT = f"xt=urn:btmh:1220{HASH.hex()}"


def test_written_as_the_standard_says() -> None:
    assert str(Magnet(HASH)) == f"magnet:?{XT}"
    full = Magnet(
        HASH,
        (Peer("127.0.0.1", 6881), Peer("::1", 1)),
        ("http://t.example/announce?a=1&b=2",),
        ("http://w.example/seed/",),
    )
    assert str(full) == (
        f"magnet:?{XT}&x.pe=127.0.0.1:6881&x.pe=[::1]:1"
        "&tr=http%3A%2F%2Ft.example%2Fannounce%3Fa%3D1%26b%3D2"
        "&ws=http%3A%2F%2Fw.example%2Fseed%2F"
    )
    assert Magnet.parse(str(full)) == full
    theirs = lt.parse_magnet_uri(str(full))
    assert theirs.info_hashes.v2.to_bytes() == HASH
    assert theirs.trackers == list(full.trackers)
    assert theirs.url_seeds == list(full.web_seeds)


@given(
    st.binary(min_size=32, max_size=32),
    st.lists(
        st.builds(Peer, st.from_regex("[a-z]{1,9}", fullmatch=True), st.integers(1, 65535)),
        unique=True,
        max_size=3,
    ),
)
def test_round_trip(infohash: bytes, peers: list[Peer]) -> None:
    magnet = Magnet(infohash, tuple(peers))
    assert Magnet.parse(str(magnet)) == magnet


def test_an_infohash_alone_and_links_of_others() -> None:
    assert Magnet.parse(HASH.hex().upper()) == Magnet(HASH)
    hybrid = f"magnet:?xt=urn:btih:{'a' * 40}&dn=some+name&{XT}&xl=5"
    assert Magnet.parse(hybrid) == Magnet(HASH)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad-infohash"),
        ("ab" * 20, "bad-infohash"),
        (f"{HASH.hex()} ", "bad-infohash"),
        ("magnet:?xt=urn:btih:" + "a" * 40, "bad-magnet"),
        ("magnet:?xt=urn:btmh:1220abcd", "bad-infohash"),
        (f"magnet:?{XT}&xt=urn:btmh:1220{'0' * 64}", "bad-magnet"),
        (f"magnet:?{XT}&x.pe=localhost", "bad-peer"),
        (f"magnet:?{XT}&x.pe=a:0", "bad-peer"),
        (f"magnet:?{XT}&x.pe=a:65536", "bad-peer"),
        (f"magnet:?{XT}&x.pe=a%2Fb:1", "bad-peer"),
        (f"magnet:?{XT}&ws=file:///etc/passwd", "bad-url"),
        (f"magnet:?{XT}&tr=ftp://a/", "bad-url"),
        (f"magnet:?{XT}&ws=http://%5Bx/", "bad-url"),
        (f"magnet:?{XT}" + "&x.pe=a:1" * 1000, "bad-magnet"),
        (f"magnet:?{XT}" + "".join(f"&x.pe=a:{i}" for i in range(1, 40)), "bad-magnet"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        Magnet.parse(text)
    assert caught.value.reason == reason
