"""Signals to programs that wait for us: none of them is an error of a file, and those that kill do kill."""

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from fusemirror.kernel.codec import NS_PER_S
from tests.hosts import Host, TwoHosts, wait_for_exit, wait_until

APPENDS = 400
RECORD = b"0123456789abcde\n"

# Appends while SIGALRM comes every half millisecond and SIGCHLD for every child. ctypes tells of EINTR,
# where os.write() would try again.
UNDER_SIGNALS = f"""
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.siginterrupt(signal.SIGCHLD, True)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range({APPENDS}):
    if number % 20 == 0 and os.fork() == 0:
        os._exit(0)
    if libc.write(file, {RECORD!r}, {len(RECORD)}) != {len(RECORD)}:
        sys.exit("write: " + os.strerror(ctypes.get_errno()))
    if number % 50 == 0 and libc.fsync(file) != 0:
        sys.exit("fsync: " + os.strerror(ctypes.get_errno()))
signal.setitimer(signal.ITIMER_REAL, 0)
"""

APPEND = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b'y')"
LOOK = "import os, sys; os.stat(sys.argv[1])"
MOVE = "import os, sys; os.rename(*sys.argv[1:])"


def test_a_storm_of_signals_is_no_error_and_does_nothing_twice(here: Host, there: Host) -> None:
    name = f"signals-{here.name}"
    here.run(sys.executable, "-c", UNDER_SIGNALS, here.mountpoint / name)
    assert (there.mountpoint / name).read_bytes() == RECORD * APPENDS


def waits_for_us(thread: int) -> bool:
    return "fuse" in Path(f"/proc/{thread}/stack").read_text()


def test_a_program_that_waits_for_the_other_host_can_be_killed(hosts: TwoHosts) -> None:
    backup = hosts.backup
    file, moved = backup.mountpoint / "file", backup.mountpoint / "moved"
    file.write_text("x")
    for directory in (moved, backup.mountpoint / "target", backup.mountpoint / "last"):
        directory.mkdir()
    os.stat(moved)
    hosts.cut()
    wait_until(lambda: not backup.status()["peer"]["connected"], 30.0, "the link is lost")
    waiting = [
        backup.start(sys.executable, "-c", APPEND, file),
        backup.start(sys.executable, "-c", LOOK, backup.mountpoint / "nowhere"),
        backup.start(sys.executable, "-c", MOVE, moved, backup.mountpoint / "target/new"),
    ]
    for program in waiting:
        wait_until(partial(waits_for_us, program.pid), 30.0, "the program waits")
    os.statvfs(backup.mountpoint)  # as df does
    os.stat(backup.mountpoint)
    for program in waiting:
        program.send_signal(signal.SIGKILL)
        wait_for_exit(program.pid, 30.0)
        program.wait(30)
    hosts.converge()
    assert (hosts.primary.mountpoint / "file").read_text() in ("x", "xy")
    # The move took effect, or not; either way the kernel goes by that.
    name = "target/new" if (hosts.primary.mountpoint / "target/new").exists() else "moved"
    os.rename(backup.mountpoint / name, backup.mountpoint / "last/one")
    assert os.listdir(hosts.primary.mountpoint / "last") == ["one"]
    assert not (backup.mountpoint / name).exists()


def test_a_mistake_in_the_session_ends_the_mount_in_order(hosts: TwoHosts) -> None:
    backup = hosts.backup
    backup.umount()
    program, backup.program = backup.program, (sys.executable, "-m", "tests.mount.mistaken")
    backup.mount()
    backup.expect_warnings("Traceback|the mount ended")
    held = os.open(backup.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
    os.write(held, b"acknowledged")
    with pytest.raises(OSError, match="mistake"):
        os.stat(backup.mountpoint / "mistake")
    backup.ended(expect=1)
    with pytest.raises(OSError, match="not connected"):
        os.write(held, b"more")
    with suppress(OSError):
        os.close(held)
    assert not backup.is_mounted
    assert (hosts.primary.mountpoint / "file").read_text() == "acknowledged"
    backup.program = program


def test_both_hosts_know_when_a_file_was_made(here: Host, there: Host) -> None:
    file, seen = here.mountpoint / f"made-{here.name}", there.mountpoint / f"made-{here.name}"
    file.touch()
    made_ns = file.stat().st_mtime_ns
    seen.write_bytes(b"changed")
    shown = {host.run("stat", "--format=%.9W", path).stdout for host, path in ((here, file), (there, seen))}
    asked = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 6)
    assert shown == {f"{made_ns // NS_PER_S}.{made_ns % NS_PER_S:09}\n" if asked else "0.000000000\n"}
