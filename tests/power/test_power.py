"""Power loss by record and replay: every state that a cut could leave of a volume is opened and looked at.

By default the workloads and the moments of the cut are a sample. All of them:
FUSEMIRROR_POWER_POINTS=all, and FUSEMIRROR_POWER_OPERATIONS=3 for longer workloads, FUSEMIRROR_POWER_SEED for
others. Source of the habit: CrashMonkey.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fusemirror.errors import VolumeMissing
from fusemirror.identifiers import InodeNumber
from fusemirror.volume import check as check_module
from fusemirror.volume.check import check
from fusemirror.volume.identity import Shutdown, boot_id
from fusemirror.volume.probe import walk
from fusemirror.volume.region_set import RegionSet
from fusemirror.volume.volume import Volume
from tests.power.disk import CALLS, Call, Disk, Keep, calls
from tests.power.workloads import Names, names_of
from tests.volume.conftest import counting_seams

CHECKOUT = Path(__file__).resolve().parents[2]
ALL = os.environ.get("FUSEMIRROR_POWER_POINTS") == "all"
OPERATIONS = int(os.environ.get("FUSEMIRROR_POWER_OPERATIONS", "2"))
SEED = os.environ.get("FUSEMIRROR_POWER_SEED", "1")
WORKLOADS = 1_000_000 if ALL else 80
CUTS = 1_000_000_000 if ALL else 2500
RANDOM_STEPS = 1000 if ALL else 150
OTHER_BOOT = "another boot".ljust(36).encode()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory where there is one: what is durable is for the model to say."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is walked in this process: a process for each of thousands takes minutes."""

    def is_readable(directory: Path) -> bool:
        walk(str(directory))
        return True

    monkeypatch.setattr(check_module, "is_readable", is_readable)


@dataclass
class Known:
    """What the lines of a workload say up to some moment."""

    created: bool = False
    opened: bool = False
    closing: dict[str, Any] | None = None
    history: list[Names] = field(default_factory=list)
    names_durable: int = 0
    contents: dict[InodeNumber, bytes] = field(default_factory=dict)
    open_from: dict[InodeNumber, list[tuple[int, int | None]]] = field(default_factory=dict)
    """Ranges of what was durable that changed since, or may have."""

    def learn(self, line: bytes) -> None:
        found = json.loads(line)
        mark = found["mark"]
        if mark == "created":
            self.created = True
        elif mark == "opened":
            self.opened = True
        elif mark == "data":
            self.open_from.setdefault(InodeNumber(found["inode"]), []).append((found["start"], found["end"]))
        elif mark == "closing":
            self.closing = found
        if "names" in found:
            self.history.append(found["names"])
        if mark == "durable":
            self.names_durable = len(self.history) - 1
            for number, content in _contents(found).items():
                self.contents[number] = content
                self.open_from[number] = []


def _contents(found: dict[str, Any]) -> dict[InodeNumber, bytes]:
    return {InodeNumber(int(number)): bytes.fromhex(content) for number, content in found["contents"].items()}


def record(
    place: Path, *, workloads: int, steps: int, operations: int = OPERATIONS, broken: str = ""
) -> Path:
    """The trace of a process that goes through the workloads, in directories below place/work."""
    work, trace = place / "work", place / "trace"
    work.mkdir()
    tracing = ("strace", "-f", "-z", "-y", "-xx", "-s", "2000000", "-e", "signal=none", "-e", CALLS)
    program = (sys.executable, "-m", "tests.power.workloads", str(work), SEED, str(operations))
    done = subprocess.run(
        (*tracing, "-o", str(trace), *program, str(workloads), str(steps), broken),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    return trace


def split(place: Path, trace: Path) -> dict[str, list[Call]]:
    """The calls of each workload."""
    found: dict[str, list[Call]] = {}
    prefix = f"{place / 'work'}/"
    for call in calls(trace, place / "work"):
        name = call.paths[0].removeprefix(prefix).partition("/")[0]
        found.setdefault(name, []).append(call)
    return found


def cut_at_all(place: Path, trace: Path, cuts: int) -> tuple[int, list[str]]:
    """Cut the power at moments of all workloads, about so many; how many there were, and what was wrong."""
    workloads = split(place, trace)
    total = sum(len(recorded) for recorded in workloads.values()) * len(Keep)
    done, wrong = 0, []
    for name, recorded in workloads.items():
        choose = random.Random(f"{SEED}/{name}")
        for moment, keep, problem in _cuts(place, name, recorded, choose, cuts / total):
            done += 1
            if problem:
                wrong.append(f"{name}, call {moment}, keeping {keep.value}: {problem}")
    return done, wrong


def _cuts(
    place: Path, name: str, recorded: list[Call], choose: random.Random, share: float
) -> Iterator[tuple[int, Keep, str]]:
    directory = place / "work" / name
    histories = Known()  # of the whole workload
    for call in recorded:
        if call.name == "write" and call.paths[0] == str(directory / "marks"):
            histories.learn(call.data)
    known = Known()
    disk = Disk(directory / "volume")
    for moment, call in enumerate(recorded):
        if call.paths[0] == str(directory / "marks"):
            if call.name == "write":
                known.learn(call.data)
        elif call.paths[0] == str(directory) or not disk.do(call):
            continue
        for keep in Keep:
            if choose.random() < share:
                left = place / "left"
                disk.leave(left, keep, choose)
                yield moment, keep, _problem(left, known, histories.history)
                shutil.rmtree(left)


def _problem(left: Path, known: Known, history: list[Names]) -> str:
    """What is wrong with a volume after a power cut; empty where nothing is."""
    try:
        look_at(left, known, history)
    except Exception as error:  # noqa: BLE001  # every one of them is a finding
        return f"{type(error).__name__}: {error}"[:2000]
    return ""


def look_at(left: Path, known: Known, history: list[Names]) -> None:
    """Open what a cut left, compare it with what is known, and check it."""
    state_file = left / "state.json"
    if state_file.exists():
        state_file.write_bytes(state_file.read_bytes().replace(boot_id().encode(), OTHER_BOOT))
    clean = Shutdown.load(left).clean
    assert not clean or not known.opened or known.closing, "an open volume that says it was closed"
    try:
        volume = Volume.open(left, counting_seams())
    except VolumeMissing:
        assert not known.created, "a volume that was made is not there"
        return
    with closing(_Abandoning(volume)):
        assert clean or volume.identity.compare_all, "the peer would not compare"
        _compare_names(volume, known, history)
        _compare_contents(volume, known.contents, known.open_from)
        if clean and known.closing:
            _compare_contents(volume, _contents(known.closing), {})
            marks = volume.regions.marks()
            for number, ranges in known.closing["marks"].items():
                kept = marks.get(InodeNumber(int(number)), RegionSet())
                assert all(kept.covers(first, end) for first, end in ranges), f"marks of {number} lost"
    problems: list[str] = []
    check(left, repair=False, report=problems.append)
    assert not problems, problems


class _Abandoning:
    """Ends the use of a volume as a killed process does."""

    def __init__(self, volume: Volume) -> None:
        self.close = volume.abandon


def _compare_names(volume: Volume, known: Known, history: list[Names]) -> None:
    names = names_of(volume)
    reached = len(known.history)  # one more may have been begun
    if not known.opened:
        assert names == history[0]
        return
    possible = history[known.names_durable : reached + 1]
    if names in possible:
        return
    places = [place for place, older in enumerate(history) if older == names]
    raise AssertionError(
        f"names of state {places} of {len(history)}, but {known.names_durable} to {reached} may be: {names}"
    )


def _compare_contents(
    volume: Volume,
    contents: dict[InodeNumber, bytes],
    open_from: dict[InodeNumber, list[tuple[int, int | None]]],
) -> None:
    for number, content in contents.items():
        inode = volume.catalog.inode(number)
        if inode is None:
            continue  # purged, or the names would not be right
        found = volume.read(number, 0, 1 << 40)
        changed = open_from.get(number, [])
        fixed = bytearray(b"\1") * len(content)
        for start, end in changed:
            stop = len(content) if end is None else min(end, len(content))
            fixed[start:stop] = bytes(max(0, stop - start))
        pairs = enumerate(itertools.zip_longest(content, found[: len(content)]))
        wrong = [offset for offset, (old, new) in pairs if fixed[offset] and old != new]
        assert not wrong, f"inode {number}: {len(wrong)} durable bytes lost from {wrong[0]} on"
        assert changed or len(found) == len(content), f"inode {number}: {len(found)} bytes"


def test_after_a_power_cut_at_any_moment_a_volume_keeps_what_it_guaranteed(place: Path) -> None:
    trace = record(place, workloads=WORKLOADS, steps=RANDOM_STEPS)
    done, wrong = cut_at_all(place, trace, CUTS)
    assert done > 300
    assert not wrong, f"{len(wrong)} of {done} cuts:\n" + "\n".join(wrong[:20])


@pytest.mark.expects_warnings
@pytest.mark.parametrize("broken", ["journal", "images", "begun", "directories"])
def test_a_sync_that_is_left_out_is_found(place: Path, broken: str) -> None:
    trace = record(place, workloads=12, steps=40, operations=1, broken=broken)
    _, wrong = cut_at_all(place, trace, 400)
    assert wrong
