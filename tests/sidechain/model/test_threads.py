"""How torch's threads wait has to be said before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = "import os, sys, sidechain.model as m; print(os.environ[m.PATIENT], 'torch' in sys.modules)"


@pytest.mark.parametrize("said", [None, "active"])
def test_threads_wait_patiently_unless_it_is_said_otherwise(said: str | None) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if said is not None:
        environ["OMP_WAIT_POLICY"] = said
    told = subprocess.run(
        [sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [said or "passive", "False"]
