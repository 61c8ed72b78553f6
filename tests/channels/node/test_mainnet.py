"""On mainnet the embedded node needs to be asked twice, and what it can lose is bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from channels.bolt import messages
from channels.bolt.commitment import ChannelType
from channels.bolt.keys import public_key
from channels.node.funding import Funding
from channels.node.networks import MAINNET
from channels.node.node import Node
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.units import FeeratePerKw, Msat, Sat

PEER = public_key(b"\x01" * 32)
CAP = 100_000


class NodeOnMainnet(SimpleNamespace):
    """As much of a node as an opening asks before it is refused."""

    def __init__(self) -> None:
        self.said: list[messages.Message] = []
        super().__init__(
            params=MAINNET,
            channels={},
            connections=SimpleNamespace(peers={PEER: None}, sender=lambda _: self.said.append),
            turn=SimpleNamespace(after=lambda effect: effect()),
        )


def test_it_does_not_start_unasked(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    arguments = ["--directory", str(directory), "--bitcoind-url", "http://127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-m", "channels.node", "--network", "mainnet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--i-know-this-is-young-software" in done.stderr
    assert not directory.exists()


async def test_it_opens_no_large_channel() -> None:
    funding = Funding(cast("Node", NodeOnMainnet()))
    with pytest.raises(RpcMethodError, match=str(CAP)) as caught:
        await funding.open(
            PEER,
            amount=Sat(CAP + 1),
            push_msat=Msat(0),
            feerate=FeeratePerKw(253),
            reserve=None,
            announce=True,
            channel_type=ChannelType.ANCHORS,
        )
    assert caught.value.code == RpcErrorCode.FUND_MAX_EXCEEDED


def test_it_takes_no_large_channel() -> None:
    node = NodeOnMainnet()
    values: dict[str, Any] = {
        "chain_hash": MAINNET.policy.chain_hash,
        "temporary_channel_id": b"\x02" * 32,
        "funding_satoshis": Sat(CAP + 1),
        "push_msat": Msat(0),
        "dust_limit_satoshis": Sat(354),
        "max_htlc_value_in_flight_msat": Msat(10**8),
        "channel_reserve_satoshis": Sat(1000),
        "htlc_minimum_msat": Msat(1),
        "feerate_per_kw": FeeratePerKw(253),
        "to_self_delay": 144,
        "max_accepted_htlcs": 483,
        "channel_flags": 0,
    }
    points: dict[str, Any] = {
        name: PEER
        for name in messages.OpenChannel.__dataclass_fields__
        if name.endswith(("_pubkey", "basepoint", "_point"))
    }
    Funding(cast("Node", node)).on_open_channel(PEER, messages.OpenChannel(**values, **points))
    (refusal,) = node.said
    assert refusal == messages.Error(b"\x02" * 32, f"We take at most {CAP} sat.".encode())
