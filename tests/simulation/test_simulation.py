"""Seeds, one after the other: `FUSEMIRROR_SEEDS=FIRST:COUNT` runs others than the usual ones.

`python -m tests.simulation SEED` replays one and shows its trace.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.simulate import simulate

_FIRST, _COUNT = (int(part) for part in os.environ.get("FUSEMIRROR_SEEDS", "0:150").split(":"))
_CHECKOUT = Path(__file__).parents[2]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _COUNT))
def test_two_hosts_are_one_filesystem_through_every_trouble(seed: int) -> None:
    run = simulate(seed)
    print(run.header)
    if run.failure is not None:
        raise run.failure


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    def replay(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "tests.simulation", "3", "17"]
        return subprocess.run(
            command, cwd=_CHECKOUT, env=environment, text=True, check=True, capture_output=True
        ).stdout

    first, second = replay("1"), replay("2")
    assert first.count("\n") > 1000
    assert first == second
