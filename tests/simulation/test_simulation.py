"""Seeds, one after the other: `FUSEMIRROR_SEEDS=FIRST:COUNT` runs others than the usual ones."""

import os

import pytest

from tests.simulation.simulate import simulate

_FIRST, _COUNT = (int(part) for part in os.environ.get("FUSEMIRROR_SEEDS", "0:200").split(":"))


@pytest.mark.expects_warnings
@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _COUNT))
def test_two_hosts_are_one_filesystem_through_every_trouble(seed: int) -> None:
    run = simulate(seed)
    print(run.header, f"python -m tests.simulation {seed}", sep="\n")
    if run.failure is not None:
        raise run.failure


@pytest.mark.expects_warnings
@pytest.mark.parametrize("seed", [3, 17])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    first, second = simulate(seed), simulate(seed)
    assert len(first.trace) > 100
    assert "\n".join(first.trace) == "\n".join(second.trace)
