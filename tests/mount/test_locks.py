"""Locks of programs on two mounted hosts: what one holds the other does not get, and the data goes along.

With our own session with the kernel, the default: pyfuse3's loop leaves locks to each kernel.
"""

import fcntl
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts import Host, TwoHosts, wait_until

COUNTS = 40

# Adds one, COUNTS times, under a lock; reads and writes in three ways, which go by pages, size and content.
COUNT = f"""
import fcntl, mmap, os, sys
path, way = sys.argv[1:]
# Not of fcntl(2) with maps: to end one Python closes a descriptor, and that would end the lock.
lock = fcntl.lockf if way == "fcntl" else fcntl.flock
file = os.open(path, os.O_RDWR)
for _ in range({COUNTS}):
    lock(file, fcntl.LOCK_EX)
    assert os.fstat(file).st_size == 8
    before = int(os.pread(file, 8, 0))
    if way == "mapped":
        with mmap.mmap(file, 8, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            assert int(mapped[:]) == before, (mapped[:], before)
    assert os.pwrite(file, b"%08d" % (before + 1), 0) == 8
    lock(file, fcntl.LOCK_UN)
"""

HOLD = """
import fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDWR)
(fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
print("held", flush=True)
if len(sys.argv) > 3:
    signal.pause()
"""


def hold(host: Host, path: Path, way: str) -> "subprocess.Popen[bytes]":
    holder = host.start(sys.executable, "-c", HOLD, path, way, "and wait", stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


@pytest.mark.parametrize("way", ["flock", "fcntl", "mapped"])
def test_a_counter_under_a_lock_counts_what_both_hosts_add(pair: TwoHosts, way: str) -> None:
    name = f"counter-{way}"
    (pair.primary.mountpoint / name).write_text("0" * 8)
    counting = [
        host.start(sys.executable, "-c", COUNT, host.mountpoint / name, way)
        for host in pair
        for _ in range(2)
    ]
    assert [each.wait(60) for each in counting] == [0] * 4
    for host in pair:
        assert int((host.mountpoint / name).read_text()) == 4 * COUNTS


@pytest.mark.parametrize("way", ["flock", "fcntl"])
def test_a_lock_ends_with_its_program_and_the_other_host_gets_it(here: Host, there: Host, way: str) -> None:
    name = f"held-{way}-{here.name}"
    (here.mountpoint / name).touch()
    holder = hold(here, here.mountpoint / name, way)
    lock = fcntl.flock if way == "flock" else fcntl.lockf
    with (there.mountpoint / name).open("r+b") as file:
        with pytest.raises(BlockingIOError):
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if way == "fcntl":
            asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, asked)[:28])
            assert (kind, pid) == (fcntl.F_WRLCK, 0)
        waiting = there.start(
            sys.executable, "-c", HOLD, there.mountpoint / name, way, stdout=subprocess.PIPE
        )
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        assert waiting.wait(30) == 0
        for each in (holder, waiting):
            assert each.stdout is not None
            each.stdout.close()
        wait_until(lambda: can_lock(lock, file), 30.0, "the lock is free")


def can_lock(lock: object, file: object) -> bool:
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[operator]
    except BlockingIOError:
        return False
    return True
