"""bin/bench: fusemirror, the least that a mirror costs, and GlusterFS, measured in turn on this machine.

Every job is run on one system after the other before the next job begins, so that whatever else the
machine does meets them alike. Only the ratios within one run mean anything.
"""

import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import click
from tqdm import tqdm

from fusemirror.settings import KernelSession
from tests.bench import against, jobs, modes, profile, scaling, systems
from tests.bench.jobs import Job, Scale
from tests.bench.memory import watched
from tests.bench.report import Report
from tests.bench.systems import System
from tests.hosts import unwind_on_sigterm, what_is_missing

OWN_SYSTEMS = (
    "primary",
    "backup",
    "passthrough",
    "passthrough-own",
    "bare-mirror",
    "bare-mirror-tls",
    "bare-mirror-tls-here-first",
    "limit",
)
OTHER_SESSION = ("primary-pyfuse3", "backup-pyfuse3")
"""fusemirror under pyfuse3's loop; measured only where it is named."""
PEERS: dict[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "glusterfs": ({}, ()),
    "glusterfs-sync": (systems.NO_WRITE_BEHIND, ()),
    "glusterfs-strict": (systems.STRICT, systems.STRICT_MOUNT),
}
"""What GlusterFS is measured with: settings of its volume, and options of its mount."""


def names_of(allowed: Iterable[str]) -> "click.Choice[str]":
    return click.Choice(list(allowed))


@click.command()
@click.option(
    "--peers",
    is_flag=True,
    help="GlusterFS too: as it comes, without write-behind, and as coherent as fusemirror.",
)
@click.option("--quick", is_flag=True, help="One short round, to see that all works.")
@click.option(
    "--pinned",
    is_flag=True,
    help="Each host on a core of its own, the programs beside the host that they use; the spread is shown.",
)
@click.option(
    "--rounds", type=int, help="Rounds of each job, of which the median counts (default: 3; quick: 1)."
)
@click.option("--jobs", "chosen", multiple=True, type=names_of(jobs.JOBS), help="Only this job; repeatable.")
@click.option(
    "--system",
    "wanted",
    multiple=True,
    type=names_of((*OWN_SYSTEMS, *OTHER_SESSION, *PEERS)),
    help="Only this system; repeatable.",
)
@click.option("--memory", is_flag=True, help="Instead: memory with 100,000 files made and looked at.")
@click.option("--million", is_flag=True, help="Instead: start-up and lookups with 1,000,000 files.")
@click.option(
    "--against",
    "commit",
    metavar="COMMIT",
    help="Instead: this code and that of a commit in turn, with the processor time of both hosts together.",
)
@click.option(
    "--profile", "profiled", is_flag=True, help="Instead: what a 4 KiB write costs, by host and part."
)
@click.option("--modes", "by_mode", is_flag=True, help="Instead: the modes, as ratios to synchronous.")
@click.option(
    "--round-trip",
    "round_trip_ms",
    type=click.FloatRange(0, 1000),
    default=0.0,
    metavar="MS",
    help="With --modes: the hosts are so far apart (default: 0, joined directly).",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all here.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Keep all volumes below this directory, whose disk is then measured (default: /tmp's).",
)
def main(
    peers: bool,
    quick: bool,
    pinned: bool,
    rounds: int | None,
    chosen: tuple[str, ...],
    wanted: tuple[str, ...],
    memory: bool,
    million: bool,
    commit: str | None,
    profiled: bool,
    by_mode: bool,
    round_trip_ms: float,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    """Measure fusemirror in sync mode from the primary and from the backup, and what it competes with."""
    if missing := what_is_missing():
        print(f"fusemirror: {missing}", file=sys.stderr)
        sys.exit(4)
    unwind_on_sigterm()
    names = wanted or (*OWN_SYSTEMS, *(PEERS if peers else ()))
    if "limit" in names and (why := systems.limit_is_missing()):
        print(f"bench: without `limit`, a mirror in C: {why}", file=sys.stderr)
        names = tuple(name for name in names if name != "limit")
    scale = jobs.QUICK if quick else jobs.FULL
    if rounds is not None:
        scale = replace(scale, rounds=rounds)
    with tempfile.TemporaryDirectory(prefix="fusemirror-", dir=directory) as base:
        if memory or million:
            found = scaling.memory_of_many(Path(base)) if memory else scaling.start_up(Path(base))
            show(found, json_file)
            return
        if profiled:
            print(profile.measure(Path(base), scale))
            return
        if commit is not None:
            selected = [jobs.JOBS[name] for name in chosen or against.JOBS]
            print(against.measure(Path(base), selected, scale, commit, pinned=pinned).table(selected))
            return
        if by_mode:
            selected = [jobs.JOBS[name] for name in chosen or modes.JOBS]
            print(modes.measure(Path(base), selected, scale, round_trip_ms).table(selected))
            return
        selected = [jobs.JOBS[name] for name in chosen or jobs.JOBS]
        report = measure(Path(base), names, selected, scale, pinned=pinned)
    print(report.table())
    if json_file is not None:
        report.write_json(json_file)


def show(found: scaling.Findings, json_file: Path | None) -> None:
    for what, value in found.items():
        print(f"{what:<44}{value:>12,.1f}")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def measure(
    base: Path, names: Iterable[str], selected: list[Job], scale: Scale, *, pinned: bool = False
) -> Report:
    """Run every job on every system that is named, the systems in turn within each job."""
    with ExitStack() as stack:
        measured = list(mounted(stack, base, set(names)))
        report = Report([system.name for system in measured], scale=asdict(scale))
        turns = [(job, system) for job in selected for _ in range(scale.rounds) for system in measured]
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for system in measured:
            jobs.lay_out(system, scale)
        for job, system in tqdm(turns, disable=None, unit="job", leave=False):
            with watched(system, job.figures[0].key, report.memory):
                values = job.run(systems.pinned(system) if pinned else system, scale)
            for key, value in values.items():
                found[key, system.name].append(value)
        report.figures = [figure for job in selected for figure in job.figures]
        report.values = {key: statistics.median(values) for key, values in found.items()}
        if pinned:
            report.spread = {key: (min(values), max(values)) for key, values in found.items()}
    return report


def mounted(stack: ExitStack, base: Path, names: set[str]) -> Iterable[System]:
    """Mount the systems that are named; the stack undoes it."""
    if names & {"primary", "backup"}:
        pair = stack.enter_context(systems.fusemirror(base))
        yield from (system for system in pair if system.name in names)
    if names & {*OTHER_SESSION}:
        pair = stack.enter_context(systems.fusemirror(base, KernelSession.PYFUSE3))
        yield from (system for system in pair if system.name in names)
    if "passthrough" in names:
        yield stack.enter_context(systems.passthrough(base, own_session=False))
    if "passthrough-own" in names:
        yield stack.enter_context(systems.passthrough(base, own_session=True))
    for name in ("bare-mirror", "bare-mirror-tls", "bare-mirror-tls-here-first"):
        if name in names:
            here_first = name.endswith("-here-first")
            yield stack.enter_context(systems.bare_mirror(base, tls="-tls" in name, here_first=here_first))
    if "limit" in names:
        yield stack.enter_context(systems.limit(base))
    for name in filter(names.__contains__, PEERS):
        yield stack.enter_context(systems.glusterfs(base, name, *PEERS[name]))


if __name__ == "__main__":
    main(prog_name="bin/bench")
