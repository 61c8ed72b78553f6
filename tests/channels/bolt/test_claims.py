"""Claims: what they weigh (BOLT 5, Appendix A) and which fees they can bear."""

from __future__ import annotations

import hashlib

import pytest

from channels.bolt import scripts
from channels.bolt.claims import Claim
from channels.bolt.keys import public_key
from channels.bolt.transactions import OutPoint, TxOut, dust_limit, p2wpkh
from channels.units import BlockHeight, FeeratePerKw, Sat

KEY = public_key(b"\x01" * 32)
WALLET = p2wpkh(KEY)
HASH = hashlib.sha256(b"").digest()


def claim(script: bytes, *after: bytes, value: int = 50_000) -> Claim:
    return Claim(
        name="OUR_PENALTY_TX",
        outpoint=OutPoint(bytes(32), 0),
        value=Sat(value),
        secret=b"\x01" * 32,
        script_code=script,
        after=(*after, script),
        from_height=BlockHeight(0),
    )


TO_LOCAL = scripts.to_local_script(KEY, 2016, KEY)
OFFERED = scripts.offered_htlc_script(KEY, KEY, KEY, HASH, anchors=False)
ACCEPTED = scripts.received_htlc_script(KEY, KEY, KEY, HASH, 500_000, anchors=False)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        # The appendix counts a signature of 73 bytes, where a low-s one has at most 72, and 8
        # bytes for a delay that takes 3, of which one is its length.
        (claim(TO_LOCAL, b"\x01"), 160 - 1 - 6 + 1),
        (claim(OFFERED, KEY), 243 - 1),
        (claim(ACCEPTED, KEY), 249 - 1),
    ],
)
def test_expected_weights_of_penalty_witnesses(penalty: Claim, expected: int) -> None:
    unsigned = penalty.unsigned([TxOut(Sat(1), WALLET)])
    witness = penalty.weighed([TxOut(Sat(1), WALLET)]) - unsigned.weight - 2
    assert witness == expected


def test_a_claim_leaves_no_dust() -> None:
    small = claim(TO_LOCAL, b"\x01", value=1000)
    rate = small.highest_feerate(WALLET)
    assert small.sweep(WALLET, rate).outputs[0].value >= dust_limit(WALLET)
    assert small.sweep(WALLET, FeeratePerKw(rate + 5)).outputs[0].value < dust_limit(WALLET)
    assert claim(TO_LOCAL, b"\x01", value=200).highest_feerate(WALLET) == 0


def test_no_secret_is_shown() -> None:
    assert "01" * 16 not in repr(claim(TO_LOCAL)).replace("\\x", "")
