"""Copy a large file and many small ones by cp(1), and give room to a file and take it again, step by step.

    python space.py DIRECTORY MIB COUNT

Prints one JSON object: MiB per second of the copy of a file of MIB MiB, of allocating as much in steps of
1 MiB and of making holes there again, 0 where the system cannot; and files per second of the copy of COUNT
small ones. Imports nothing of the project, so that it runs wherever a system is visible.
"""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

MIB = 1 << 20
SMALL = b"x" * 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def taken_s(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def copy(source: str, target: str) -> None:
    subprocess.run(("cp", "-r", source, target), check=True)


def allocate(descriptor: int, mode: int, size_mib: int) -> None:
    """In steps of 1 MiB."""
    for index in range(size_mib):
        if _libc.fallocate64(descriptor, mode, ctypes.c_int64(index * MIB), ctypes.c_int64(MIB)):
            raise OSError(ctypes.get_errno(), "fallocate", mode)


def lay_out(directory: str, size_mib: int, count: int) -> None:
    os.makedirs(f"{directory}/small")
    with open(f"{directory}/large", "wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    for index in range(count):
        with open(f"{directory}/small/{index:06}", "wb") as file:
            file.write(SMALL)
    os.sync()


def main(directory: str, size_mib: int, count: int) -> None:
    lay_out(directory, size_mib, count)
    rates = {
        "copy": size_mib / taken_s(lambda: copy(f"{directory}/large", f"{directory}/copy")),
        "copy-files": count / taken_s(lambda: copy(f"{directory}/small", f"{directory}/copies")),
    }
    room = os.open(f"{directory}/room", os.O_RDWR | os.O_CREAT, 0o644)
    for what, mode in (("allocate", 0), ("punch", KEEP_SIZE | PUNCH_HOLE)):
        try:
            rates[what] = size_mib / taken_s(partial(allocate, room, mode, size_mib))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            rates[what] = 0.0
    os.close(room)
    shutil.rmtree(directory)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
