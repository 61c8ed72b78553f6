"""A sidechain node killed at every commit is at the end of a turn when it is back, and gets to the
same place."""

import subprocess
import sys
from pathlib import Path

from tests.faults.fragile_chain import FragileStore, node_on, picture, story


def test_a_node_killed_at_any_commit_goes_on(tmp_path: Path) -> None:
    turns = story()
    commits, pictures = [0], []
    with node_on(store := FragileStore(tmp_path / "whole" / "chain.sqlite")) as node:
        pictures.append(picture(node))
        for turn in turns:
            turn(node)
            commits.append(store.commits)
            pictures.append(picture(node))
    seen = {status for each in pictures for status in each.status.values()}
    assert seen >= {"header", "pending", "active", "stale", "invalid"}, "the story has it all"
    assert commits == [*range(len(turns) + 1)], "each turn is one commit"
    command = [sys.executable, "-m", "tests.faults.fragile_chain", str(tmp_path / "killed")]
    subprocess.run(command, check=True, timeout=60)
    killed = sorted((tmp_path / "killed").iterdir())
    # The last one is of a commit that the story does not make.
    assert len(killed) == 2 * len(turns) + 1
    for folder in killed:
        fatal, when = folder.name.split("-")
        done = min(int(fatal) - (when == "before"), len(turns))
        with node_on(FragileStore(folder / "chain.sqlite")) as node:
            assert picture(node) == pictures[done], folder.name
            for turn in turns[done:]:
                turn(node)
            assert picture(node) == pictures[-1], folder.name
