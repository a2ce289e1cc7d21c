"""The model agrees with a local filesystem, and knows what a history of names may be."""

import errno
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, wait_until
from tests.linearizability.history import Operation
from tests.linearizability.model import parts, violations
from tests.linearizability.worker import read_record

TMPFS = Path("/dev/shm")  # gives no inode number twice
LINES = 4_000


def told(call: str, *names: str, at: int, result: int | None = None, error: int = 0) -> Operation:
    return Operation("p", call, names, at, at + 1, result, error)


def doubt(call: str, *names: str, at: int) -> Operation:
    return Operation("p", call, names, at)


CREATED = told("create", "a", at=0, result=7)

RIGHT: dict[str, Sequence[Operation]] = {
    "a file keeps its number": [
        CREATED,
        told("rename", "a", "b", at=2),
        told("lookup", "b", at=4, result=7),
        told("lookup", "a", at=6, error=errno.ENOENT),
    ],
    "a creation in doubt is seen later": [
        doubt("create", "a", at=0),
        told("create", "a", at=2, error=errno.EEXIST),
        told("rename", "a", "b", at=4),
        told("lookup", "b", at=6, result=7),
        told("lookup", "b", at=8, result=7),
    ],
    "a creation in doubt comes after an unlink": [
        CREATED,
        doubt("create", "a", at=2),
        told("unlink", "a", at=4),
        told("lookup", "a", at=6, result=8),
    ],
    "whoever opens or creates need not know which": [
        told("open_or_create", "a", at=0, result=7),
        told("open_or_create", "a", at=2, result=7),
        told("unlink", "a", at=4),
        told("open_or_create", "a", at=6, result=8),
    ],
    "a rename finds one file under both names": [
        CREATED,
        Operation("p", "rename", ("a", "b"), 2, 10),
        Operation("q", "rename", ("a", "b"), 3, 9),
    ],
}

WRONG: dict[str, Sequence[Operation]] = {
    "two exclusive creations": [CREATED, told("create", "a", at=2, result=8)],
    "one number for two files": [CREATED, told("create", "b", at=2, result=7)],
    "an unlinked name that is still there": [
        CREATED,
        told("unlink", "a", at=2),
        told("lookup", "a", at=4, result=7),
    ],
    "a rename that left the old name": [
        CREATED,
        told("rename", "a", "b", at=2),
        told("lookup", "a", at=4, result=7),
    ],
    "an exclusive creation refused without reason": [told("create", "a", at=0, error=errno.EEXIST)],
    "a rename of what had been renamed long before": [
        CREATED,
        told("rename", "a", "b", at=2),
        told("rename", "a", "b", at=4),
    ],
    "one creation in doubt, two files": [
        doubt("create", "a", at=0),
        told("lookup", "a", at=2, result=7),
        told("lookup", "a", at=4, result=8),
    ],
    "a request that took effect twice": [
        CREATED,
        doubt("unlink", "a", at=2),
        told("lookup", "a", at=4, error=errno.ENOENT),
        told("create", "a", at=6, result=8),
        told("lookup", "a", at=8, error=errno.ENOENT),
    ],
}


@pytest.mark.parametrize("history", RIGHT.values(), ids=RIGHT)
def test_what_a_filesystem_may_tell_of_names_is_accepted(history: Sequence[Operation]) -> None:
    assert not violations(history)


@pytest.mark.parametrize("history", WRONG.values(), ids=WRONG)
def test_what_no_filesystem_tells_of_names_is_refused(history: Sequence[Operation]) -> None:
    assert list(violations(history)) == ["names"]


@pytest.mark.skipif(not TMPFS.is_dir(), reason="no tmpfs at /dev/shm")
@pytest.mark.parametrize("processes", [1, 4])
def test_a_local_filesystem_fits_the_model(tmp_path: Path, processes: int) -> None:
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        history = _recorded(directory, tmp_path, processes)
    found = violations(history)
    if processes > 1:
        # Linux writes a page at a time under a read of several; the mirrored filesystem does not.
        found = {key: failure for key, failure in found.items() if key == "names"}
    assert not found
    assert len(parts(history)) > 10


def _recorded(directory: str, control: Path, processes: int) -> list[Operation]:
    """What so many processes were told in a directory of this machine."""
    command = (sys.executable, "-m", "tests.linearizability.worker", directory, control)
    records = [control / f"record-{number}" for number in range(1, processes + 1)]
    working = [
        subprocess.Popen([*command, str(number), "1"], cwd=CHECKOUT) for number in range(1, processes + 1)
    ]
    wait_until(lambda: _lines(records) >= LINES, 60, "calls")
    (control / "stop").touch()
    assert [process.wait(60) for process in working] == [0] * processes
    return [each for record in records for each in read_record(record.name, record)]


def _lines(records: Sequence[Path]) -> int:
    return sum(record.read_bytes().count(b"\n") for record in records if record.exists())
