"""Check a recorded history again: `python -m tests.linearizability FILE`.

It says which part of the history no order explains, and shows the least of it that still has none.
"""

import sys
from pathlib import Path

from tests.linearizability.checker import Violation, check, smallest
from tests.linearizability.history import load
from tests.linearizability.model import parts, violations


def main(path: str) -> int:
    history = load(Path(path))
    found = violations(history)
    for key, failure in found.items():
        print(f"{key}: {failure}")
        if isinstance(failure, Violation):
            model, operations = parts(history)[key]
            print(f"the least of it: {check(smallest(operations, model), model)}")
    print(f"{len(history)} operations, {len(found)} parts without an order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
