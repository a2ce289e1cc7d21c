"""Hand one lock of flock(2) to and fro between two programs for a while.

    python handing.py SECONDS FILE OTHER      OTHER: the same file, as the other host sees it

Each waits for the lock, and lets go at once: so whoever lets go hands it to the other, who waits. Prints how
often a second that was. Imports nothing of the project, so that it runs wherever a system is visible.
"""

import fcntl
import os
import sys
from time import perf_counter


def take_turns(path: str, seconds: float) -> int:
    """How often this program had it."""
    file, count = os.open(path, os.O_RDWR), 0
    started = perf_counter()
    while perf_counter() - started < seconds:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_UN)
        count += 1
    os.close(file)
    return count


def main(seconds: float, paths: list[str]) -> None:
    os.close(os.open(paths[0], os.O_WRONLY | os.O_CREAT, 0o644))
    counts = []
    for path in paths:
        reader, writer = os.pipe()
        if not os.fork():
            os.write(writer, str(take_turns(path, seconds)).encode())
            os._exit(0)
        os.close(writer)
        counts.append(reader)
    total = sum(int(os.read(reader, 100) or b"0") for reader in counts)
    assert all(status == 0 for _, status in (os.wait() for _ in paths)), "a program failed"
    print(total / seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
