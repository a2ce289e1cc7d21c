"""G2 and G4 through two kernels: what programs on both hosts are told fits one order, whatever fails.

Each test lets processes on both hosts work on the same few names, and judges what they recorded.
`FUSEMIRROR_LINEARIZABILITY_CALLS` makes the runs longer, `FUSEMIRROR_SEED` repeats their choices;
`FUSEMIRROR_LINEARIZABILITY_BLOCK` has larger blocks written than 4,096 bytes. With
`FUSEMIRROR_LINEARIZABILITY_EARLY` a write counts as certain only once it was synced.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, TwoHosts, run, wait_until
from tests.linearizability.conftest import Judge, two_hosts
from tests.linearizability.crew import PATIENCE_S, Crew
from tests.linearizability.history import Operation, load
from tests.linearizability.model import READS, violations
from tests.linearizability.planted import BUGS

ACCESS = "routed"
LONG = "FUSEMIRROR_LINEARIZABILITY_CALLS" in os.environ
CALLS = int(os.environ.get("FUSEMIRROR_LINEARIZABILITY_CALLS", "10000"))
CALLS_AROUND_A_FAULT = CALLS // 20
MEMBERS = 6
ROUNDS_MAX = 40  # of a planted bug, which one round finds with odds of 1 in 3 or better
CALLS_OF_A_BUG = 1000
STALLS = 4


def test_what_both_hosts_see_fits_one_order(pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path) -> None:
    judge(quiet(pair, seed, tmp_path, CALLS))


def quiet(
    pair: TwoHosts, seed: int, control: Path, calls: int, until: Callable[[], bool] = lambda: True
) -> list[Operation]:
    """A history without any trouble, of so many calls or more, until that holds."""
    before = _answered_reads(pair)
    with Crew(pair.hosts, MEMBERS, control / "quiet", seed) as crew:
        crew.wait_calls(calls // 2)
        crew.wait_reopened()  # from here on kernels keep what is read
        crew.wait_calls(calls // 2)
        wait_until(until, PATIENCE_S, "what the history is about")
        history = crew.finish()
    reads = sum(operation.call in READS for operation in history)
    answered = _answered_reads(pair) - before
    assert answered < reads, f"no kernel kept anything: {answered} answers for {reads} reads"
    assert not [operation for operation in history if operation.returned is None]
    return history


def _answered_reads(pair: TwoHosts) -> int:
    """Reads that were answered by a mount process, and not by a kernel from what it keeps."""
    return sum(sum(host.status()["reads"].values()) for host in pair)


def cut(hosts: TwoHosts, crew: Crew) -> None:
    hosts.cut()
    crew.wait_calls(CALLS_AROUND_A_FAULT, hosts.primary)  # it goes on alone
    hosts.heal()


def cut_until_check_reports(hosts: TwoHosts, crew: Crew) -> None:
    """Longer than programs at the backup are kept waiting: what they asked is in doubt."""
    hosts.cut()
    crew.wait_calls(CALLS_AROUND_A_FAULT, hosts.primary)
    with crew.paused(hosts.primary):  # what it does meanwhile would be most of the history
        crew.wait_doubt(hosts.backup)
    hosts.heal()


def lose_packets(hosts: TwoHosts, crew: Crew) -> None:
    hosts.drop()
    crew.wait_calls(CALLS_AROUND_A_FAULT, hosts.primary)
    hosts.heal()


def flap(hosts: TwoHosts, crew: Crew) -> None:
    """Shorter than the lease: nobody goes on alone."""
    for _ in range(5):
        hosts.cut()
        hosts.heal()
        crew.wait_calls(10, *hosts)


def kill_primary(hosts: TwoHosts, crew: Crew) -> None:
    hosts.primary.kill()
    hosts.primary.mount()


def kill_backup(hosts: TwoHosts, crew: Crew) -> None:
    hosts.backup.kill()
    crew.wait_calls(CALLS_AROUND_A_FAULT, hosts.primary)
    hosts.backup.mount()


def kill_both(hosts: TwoHosts, crew: Crew) -> None:
    for host in hosts:
        host.kill()
    for host in hosts:
        host.mount()


def stall_primary(hosts: TwoHosts, crew: Crew) -> None:
    hosts.primary.stop()
    try:
        crew.wait_blocked(hosts.backup)
    finally:
        hosts.primary.resume()


def stall_backup(hosts: TwoHosts, crew: Crew, calls: int = CALLS_AROUND_A_FAULT) -> None:
    """The primary goes on alone; what the backup is asked meanwhile, it answers when it wakes up."""
    try:
        with crew.paused(hosts.backup):
            hosts.backup.stop()
            crew.wait_calls(calls, hosts.primary)
        crew.wait_blocked(hosts.backup)
    finally:
        hosts.backup.resume()


def stall_backup_shortly(hosts: TwoHosts, crew: Crew) -> None:
    """The lease lasts: the primary waits."""
    try:
        with crew.paused(hosts.backup):
            hosts.backup.stop()
            crew.wait_blocked(hosts.primary)
        crew.wait_blocked(hosts.backup)
    finally:
        hosts.backup.resume()


Fault = Callable[[TwoHosts, Crew], None]
FAULTS: tuple[Fault, ...] = (
    cut,
    cut_until_check_reports,
    lose_packets,
    flap,
    kill_primary,
    kill_backup,
    kill_both,
    stall_primary,
    stall_backup,
    stall_backup_shortly,
)


PARTING = frozenset({cut, cut_until_check_reports, lose_packets, stall_backup})
"""The primary goes on without its backup, whose kernel has pages that it may go by without asking anybody."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_still_fits_one_order_after(
    fault: Fault, pair: TwoHosts, seed: int, judge: Judge, tmp_path: Path
) -> None:
    judge(troubled(fault, pair, seed, tmp_path / fault.__name__))


def troubled(fault: Fault, pair: TwoHosts, seed: int, control: Path) -> list[Operation]:
    """A history of before, during and after two times the same fault."""
    with Crew(pair.hosts, MEMBERS, control, seed) as crew:
        for _ in range(2):
            crew.wait_calls(CALLS_AROUND_A_FAULT)
            fault(pair, crew)
            crew.wait_calls(CALLS_AROUND_A_FAULT)
            pair.converge()
        for host in pair:
            crew.wait_calls(CALLS_AROUND_A_FAULT, host)
        history = crew.finish()
    in_doubt = sum(operation.returned is None for operation in history)
    print(f"{len(history)} operations, {in_doubt} in doubt")
    if fault in PARTING:  # fusemirror(7): pages show what was there before, for as long as that lasts
        return [each for each in history if each.call != "page_block"]
    return history


def _planted(bug: str, seed: int, control: Path) -> Iterator[list[Operation]]:
    """Histories of hosts that have it, one after the other."""
    with two_hosts(sys.executable, "-m", "tests.linearizability.planted", bug) as hosts:
        hosts.mount()
        for number in range(ROUNDS_MAX):
            chosen = seed + number * MEMBERS
            with Crew(hosts.hosts, MEMBERS, control / f"round{number}", chosen) as crew:
                # What a kernel keeps, it keeps only of files that nobody had changed for seconds.
                crew.wait_calls(CALLS_OF_A_BUG * (5 if bug.startswith("kept") else 1))
                for _ in range(STALLS if bug == "no_lease" else 0):
                    # So few that the files that programs at the backup have open are still at work.
                    stall_backup(hosts, crew, calls=100)
                    crew.wait_calls(30, hosts.backup)
                yield crew.finish()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, seed: int, judge: Judge, tmp_path: Path) -> None:
    found = next(filter(violations, _planted(bug, seed, tmp_path)), [])
    with pytest.raises(AssertionError, match="no order explains"):
        judge(found)
    kept = tmp_path / "history.jsonl"
    assert load(kept) == found
    again = run(sys.executable, "-m", "tests.linearizability", kept, expect=1, cwd=CHECKOUT, timeout_s=600.0)
    print(again.stdout)
    assert "the least of it" in again.stdout


def test_without_a_planted_bug_nothing_is_found(seed: int, judge: Judge, tmp_path: Path) -> None:
    judge(next(_planted("slow", seed, tmp_path)))
