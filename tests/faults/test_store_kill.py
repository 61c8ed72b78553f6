"""A node that is killed at any instant finds whole turns in its store, and all it committed."""

import signal
import subprocess
import sys
from pathlib import Path

from channels.node.store import Store

WRITER = """
import sys
from pathlib import Path
from channels.node.store import Store
from channels.units import Msat, UnixTime

store = Store(Path(sys.argv[1]))
turn = int(store.meta("turn") or b"0")
while True:
    turn += 1
    store.set_meta("turn", b"%d" % turn)
    for part in range(3):
        store.add_invoice(
            label=f"{turn}/{part}", payment_hash=turn.to_bytes(31, "big") + bytes([part]),
            preimage=bytes(32), bolt11="x", description="", amount_msat=Msat(1),
            expires_at=UnixTime(0),
        )
    store.commit()
    print(turn, flush=True)
"""


def test_kill_9_leaves_whole_turns(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    before = 0
    for stop_after in (1, 2, 17):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(stop_after):
                told = int(writer.stdout.readline())
            # Whatever it is doing now, it does not get to finish it.
            writer.send_signal(signal.SIGKILL)
        # The lock of a killed node is gone with it.
        with Store(path) as store:
            turns = int(store.meta("turn") or b"0")
            labels = {row.label for row in store.list_invoices()}
        assert told >= before + stop_after
        assert turns >= told
        assert labels == {f"{turn}/{part}" for turn in range(1, turns + 1) for part in range(3)}
        before = turns
