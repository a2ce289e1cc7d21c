"""Make one call again and again on one file, from one process that does not fork.

    python calls.py FILE SECONDS CALL...       calls: getattr open lock

`getattr` is statx(2) that wants what is true now, so that no system answers it from the kernel's memory.
Prints one JSON object: calls per second of each. Imports nothing of the project, so that it runs wherever
a system is visible.
"""

import ctypes
import fcntl
import functools
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter

AT_FDCWD, AT_STATX_FORCE_SYNC = -100, 0x2000
STATX_BASIC_STATS = 0x7FF
CALLS_PER_LOOK = 50  # at the clock

_libc = ctypes.CDLL(None, use_errno=True)
_found = ctypes.create_string_buffer(256)


def getattr_now(path: bytes) -> None:
    if _libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, _found):
        raise OSError(ctypes.get_errno(), "statx", path)


def open_and_close(path: bytes) -> None:
    os.close(os.open(path, os.O_RDONLY))


def lock_and_unlock(path: bytes) -> None:
    file = _opened(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    fcntl.flock(file, fcntl.LOCK_UN)


@functools.cache
def _opened(path: bytes) -> int:
    return os.open(path, os.O_RDWR)


CALLS: dict[str, Callable[[bytes], None]] = {
    "getattr": getattr_now,
    "open": open_and_close,
    "lock": lock_and_unlock,
}


def main(file: str, seconds: float, calls: list[str]) -> None:
    """Make each call in turn for so long."""
    path = os.fsencode(file)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    rates = {}
    for name in calls:
        call, count, started = CALLS[name], 0, perf_counter()
        while (passed := perf_counter() - started) < seconds:
            for _ in range(CALLS_PER_LOOK):
                call(path)
            count += CALLS_PER_LOOK
        rates[name] = count / passed
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
