"""The jobs: what is asked of every system, and what one answer is.

The fio jobs use plain synchronous calls, no O_DIRECT and the same files on every system. Each pass
of a read starts with the page cache dropped for the file, so that what is measured is the system and
not the kernel's memory of what it served before.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from tests.bench.systems import System

FILES_MAX = 4
US_PER_S = 1_000_000
MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How long and how large: `FULL` for figures to quote, `QUICK` to see that all works."""

    seconds: float
    file_bytes: int
    small_files: int
    rounds: int
    copied_mib: int


FULL = Scale(seconds=2.5, file_bytes=128 * MIB, small_files=2_000, rounds=3, copied_mib=1024)
QUICK = Scale(seconds=1.5, file_bytes=32 * MIB, small_files=2_000, rounds=1, copied_mib=64)


@dataclass(frozen=True)
class Figure:
    """A line of the table. `floors`: the least ratio to GlusterFS that each host must reach."""

    key: str
    title: str
    unit: str
    floors: dict[str, float]


class Job(Protocol):
    """What is run at one go, and the figures that come of it."""

    @property
    def figures(self) -> tuple[Figure, ...]: ...

    def run(self, system: System, scale: Scale) -> dict[str, float]: ...


def processor_of(figure: Figure) -> Figure:
    """What the system itself takes for each of what `figure` counts, in its own process.

    The steadiest figure of all: it does not depend on what else the machine does meanwhile.
    """
    return Figure(f"{figure.key}-processor", f"{figure.title}: processor", "us", {})


def processor_s(system: System) -> float:
    """How long the processor has worked for the processes of the system, the kernel's work for them too."""
    total = 0
    for pid in system.pids():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[14 - 3]) + int(fields[15 - 3])  # utime and stime, proc(5)
    return total / os.sysconf("SC_CLK_TCK")


class FioJob:
    """A run of fio on `files` files at once, each with a process of its own."""

    def __init__(self, figure: Figure, *options: str, files: int = 1, processor: bool = False) -> None:
        self.figures = (figure, processor_of(figure)) if processor else (figure,)
        self._options = (*options, f"--numjobs={files}")

    def run(self, system: System, scale: Scale) -> dict[str, float]:
        figure, before_s = self.figures[0], processor_s(system)
        found = fio(system, scale, f"--runtime={scale.seconds:g}", *self._options)
        side = found["write"] if found["write"]["total_ios"] else found["read"]
        values = {figure.key: side["bw_bytes"] / MIB if figure.unit == "MiB/s" else side["iops"]}
        for measured in self.figures[1:]:
            values[measured.key] = (processor_s(system) - before_s) / side["total_ios"] * US_PER_S
        return values


def fio(system: System, scale: Scale, *options: str) -> dict[str, Any]:
    """Run fio in the system's directory; the numbers of all its processes together."""
    common = ("--name=bench", "--filename_format=data.$jobnum", "--group_reporting", "--output-format=json")
    engine = ("--ioengine=psync", "--fallocate=none", f"--size={scale.file_bytes}")
    # What fio keeps of a run that is broken off would else be left, root's own, where the bench was started.
    with TemporaryDirectory(prefix="fusemirror-fio-") as own:
        left = ("--verify_state_save=0", f"--aux-path={own}")
        result = system.run("fio", f"--directory={system.directory}", *left, *common, *engine, *options)
    job: dict[str, Any] = json.loads(result.stdout)["jobs"][0]
    assert not job["error"], f"{system.name}: fio failed with {job['error']}"
    return job


def lay_out(system: System, scale: Scale) -> None:
    """Write every file once, so that no job is the first to touch a block."""
    fio(system, scale, "--rw=write", "--bs=1M", f"--numjobs={FILES_MAX}")


class SmallFiles:
    """Many small files made, looked at twice and deleted by `files.py`.

    Between making and looking they come to rest, and the kernel forgets them, on every system alike: the
    first look is cold, and the second finds what the kernel may keep of it.
    """

    figures = (
        Figure("create", "small files: create", "/s", {"primary": 3.0, "backup": 3.0}),
        Figure("stat", "small files: stat, cold", "/s", {}),
        Figure("restat", "small files: stat again", "/s", {"primary": 5.0, "backup": 5.0}),
        Figure("delete", "small files: delete", "/s", {}),
    )

    def run(self, system: System, scale: Scale) -> dict[str, float]:
        return small_files(system, scale.small_files, "create", "rest", "stat", "restat", "delete")


def small_files(system: System, count: int, *phases: str) -> dict[str, float]:
    """Files per second of each phase of `files.py`."""
    program = Path(__file__).with_name("files.py")
    result = system.run(sys.executable, program, system.directory / "small", str(count), *phases)
    rates: dict[str, float] = json.loads(result.stdout)
    return rates


class CallJob:
    """One call again and again on one file, made by `calls.py`."""

    def __init__(self, figure: Figure) -> None:
        self.figures = (figure, processor_of(figure))

    def run(self, system: System, scale: Scale) -> dict[str, float]:
        (figure, processor), before_s = self.figures, processor_s(system)
        program = Path(__file__).with_name("calls.py")
        seconds = f"{scale.seconds:g}"
        result = system.run(sys.executable, program, system.directory / "called", seconds, figure.key)
        rate = json.loads(result.stdout)[figure.key]
        taken_s = processor_s(system) - before_s
        return {figure.key: rate, processor.key: taken_s / (rate * scale.seconds) * US_PER_S}


class Handing:
    """A lock that one host hands to the other, and back, by `handing.py`."""

    figures = (Figure("handing", "flock handed to the other host", "/s", {}),)

    def run(self, system: System, scale: Scale) -> dict[str, float]:
        program, file = Path(__file__).with_name("handing.py"), "handed"
        other = system.other_directory or system.directory
        seconds = f"{scale.seconds:g}"
        result = system.run(sys.executable, program, seconds, system.directory / file, other / file)
        return {self.figures[0].key: float(result.stdout)}


class Space:
    """cp(1) of a large file and of many small ones, and room that is given and taken, by `space.py`."""

    figures = (
        Figure("copy", "cp of a large file", "MiB/s", {}),
        Figure("copy-files", "cp of small files", "/s", {}),
        Figure("allocate", "fallocate in steps of 1 MiB", "MiB/s", {}),
        Figure("punch", "punch in steps of 1 MiB", "MiB/s", {}),
    )

    def run(self, system: System, scale: Scale) -> dict[str, float]:
        program, place = Path(__file__).with_name("space.py"), system.directory / "space"
        sizes = (str(scale.copied_mib), str(scale.small_files))
        rates: dict[str, float] = json.loads(system.run(sys.executable, program, place, *sizes).stdout)
        return rates


WRITE = ("--rw=randwrite", "--bs=4k", "--time_based")
READ = ("--rw=randread", "--bs=4k", "--loops=100000")
FLOORS_OF_WRITES = {"primary": 1.5, "backup": 1.0}

JOBS: dict[str, Job] = {
    "randwrite": FioJob(
        Figure("randwrite", "4 KiB random write, 1 file", "/s", FLOORS_OF_WRITES), *WRITE, processor=True
    ),
    "randwrite4": FioJob(
        Figure("randwrite4", "4 KiB random write, 4 files", "/s", FLOORS_OF_WRITES), *WRITE, files=4
    ),
    "randread": FioJob(Figure("randread", "4 KiB random read, 1 file", "/s", {}), *READ, processor=True),
    "randread4": FioJob(Figure("randread4", "4 KiB random read, 4 files", "/s", {}), *READ, files=4),
    "fsync": FioJob(Figure("fsync", "4 KiB write + fsync", "/s", {}), *WRITE, "--fsync=1", processor=True),
    "write": FioJob(
        Figure("write", "1 MiB sequential write", "MiB/s", {"primary": 2.0, "backup": 2.0}),
        *("--rw=write", "--bs=1M", "--time_based"),
        processor=True,
    ),
    "read": FioJob(
        Figure("read", "1 MiB sequential read", "MiB/s", {}), "--rw=read", "--bs=1M", "--loops=100000"
    ),
    "getattr": CallJob(Figure("getattr", "attributes asked for", "/s", {})),
    "open": CallJob(Figure("open", "open and close", "/s", {})),
    "lock": CallJob(Figure("lock", "flock and unlock", "/s", {})),
    "handing": Handing(),
    "files": SmallFiles(),
    "space": Space(),
    # After the small files: what changed a moment ago is not read through the page cache.
    "reread": FioJob(
        Figure("reread", "4 KiB random read, cached", "/s", {"primary": 20.0, "backup": 20.0}),
        *("--rw=randread", "--bs=4k", "--time_based", "--invalidate=0", "--pre_read=1"),
    ),
}
