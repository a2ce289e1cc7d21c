"""Make, stat and delete many small files from one process that does not fork.

    python files.py DIRECTORY COUNT PHASE...       phases: create stat restat delete

Prints one JSON object: files per second of each phase. Imports nothing of the project, so that it
runs wherever a system is visible.
"""

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter

CONTENT = b"x" * 1024


def create(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, CONTENT)
    os.close(descriptor)


PHASES: dict[str, Callable[[str], object]] = {
    "create": create,
    "stat": os.stat,
    "restat": os.stat,
    "delete": os.unlink,
}


def main(directory: str, count: int, phases: list[str]) -> None:
    """Run the phases in turn over the same names."""
    os.makedirs(directory, exist_ok=True)
    paths = [f"{directory}/{index:06}" for index in range(count)]
    rates = {}
    for phase in phases:
        act, started = PHASES[phase], perf_counter()
        for path in paths:
            act(path)
        rates[phase] = count / (perf_counter() - started)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
