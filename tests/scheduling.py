"""The order of the tasks that could run: trio shuffles them; here a seed does it, as with hypothesis-trio."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


@contextmanager
def deterministic_trio(seed: str) -> Iterator[None]:
    """What runs meanwhile takes its turns in the same order each time."""
    scheduler: Any = trio._core._run
    before, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(f"{seed} scheduler")
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
        scheduler._r.setstate(state)
