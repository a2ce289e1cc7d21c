"""The modes by job: each on two hosts of its own, all measured in turn, as ratios to synchronous routed."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import jobs
from tests.bench.jobs import Job, Scale
from tests.bench.report import aligned
from tests.bench.systems import System, seen_from
from tests.hosts import TwoHosts

REFERENCE = "sync"
MODES: dict[str, dict[str, str]] = {
    REFERENCE: {},
    "exclusive": {"access": "exclusive"},
    "async lmdb": {"acknowledge": "async"},
    "async subvolume": {"acknowledge": "async", "communication": "subvolume"},
    "async memory": {"acknowledge": "async", "communication": "memory"},
}
"""Settings of both hosts; what is not named is as it comes."""

JOBS = ("randwrite", "randwrite4", "fsync", "write", "randread", "files")
HOSTS = ("primary", "backup")

Values = dict[tuple[str, str, str], float]
"""By figure, host and mode."""


@contextmanager
def mounted(directory: Path, mode: str) -> Iterator[dict[str, System]]:
    """Two mounted hosts in one mode, each seen as a system."""
    with TwoHosts(directory) as hosts:
        hosts.create_and_join(**MODES[mode])
        hosts.mount()
        yield {"primary": seen_from(hosts.primary, "primary"), "backup": seen_from(hosts.backup, "backup")}
        hosts.umount()


def measure(directory: Path, selected: Sequence[Job], scale: Scale) -> Values:
    """The medians of all figures."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        systems = {mode: stack.enter_context(mounted(directory, mode)) for mode in MODES}
        for pair in systems.values():
            for system in pair.values():
                jobs.lay_out(system, scale)
        for job in selected:
            for _ in range(scale.rounds):
                for host in HOSTS:
                    for mode, pair in systems.items():
                        for key, value in job.run(pair[host], scale).items():
                            found[key, host, mode].append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def table(values: Values, selected: Sequence[Job]) -> str:
    """Figures of the reference, and the other modes as ratios to it."""
    others = [mode for mode in MODES if mode != REFERENCE]
    rows = [["modes by job", "at the", "", REFERENCE, *(f"{mode} / {REFERENCE}" for mode in others)]]
    for job in selected:
        for figure in job.figures:
            for host in HOSTS:
                base = values[figure.key, host, REFERENCE]
                ratios = [f"{values[figure.key, host, mode] / base:.2f}" for mode in others]
                rows.append([figure.title, host, figure.unit, f"{base:,.0f}", *ratios])
    return "\n".join(aligned(rows))
