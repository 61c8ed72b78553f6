"""What differs between the Bitcoin networks, and the policy that suits each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from channels.bolt.channel_state import Policy
from channels.bolt.policy import Policy as ForwardingPolicy
from channels.units import FeeratePerKw, Msat, Sat


@dataclass(frozen=True, slots=True)
class NetworkParams:
    """`chain_hash` is the genesis block's hash in the byte order of the wire (BOLT 0)."""

    name: str
    bitcoind_chain: str
    invoice_currency: str
    policy: Policy
    default_feerate: FeeratePerKw
    lightning_port: int
    forwarding: ForwardingPolicy
    gossip_flush_seconds: float = 60.0
    channel_cap: Sat | None = None


def _hash(display: str) -> bytes:
    return bytes.fromhex(display)[::-1]


# Core Lightning's defaults; off mainnet it asks for 1 msat instead of 1 sat, and for 6 blocks.
_FORWARDING = ForwardingPolicy(
    fee_base_msat=Msat(1_000),
    fee_proportional_millionths=10,
    cltv_expiry_delta=34,
    htlc_minimum_msat=Msat(0),
    htlc_maximum_msat=Msat(0xFFFFFFFFFFFFFFFF),
)

REGTEST = NetworkParams(
    name="regtest",
    bitcoind_chain="regtest",
    invoice_currency="bcrt",
    policy=Policy(
        chain_hash=_hash("0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"),
        to_self_delay=6,
        minimum_depth=1,
        # Blocks come when somebody asks for them: a day of waiting would be a day of typing.
        fulfillment_deadline=8,
        reasonable_depth=2,
        irrevocable_depth=6,
        # Without a fee market, Electrum takes 37500 for its estimate and adds half of it.
        max_feerate=FeeratePerKw(100_000),
    ),
    # Two satoshis per virtual byte: what a quiet mempool asks, so that costs look like real ones.
    default_feerate=FeeratePerKw(500),
    lightning_port=19846,
    forwarding=replace(_FORWARDING, fee_base_msat=Msat(1), cltv_expiry_delta=6),
    # Everybody is on one machine and waits for it.
    gossip_flush_seconds=0.5,
)

SIGNET = NetworkParams(
    name="signet",
    bitcoind_chain="signet",
    invoice_currency="tbs",
    policy=Policy(
        chain_hash=_hash("00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6"),
        minimum_depth=3,
        max_feerate=FeeratePerKw(25_000),
    ),
    default_feerate=FeeratePerKw(500),
    lightning_port=39735,
    forwarding=replace(_FORWARDING, fee_base_msat=Msat(1), cltv_expiry_delta=6),
)

MAINNET = NetworkParams(
    name="mainnet",
    bitcoind_chain="main",
    invoice_currency="bc",
    policy=Policy(
        chain_hash=_hash("000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"),
        minimum_depth=3,
        max_feerate=FeeratePerKw(50_000),
    ),
    default_feerate=FeeratePerKw(2_500),
    lightning_port=9735,
    forwarding=_FORWARDING,
    # The embedded node is young: what it can lose on mainnet is bounded.
    channel_cap=Sat(100_000),
)

NETWORKS = {n.name: n for n in (REGTEST, SIGNET, MAINNET)}
