"""Make, stat and delete many small files from one process that does not fork.

    python files.py DIRECTORY COUNT PHASE...       phases: create rest stat restat delete

`rest` drops what the kernel keeps of names and attributes, of every filesystem, and waits until that is
done with. Prints one JSON object: files per second of each other phase. Imports nothing of the
project, so that it runs wherever a system is visible.
"""

import json
import os
import select
import sys
from collections.abc import Callable
from time import perf_counter

CONTENT = b"x" * 1024
DROP_CACHES = "/proc/sys/vm/drop_caches"
DROP_NAMES_AND_ATTRIBUTES = "2"
REST_S = 2.0  # longer than any system here takes to let go of what it was told to forget


def create(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, CONTENT)
    os.close(descriptor)


def rest() -> None:
    os.sync()  # what is not written yet cannot be dropped
    with open(DROP_CACHES, "w") as file:
        file.write(DROP_NAMES_AND_ATTRIBUTES)
    select.select([], [], [], REST_S)


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
        if phase == "rest":
            rest()
            continue
        act, started = PHASES[phase], perf_counter()
        for path in paths:
            act(path)
        rates[phase] = count / (perf_counter() - started)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
