"""What transfers the nodes' lists and the chain's transactions show."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut
from channels.lightning_answers import Close, CloseOutput, Funding, PeerChannel
from channels.units import BlockHeight, Msat, Sat
from regtest.auditing import Lists, closing, openings, over_lightning
from regtest.books import MINERS, Transfer


def transaction(number: int) -> Transaction:
    source = TxIn(OutPoint(bytes([number]) * 32, 0))
    return Transaction(2, (source,), (TxOut(Sat(1), b""),), 0)


FUNDING, OLD, SWEEP = (transaction(number) for number in (1, 2, 3))


def channel(
    peer: str, opener: Literal["local", "remote"], ours: int, funded: Transaction = FUNDING
) -> PeerChannel:
    return PeerChannel(
        peer_id=f"{peer}'s id",
        peer_connected=True,
        state="CHANNELD_NORMAL",
        opener=opener,
        channel_id=f"of {funded.txid_hex}",
        funding_txid=funded.txid_hex,
        funding=Funding(Msat(0), Msat(0), Msat(546_000)),
        to_us_msat=Msat(ours),
    )


def lists(who: str, *channels: PeerChannel) -> Lists:
    zero = Msat(0)
    return Lists(f"{who}'s id", (), channels, {}, routing=zero, received=zero, forwarding=zero)


BEGAN: Final = {who: lists(who) for who in ("user", "provider", "producer", "trainer", "rival")} | {
    "user": replace(lists("user"), sent={"provider's id": Msat(200_000)}, received=Msat(15_450)),
    "provider": replace(
        lists("provider"), sent={"user's id": Msat(15_450)}, received=Msat(200_000)
    ),
}
SETTLED: Final = BEGAN | {
    "user": replace(
        BEGAN["user"],
        channels=[
            channel("provider", "local", 99_139_880),
            channel("provider", "local", 0, OLD),
        ],
        sent={"provider's id": Msat(550_000)},
        received=Msat(51_330),
    ),
    "provider": replace(
        BEGAN["provider"],
        channels=[channel("user", "remote", 860_120)],
        sent={"user's id": Msat(51_330), "trainer's id": Msat(2_543), "producer's id": Msat(9)},
        routing=Msat(3),
        received=Msat(550_000),
    ),
    "producer": replace(BEGAN["producer"], received=Msat(9), forwarding=Msat(3)),
    "trainer": replace(BEGAN["trainer"], received=Msat(2_543)),
}


def test_only_what_was_opened_since_counts() -> None:
    fees = [(FUNDING, Sat(305)), (SWEEP, Sat(124))]
    assert openings(SETTLED, fees) == [
        Transfer("openings", "user", MINERS, Msat(305_000), Msat(305_000)),
        Transfer("reserves", "user", "provider", Msat(546_000), Msat(546_000)),
    ]


def test_payments_are_counted_by_both_sides() -> None:
    found = {(t.what, t.giver, t.taker): (t.given, t.taken) for t in over_lightning(BEGAN, SETTLED)}
    assert found == {
        ("inference", "user", "provider"): (350_000, 350_000),
        ("refunds", "provider", "user"): (35_880, 35_880),
        ("shares", "provider", "producer"): (9, 9),
        ("shares", "provider", "trainer"): (2_543, 2_543),
        ("shares", "provider", "rival"): (0, 0),
        ("routing fees", "provider", "producer"): (3, 3),
    }
    silent = SETTLED | {"trainer": replace(SETTLED["trainer"], received=Msat(2_542))}
    (share,) = [t for t in over_lightning(BEGAN, silent) if t.taker == "trainer"]
    assert share.given != share.taken


def close(*outputs: tuple[str, int]) -> Close:
    return Close(
        peer_id="provider's id",
        channel_id=f"of {FUNDING.txid_hex}",
        state="ONCHAIN",
        closer="ours",
        txid="",
        confirmed=True,
        blockheight=BlockHeight(112),
        outputs=[
            CloseOutput("", number, kind, Msat(amount), "waiting")
            for number, (kind, amount) in enumerate(outputs)
        ],
    )


def test_the_leaver_pays_for_the_close_but_for_what_the_other_side_loses() -> None:
    fees = [(FUNDING, Sat(305)), (OLD, Sat(680)), (SWEEP, Sat(124))]
    anchors = ("ANCHOR_TO_US", 330_000), ("ANCHOR_TO_THEM", 330_000)
    whole = close(*anchors, ("OUTPUT_TO_THEM", 860_000), ("DELAYED_OUTPUT_TO_US", 97_800_000))
    known = SETTLED | {"user": replace(SETTLED["user"], channels=SETTLED["user"].channels[:1])}
    assert [(t.giver, t.taker, t.given) for t in closing(known, fees, whole)] == [
        ("user", MINERS, 804_000 - 120),
        ("provider", MINERS, 120),
        ("user", "provider", 330_000),
    ]
    # BOLT 3: an output below the dust limit does not exist.
    dust = close(*anchors, ("DELAYED_OUTPUT_TO_US", 97_800_000))
    fees = [(OLD, Sat(1541)), (SWEEP, Sat(124))]
    assert [t.given for t in closing(known, fees, dust)] == [1_665_000 - 860_120, 860_120, 330_000]
