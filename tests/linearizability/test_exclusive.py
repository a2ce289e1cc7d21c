"""The same with exclusive access: what both hosts see fits one order, whatever fails.

A few faults only; with `FUSEMIRROR_LINEARIZABILITY_CALLS` all of them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusemirror.limits import STATUS_AHEAD_BYTES
from tests.hosts import FILESYSTEM, Host, TwoHosts
from tests.linearizability import test_mounts
from tests.linearizability.conftest import Judge
from tests.linearizability.crew import Crew
from tests.linearizability.test_mounts import LONG, MEMBERS, Fault, quiet, troubled

ACCESS = "exclusive"
FEW = (test_mounts.cut, test_mounts.kill_primary, test_mounts.kill_backup, test_mounts.stall_backup)
FAULTS: tuple[Fault, ...] = test_mounts.FAULTS if LONG else FEW
# Check reports leave so many names in doubt that no search ends: an fsync waits for each of them first.
FAULTS_EARLY = tuple(
    fault
    for fault in (FAULTS if LONG else (test_mounts.flap, test_mounts.kill_both))
    if fault is not test_mounts.cut_until_check_reports
)
CALLS_SLOWLY = 30
CALLS_EARLY = test_mounts.CALLS // (1 if LONG else 10)


def test_exclusive_access_fits_one_order(pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path) -> None:
    calls = test_mounts.CALLS // (1 if LONG else 2)
    judge(quiet(pair, seed, tmp_path, calls, until=lambda: all(map(_wanted_the_same, pair))))
    for host in pair:
        assert host.status()["effective"]["access"] == "exclusive"


def _wanted_the_same(host: Host) -> bool:
    """Whether a program of the host has stood by for what another wanted at the same time."""
    return bool(host.status()["exclusive"]["stood_by_total"])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_exclusive_access_still_fits_one_order_after(
    fault: Fault, pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path
) -> None:
    judge(troubled(fault, pair, seed, tmp_path / fault.__name__))


@pytest.fixture
def early(pair: TwoHosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks so large that success is told while their data is on its way."""
    monkeypatch.setenv("FUSEMIRROR_LINEARIZABILITY_BLOCK", str(STATUS_AHEAD_BYTES))
    for host in pair:
        host.fusemirror("set", FILESYSTEM, "acknowledge=async")
        effective = host.status()["effective"]
        assert (effective["access"], effective["acknowledge"]) == (ACCESS, "async")
    yield
    for host in pair:
        host.fusemirror("set", FILESYSTEM, "acknowledge=sync")


@pytest.mark.usefixtures("early")
def test_what_is_acknowledged_early_fits_one_order_too(
    pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path
) -> None:
    with Crew(pair.hosts, MEMBERS, tmp_path / "early", seed) as crew:
        crew.wait_calls(CALLS_EARLY)
        judge(crew.finish())


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("fault", FAULTS_EARLY, ids=lambda fault: fault.__name__)
def test_what_is_acknowledged_early_still_fits_one_order_after(
    fault: Fault, pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an fsync has confirmed stands where it was acknowledged; what a fault overtook may be lost."""
    monkeypatch.setenv("FUSEMIRROR_LINEARIZABILITY_EARLY", "1")

    def overtake(hosts: TwoHosts, crew: Crew) -> None:
        hosts.slow_down()
        try:
            crew.wait_calls(CALLS_SLOWLY)
            fault(hosts, crew)
        finally:
            hosts.heal()

    judge(troubled(overtake, pair, seed, tmp_path / f"early_{fault.__name__}"))
