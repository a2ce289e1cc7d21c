"""Who is an administrator, as /proc tells it."""

import os
import subprocess
import sys

import pytest

from fusemirror.filesystem.callers import is_administrator

NOBODY, NO_PROCESS = 65_534, 0
WAITS = (sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()")


def is_one(uid: int) -> bool:
    """What is said of a process of that user."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(WAITS, user=uid, group=uid, extra_groups=[], cwd="/", **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        found = is_administrator(uid, process.pid)
        process.stdin.close()
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_process_is_one_by_its_capability() -> None:
    assert is_one(0)


def test_of_a_process_that_is_not_there_the_user_decides() -> None:
    assert is_administrator(0, NO_PROCESS)
    assert not is_administrator(NOBODY, NO_PROCESS)
