"""How much memory processes hold at most while a job runs."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.report import Memory
from tests.bench.systems import System
from tests.hosts import memory_of

SAMPLE_S = 0.05


@contextmanager
def watched(system: System, job: str, found: list[Memory]) -> Iterator[None]:
    """Append to `found` what the processes of the system held at most, all of them together.

    The kernel keeps the peak of RSS, and forgets it on request; the peak of anonymous memory is sampled.
    """
    pids = system.pids()
    anonymous: dict[int, int] = defaultdict(int)
    ended = threading.Event()

    def sample() -> None:
        while True:
            for pid in pids:
                with suppress(FileNotFoundError, ProcessLookupError):
                    anonymous[pid] = max(anonymous[pid], memory_of(pid)["RssAnon"])
            if ended.wait(SAMPLE_S):
                return

    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()
    peak = sum(memory_of(pid)["VmHWM"] for pid in pids if Path(f"/proc/{pid}").exists())
    found.append(Memory(job, system.name, peak, sum(anonymous.values())))
