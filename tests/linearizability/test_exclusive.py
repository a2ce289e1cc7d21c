"""The same with exclusive access: what both hosts see fits one order, whatever fails.

A few faults only; with `FUSEMIRROR_LINEARIZABILITY_CALLS` all of them.
"""

from pathlib import Path

import pytest

from tests.hosts import TwoHosts
from tests.linearizability import test_mounts
from tests.linearizability.conftest import Judge
from tests.linearizability.test_mounts import LONG, Fault, quiet, troubled

ACCESS = "exclusive"
FEW = (test_mounts.cut, test_mounts.kill_primary, test_mounts.kill_backup, test_mounts.stall_backup)
FAULTS: tuple[Fault, ...] = test_mounts.FAULTS if LONG else FEW


def test_exclusive_access_fits_one_order(pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path) -> None:
    judge(quiet(pair, seed, tmp_path, test_mounts.CALLS // (1 if LONG else 2)))
    for host in pair:
        status = host.status()
        assert status["effective"]["access"] == "exclusive"
        assert status["exclusive"]["stood_by_total"] > 0, "nobody ever wanted the same"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_exclusive_access_still_fits_one_order_after(
    fault: Fault, pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path
) -> None:
    judge(troubled(fault, pair, seed, tmp_path))
