"""A communication volume in memory alone (seed [0071]): the fastest, and lost with its process.

A kept request is acknowledged as soon as it is staged. What was acknowledged and is still pending is
gone when the process is killed or the host goes down.
"""

from collections.abc import Iterable

import trio

from fusemirror.communication.volume import CommunicationVolume, Entry, Staged


class MemoryCommunicationVolume(CommunicationVolume):
    """Nothing is stored."""

    kind = "memory"

    def _enqueue(self, staged: Staged) -> None:
        if staged.request.kept:
            self._acknowledge(staged)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """There is nothing to destage."""
        task_status.started()
        await trio.sleep_forever()

    async def _store(self, entries: Iterable[Entry], ended: Iterable[int]) -> None:
        raise AssertionError("nothing is destaged")

    def stored_count(self) -> int:
        return 0

    def close(self) -> None:
        """What is pending ends with this."""
