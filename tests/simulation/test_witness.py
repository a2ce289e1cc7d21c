"""With a witness: hosts that lose each other, the witness, or both, in every order.

The simulation itself looks that never two hosts acknowledge alone, that nothing acknowledged is lost, and
that afterwards both are normal again. Here the seeds are turned to that kind of trouble.
"""

from random import Random

import msgspec
import pytest

from fusemirror.settings import Fence
from tests.simulation.options import WITNESS_FAULTS, Options, draw_options
from tests.simulation.simulate import simulate

_SEEDS = 30
_FAULTS = (
    *WITNESS_FAULTS,
    "cut",
    "stall",
    "break",
    "pause primary",
    "kill primary",
    "kill backup",
    "switch backup",
)


def _lonely(seed: int) -> Options:
    random = Random(f"{seed} lonely")
    return msgspec.structs.replace(
        draw_options(Random(f"{seed} options")),
        witness=True,
        acknowledge=("sync", "sync"),
        fence=Fence.NEVER,
        peer_timeout=0.3,
        io_timeout=1.5,
        think_time=0.05,
        operations_per_client=40,
        fault_count=20,
        fault_interval=0.3,
        outage=random.choice([0.3, 1.0, 3.0]),
        faults=tuple(fault for fault in _FAULTS if random.random() < 0.7),
    )


@pytest.mark.expects_warnings
@pytest.mark.parametrize("seed", range(_SEEDS))
def test_a_witness_lets_one_host_go_on_and_never_two(seed: int) -> None:
    run = simulate(seed, _lonely(seed))
    print(run.header)
    if run.failure is not None:
        raise run.failure


@pytest.mark.expects_warnings
def test_a_backup_takes_over_by_itself_where_only_it_reaches_the_witness() -> None:
    options = msgspec.structs.replace(_lonely(3), faults=("alone primary",), outage=3.0)
    run = simulate(3, options)
    assert run.failure is None
    assert any("this host is the primary now: taken over" in line for line in run.trace)


@pytest.mark.expects_warnings
def test_losing_the_witness_alone_changes_nothing() -> None:
    options = msgspec.structs.replace(_lonely(0), faults=("blind both", "sluggish"), outage=3.0, hurry=200)
    run = simulate(0, options)
    assert run.failure is None
    troubled = run.trace[: next(number for number, line in enumerate(run.trace) if line.endswith(" peace"))]
    assert any("the witness cannot be asked" in line for line in troubled)
    assert not any("mirror: NORMAL -> " in line for line in troubled)
    assert not any("EIO: " in line for line in troubled)
