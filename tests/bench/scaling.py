"""What many files cost: memory, start-up and lookups."""

import os
import random
import stat
from pathlib import Path
from time import perf_counter

from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.operations import Create
from fusemirror.operations.draft import Draft
from fusemirror.volume.volume import Volume
from tests.bench import systems
from tests.bench.jobs import small_files
from tests.bench.memory import watched
from tests.bench.report import MIB, Memory
from tests.hosts import TwoHosts

FILES = 100_000
MANY_FILES = 1_000_000
FEW_FILES = 1_000
FILES_PER_DIRECTORY = 1_000
FILES_PER_TRIM = 20_000
LOOKUPS_S = 5.0
MOUNT_TIMEOUT_S = 300.0

Findings = dict[str, float]


def memory_of_many(directory: Path) -> Findings:
    """Files per second and peak memory of both mounts while 100,000 files are made and looked at."""
    peaks: list[Memory] = []
    with (
        systems.fusemirror(directory) as (primary, backup),
        watched(primary, "files", peaks),
        watched(backup, "files", peaks),
    ):
        rates = small_files(primary, FILES, "create", "stat")
        seen = sum(
            1 for path in (backup.directory.parent / "primary" / "small").iterdir() if path.stat().st_size
        )
        assert seen == FILES, f"the backup shows {seen:,} of {FILES:,} files"
    findings = {f"{phase}, files/s": rate for phase, rate in rates.items()}
    for peak in peaks:
        findings[f"{peak.system}, peak RSS, MiB"] = peak.peak_rss_bytes / MIB
        findings[f"{peak.system}, peak anonymous, MiB"] = peak.peak_rss_anon_bytes / MIB
    return findings


def start_up(directory: Path) -> Findings:
    """Seconds until a mount serves and lookups per second, with few files and with a million."""
    findings: Findings = {}
    for count in (FEW_FILES, MANY_FILES):
        with TwoHosts(directory) as hosts:
            hosts.create_and_join()
            fill(hosts.primary.volume, count)
            started = perf_counter()
            hosts.primary.mount(timeout_s=MOUNT_TIMEOUT_S)
            findings[f"{count:,} files: mounted after, s"] = perf_counter() - started
            findings[f"{count:,} files: lookups/s"] = lookups(hosts.primary.mountpoint, count)
            memory = hosts.primary.memory()
            findings[f"{count:,} files: RSS, MiB"] = memory["VmRSS"] / MIB
            findings[f"{count:,} files: anonymous, MiB"] = memory["RssAnon"] / MIB
            started = perf_counter()
            hosts.primary.umount(timeout_s=MOUNT_TIMEOUT_S)
            findings[f"{count:,} files: unmounted after, s"] = perf_counter() - started
    return findings


def fill(directory: Path, count: int) -> None:
    """Put empty files into a volume that is not mounted, as the primary would, without the kernel."""
    volume = Volume.open(directory)
    try:
        parent = ROOT_INODE
        for index in range(count):
            if index % FILES_PER_DIRECTORY == 0:
                parent = _create(volume, ROOT_INODE, index // FILES_PER_DIRECTORY, stat.S_IFDIR | 0o755)
            _create(volume, parent, index, stat.S_IFREG | 0o644)
            if index % FILES_PER_TRIM == 0:
                volume.syncing.trim(volume.number)
    finally:
        volume.close()


def _create(volume: Volume, parent: InodeNumber, name: int, mode: int) -> InodeNumber:
    number, time_ns = ChangeNumber(volume.number + 1), volume.clock.next_ns()
    made = Create(parent, b"%d" % name, mode, 0, 0).decide(Draft(volume.catalog, number, time_ns))
    assert made.change is not None
    volume.apply(made.change)
    return made.inode


def lookups(mountpoint: Path, count: int) -> float:
    """Files looked up per second, in no order; each is two requests of the kernel, for its directory too."""
    chosen = random.Random(count)
    done, started = 0, perf_counter()
    while (elapsed := perf_counter() - started) < LOOKUPS_S:
        index = chosen.randrange(count)
        os.stat(f"{mountpoint}/{index // FILES_PER_DIRECTORY}/{index}")
        done += 1
    return done / elapsed
