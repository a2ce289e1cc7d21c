"""Whether a program is being killed, by its files in procfs: real ones, and as they are in rare moments."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fusemirror.kernel.callers import is_dying, is_held_up, locks_as_open_file


def write(proc: Path, *, pending: int = 0, flags: int = 0, exit_code: int = 0, state: str = "S") -> None:
    thread = proc / "7"
    thread.mkdir()
    fields = ["0"] * 50
    fields[0], fields[6], fields[28], fields[49] = state, str(flags), str(pending), str(exit_code)
    (thread / "stat").write_text(f"7 (a) b) {' '.join(fields)}\n")


GROUPS = 65_536  # NGROUPS_MAX
KILL, CHILD = 1 << (signal.SIGKILL - 1), 1 << (signal.SIGCHLD - 1)


@pytest.mark.parametrize(
    ("found", "dying"),
    [
        ({}, False),
        ({"pending": KILL}, True),
        ({"pending": CHILD}, False),
        ({"flags": 4, "exit_code": signal.SIGKILL}, True),
        ({"flags": 4, "exit_code": 1 << 8}, False),
        ({"exit_code": signal.SIGKILL}, False),
    ],
    ids=["at work", "killed", "a child", "exits killed", "exits", "not at its end"],
)
def test_a_thread(found: dict[str, Any], dying: bool, tmp_path: Path) -> None:
    write(tmp_path, **found)
    assert is_dying(7, tmp_path) is dying


def test_one_that_cannot_be_seen_is_not_dying(tmp_path: Path) -> None:
    assert not is_dying(8, tmp_path)
    assert not is_dying(0)


def test_real_programs() -> None:
    assert not is_dying(os.getpid())
    stopped = subprocess.Popen(["sleep", "60"])
    try:
        assert not is_dying(stopped.pid)
    finally:
        stopped.kill()
    os.waitid(os.P_PID, stopped.pid, os.WEXITED | os.WNOWAIT)
    assert is_dying(stopped.pid)
    stopped.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process groups")
def test_a_thread_with_very_many_groups_takes_no_longer() -> None:
    """Anybody who has a user namespace with so many can make 512 threads of it wait for locks."""
    program = [sys.executable, "-c", f"import os; os.setgroups(range({GROUPS})); print(flush=True); input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()
        took_s = []
        for _ in range(10):
            begun_s = time.perf_counter()
            assert not is_dying(running.pid)
            took_s.append(time.perf_counter() - begun_s)
        running.stdin.write(b"\n")
    assert min(took_s) < 0.001


def test_a_program_names_itself(tmp_path: Path) -> None:
    write(tmp_path)
    stat = tmp_path / "7" / "stat"
    stat.write_bytes(stat.read_bytes().replace(b"a)", b") \r\xff 256"))
    assert not is_dying(7, tmp_path)


@pytest.mark.parametrize(("state", "held_up"), [("D", True), ("R", False), ("S", False)])
def test_a_thread_that_waits_in_the_kernel(state: str, held_up: bool, tmp_path: Path) -> None:
    write(tmp_path, state=state)
    assert is_held_up(7, tmp_path) is held_up


def test_one_that_cannot_be_seen_may_wait() -> None:
    assert not is_held_up(threading.get_native_id())
    assert is_held_up(0)


@pytest.mark.parametrize(
    ("call", "as_open_file"),
    [
        (b"72 0x3 0x26 0x7ffc 0x0 0x0 0x0 0x7ffd 0x7ffe", True),
        (b"72 0x3 0x7 0x7ffc 0x0 0x0 0x0 0x7ffd 0x7ffe", False),
        (b"running", False),
        (b"", False),
    ],
    ids=["F_OFD_SETLKW", "F_SETLKW", "running", "gone"],
)
def test_whose_lock_a_thread_wants(call: bytes, as_open_file: bool, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "syscall").write_bytes(call + b"\n")
    assert locks_as_open_file(7, tmp_path) is as_open_file
    assert not locks_as_open_file(8, tmp_path)
