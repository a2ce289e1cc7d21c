"""Who is an administrator and of which groups, as /proc tells it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusemirror.filesystem.callers import is_administrator, supplementary_groups

NOBODY, NO_PROCESS = 65_534, 0
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
CALLS_ITSELF = ("sh", "-c", 'printf %s "$0" > /proc/$$/comm && echo && read line')
WAITS = (sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()")


def is_one(uid: int) -> bool:
    """What is said of a process of that user."""
    with subprocess.Popen(WAITS, user=uid, group=uid, extra_groups=[], cwd="/", **PIPES) as process:
        assert process.stdin is not None
        assert process.stdout is not None
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


@contextlib.contextmanager
def called(name: bytes, **options: Any) -> Iterator[int]:
    """The process of a program that calls itself so."""
    with subprocess.Popen((*CALLS_ITSELF, name), cwd="/", **PIPES, **options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert Path(f"/proc/{process.pid}/comm").read_bytes() == name + b"\n"
        yield process.pid
        process.stdin.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process groups")
@pytest.mark.parametrize("name", [b"program", b"no text\xff", b"\rGroups:\t0"], ids=repr)
def test_the_groups_of_a_process_are_told_whatever_it_calls_itself(name: bytes) -> None:
    with called(name, group=7, extra_groups=[2000, 1234]) as pid:
        assert supplementary_groups(pid) == {2000, 1234}
    assert supplementary_groups(pid) == supplementary_groups(NO_PROCESS) == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_no_process_becomes_an_administrator_by_what_it_calls_itself() -> None:
    with called(b"\rCapEff:\t200000", user=NOBODY, group=NOBODY, extra_groups=[]) as pid:
        assert not is_administrator(NOBODY, pid)
