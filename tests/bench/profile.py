"""What one 4 KiB write costs in the mount process of each host: processor time, task switches, system calls.

The time and the switches are counted by the kernel while nothing else looks; the calls in another run, under
strace(1), which slows a write down many times and leaves its calls as they are. The waits of the event loop
among them are its turns.
"""

import os
import re
import signal
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen

from tests.bench import jobs
from tests.bench.against import HOSTS, mounted
from tests.bench.jobs import US_PER_S, WRITE, Scale, fio
from tests.bench.report import aligned
from tests.bench.systems import System
from tests.hosts import TwoHosts, wait_until

USER, KERNEL, SWITCHES = "processor in user mode, us", "processor in the kernel, us", "task switches"
TRACED_TIMEOUT_S = 10.0
CALLS_SHOWN = 0.05  # in one write: what is rarer is not of the write
_COUNTED = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")  # a line of `strace -c`

Costs = dict[tuple[str, str, str], list[float]]
"""By what is counted, the host at which is written, and the host of which it is the process."""


def spent(pid: int) -> Counter[str]:
    """What the kernel has counted of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks_us = US_PER_S / os.sysconf("SC_CLK_TCK")
    switches = [
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    ]
    return Counter(
        {
            USER: int(int(fields[14 - 3]) * ticks_us),  # utime and stime, proc(5)
            KERNEL: int(int(fields[15 - 3]) * ticks_us),
            SWITCHES: sum(switches),
        }
    )


def calls_in(summary: str) -> Counter[str]:
    """The calls that `strace -c` counted, by their names."""
    found = (_COUNTED.match(line) for line in summary.splitlines())
    return Counter({match[2]: int(match[1]) for match in found if match and match[2] != "total"})


@contextmanager
def traced(pid: int, summary: Path) -> Iterator[None]:
    """Count the system calls of a process; on return `summary` holds them."""
    command = ("strace", "-f", "-c", "-o", summary, "-p", str(pid))
    strace = Popen(command, stderr=DEVNULL)
    try:
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), TRACED_TIMEOUT_S, "strace")
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(TRACED_TIMEOUT_S)


def measure(directory: Path, scale: Scale) -> str:
    """Measure, and return the table."""
    found: Costs = defaultdict(list)
    with mounted(directory) as (hosts, seen):
        for system in seen.values():
            jobs.lay_out(system, scale)
        for _ in range(scale.rounds):
            for at, system in seen.items():
                _measure_once(found, at, system, hosts, scale)
        for at, system in seen.items():
            _count_calls(found, at, system, hosts, scale, directory)
    return table(found)


def _write(system: System, scale: Scale) -> int:
    """How many writes there were."""
    count: int = fio(system, scale, f"--runtime={scale.seconds:g}", *WRITE)["write"]["total_ios"]
    return count


def _measure_once(found: Costs, at: str, system: System, hosts: TwoHosts, scale: Scale) -> None:
    before = {host.pid: spent(host.pid) for host in hosts}
    writes = _write(system, scale)
    for name, host in zip(HOSTS, hosts, strict=True):
        now = spent(host.pid)
        for what in (USER, KERNEL, SWITCHES):
            found[what, at, name].append((now[what] - before[host.pid][what]) / writes)


def _count_calls(
    found: Costs, at: str, system: System, hosts: TwoHosts, scale: Scale, directory: Path
) -> None:
    for name, host in zip(HOSTS, hosts, strict=True):
        summary = directory / "calls"
        with traced(host.pid, summary):
            writes = _write(system, scale)
        for call, count in calls_in(summary.read_text()).items():
            found[call, at, name].append(count / writes)


def table(found: Costs) -> str:
    """One line for each thing that is counted; the calls by how many there are."""
    places = [(at, name) for at in HOSTS for name in HOSTS]
    medians = {key: statistics.median(values) for key, values in found.items()}

    def line(what: str) -> list[str]:
        return [what, *(f"{medians.get((what, *place), 0.0):.2f}" for place in places)]

    calls = {what for what, _, _ in found} - {USER, KERNEL, SWITCHES}
    most = {call: max(medians.get((call, *place), 0.0) for place in places) for call in calls}
    shown: Sequence[str] = sorted(
        (call for call in calls if most[call] >= CALLS_SHOWN), key=lambda call: -most[call]
    )
    total = [
        "system calls",
        *(f"{sum(medians.get((call, *place), 0.0) for call in calls):.2f}" for place in places),
    ]
    head = ["of one 4 KiB write", *(f"at the {at}: {name}" for at, name in places)]
    return "\n".join(aligned([head, line(USER), line(KERNEL), line(SWITCHES), total, *map(line, shown)]))
