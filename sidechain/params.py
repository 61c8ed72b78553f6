"""The numbers of each network (docs/sidechain.md, "Parameters").

Times are seconds, depths and ages are blocks, sizes are bytes, stamps are expected hashes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from channels.errors import UserError

PPM: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One network's rules. Nodes that differ in any of them are on different networks."""

    name: str
    network_id: int
    genesis_time: int
    pow_limit_bits: int
    retarget: bool
    spacing: int
    half_life: int
    reveal_delay: int
    commit_ttl: int
    shard_timeout: int
    """Blocks after a Reveal in which a shard must open; well below commit_ttl, so that a commit
    which waited behind a failed update can still be revealed."""
    fee_depth: int
    max_reorg: int | None
    tenure: int
    score_cost: int
    model_bytes: int
    dataset_bytes: int
    stamp: int
    model_stamp: int
    fetch_wait: int
    assume_scored_depth: int | None
    block_bytes: int = 64 * 1024
    future_limit: int = 15 * 60
    openings_per_block: int = 4
    min_shard_samples: int = 32
    """A paired test over fewer samples proves nothing: with one sample, any gain has z = ∞."""
    trainer_ppm: int = 50_000
    trainer_floor_ppm: int = 10_000
    producers_ppm: int = 10_000
    producers_floor_ppm: int = 1_000


REGTEST: Final = Params(
    name="regtest",
    network_id=0x0DA2,
    genesis_time=1_704_067_200,  # 2024-01-01 00:00 UTC
    pow_limit_bits=0x207FFFFF,
    retarget=False,
    spacing=600,
    half_life=6 * 3600,
    reveal_delay=2,
    commit_ttl=50,
    shard_timeout=20,
    fee_depth=1,
    max_reorg=None,
    tenure=4,
    score_cost=20_000_000_000,
    model_bytes=8 << 20,
    dataset_bytes=8 << 20,
    stamp=1 << 8,
    model_stamp=1 << 10,
    fetch_wait=5,
    assume_scored_depth=None,
)

MAIN: Final = Params(
    name="mainnet",
    network_id=0x0DA0,
    genesis_time=1_767_225_600,  # 2026-01-01 00:00 UTC
    # 2^24 hashes: what one core does between two blocks. ASERT takes it from there.
    pow_limit_bits=0x1E00FFFF,
    retarget=True,
    spacing=600,
    half_life=6 * 3600,
    reveal_delay=6,
    commit_ttl=144,
    shard_timeout=72,
    fee_depth=6,
    max_reorg=144,
    tenure=144,
    score_cost=500_000_000_000,
    model_bytes=64 << 20,
    dataset_bytes=64 << 20,
    stamp=1 << 20,
    model_stamp=1 << 28,
    fetch_wait=60,
    assume_scored_depth=4320,
)

SIGNET: Final = replace(MAIN, name="signet", network_id=0x0DA1)
"""Main's rules beside Bitcoin's signet."""

NETWORKS: Final = {params.name: params for params in (REGTEST, SIGNET, MAIN)}


def network(name: str) -> Params:
    """Raises UserError("unknown-network")."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise UserError(
            "unknown-network", f"There is no network {name!r}; take one of {', '.join(NETWORKS)}."
        ) from None
