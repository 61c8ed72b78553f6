import msgspec
import pytest

from sidechain.primitives import stamp_work, stamped
from sidechain.stamping import CHUNK, stamp
from tests.sidechain.world import ALICE, QUICK, add_model, commit, open_shard, register, reveal


@pytest.mark.parametrize("begun", [0, 100, 40_000])
async def test_the_stamp_is_the_first_that_is_worth_it(begun: int) -> None:
    model = bytes(32)
    for tx in (
        register(QUICK, ALICE),
        add_model(QUICK),
        commit(QUICK, model, ALICE, "w"),
        reveal(QUICK, model, ALICE, "w", 1),
        open_shard(QUICK, model, 1, "s", ALICE),
    ):
        fresh = msgspec.structs.replace(tx, stamp_nonce=begun)
        shown: list[tuple[float, float | None]] = []

        def show(
            done: float,
            total: float | None = None,
            label: str | None = None,
            shown: list[tuple[float, float | None]] = shown,
        ) -> None:
            shown.append((done, total))

        found = await stamp(fresh, 300, show)
        assert found == stamped(fresh, 300) and stamp_work(found) >= 300
        assert shown == [(CHUNK, CHUNK)]
