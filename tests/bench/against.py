"""The code of this checkout against that of a commit: the same jobs on both, in turn.

Each has two mounted hosts of its own, as they come, with TLS. A round runs a job on one and then on the
other, the next round the other way around, so that whatever else the machine does meets both alike. The
time of the processor is that of both mount processes together: it says what a write costs wherever the
scheduler puts it.
"""

import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import jobs, systems
from tests.bench.jobs import Job, Scale
from tests.bench.report import aligned
from tests.bench.systems import System, seen_from
from tests.hosts import CHECKOUT, TwoHosts, run

HERE = "this"
HOSTS = ("primary", "backup")
JOBS = ("randwrite", "randwrite4", "fsync", "write", "randread", "files")


@contextmanager
def code_of(commit: str, directory: Path) -> Iterator[Path]:
    """A checkout of a commit, which lasts as long as the context."""
    checkout = directory / "against"
    git = ("git", "-C", CHECKOUT, "worktree")
    run(*git, "add", "--detach", checkout, commit)
    try:
        yield checkout
    finally:
        run(*git, "remove", "--force", checkout, expect=None)
        shutil.rmtree(checkout, ignore_errors=True)


@contextmanager
def mounted(directory: Path, checkout: Path = CHECKOUT) -> Iterator[tuple[TwoHosts, dict[str, System]]]:
    """Two mounted hosts, each seen as a system to which the processes of both belong."""
    with TwoHosts(directory, checkout) as hosts:
        hosts.create_and_join()
        hosts.mount()

        def pids() -> list[int]:
            return [host.pid for host in hosts]

        seen = {
            name: seen_from(host, other, name)
            for name, host, other in zip(HOSTS, hosts, reversed(hosts.hosts), strict=True)
        }
        yield hosts, {name: replace(system, pids=pids) for name, system in seen.items()}
        hosts.umount()


@dataclass
class Compared:
    """What every round found, by figure, host and code."""

    commit: str
    values: dict[tuple[str, str, str], list[float]]

    def table(self, selected: Sequence[Job]) -> str:
        """Medians, and the median of what the rounds found as ratios, with the lowest and the highest."""
        rows = [["both hosts together", "at the", "", HERE, self.commit, "ratio", "lowest", "highest"]]
        for job in selected:
            for figure in job.figures:
                for host in HOSTS:
                    ours, theirs = (self.values[figure.key, host, code] for code in (HERE, self.commit))
                    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
                    medians = [f"{statistics.median(values):,.0f}" for values in (ours, theirs)]
                    shown = [f"{f(ratios):.2f}" for f in (statistics.median, min, max)]
                    rows.append([figure.title, host, figure.unit, *medians, *shown])
        return "\n".join(aligned(rows))


def measure(
    directory: Path, selected: Sequence[Job], scale: Scale, commit: str, *, pinned: bool = False
) -> Compared:
    """Run every job on each host of both, in turn."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        checkout = stack.enter_context(code_of(commit, directory))
        mounts = {
            code: stack.enter_context(mounted(directory, place))[1]
            for code, place in ((HERE, CHECKOUT), (commit, checkout))
        }
        for pair in mounts.values():
            for system in pair.values():
                jobs.lay_out(system, scale)
        for job in selected:
            for number in range(scale.rounds):
                for host in HOSTS:
                    for code in sorted(mounts, reverse=bool(number % 2)):
                        system = mounts[code][host]
                        for key, value in job.run(
                            systems.pinned(system) if pinned else system, scale
                        ).items():
                            found[key, host, code].append(value)
    return Compared(commit, found)
