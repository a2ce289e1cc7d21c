"""A communication volume in memory alone (seed [0071]): the fastest, and lost with its process.

A kept request is acknowledged as soon as it is staged. What was acknowledged and is still pending is
gone when the process is killed or the host goes down.
"""

import math
from collections.abc import Iterable

import trio

from fusemirror.communication.staged import Staged, StoredEntry
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.seams import Seams


class MemoryCommunicationVolume(CommunicationVolume):
    """Nothing is stored, and nothing can be read back: its capacity is what bounds the memory."""

    kind = "memory"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes, math.inf, Seams())

    def configure(self, capacity_bytes: float, memory_bytes: float) -> None:
        super().configure(capacity_bytes, math.inf)

    def _destage(self, staged: Staged) -> None:
        if staged.request.kept:
            staged.acknowledge()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """There is nothing to destage."""
        task_status.started()
        await trio.sleep_forever()

    async def _store(self, entries: Iterable[StoredEntry], ended: Iterable[int]) -> None:
        raise AssertionError("nothing is destaged")

    def _read(self, serial: int, start: int, end: int) -> bytes:
        raise AssertionError("memory lets go of nothing")

    def stored_count(self) -> int:
        return 0

    def close(self) -> None:
        """What is pending ends with this."""
