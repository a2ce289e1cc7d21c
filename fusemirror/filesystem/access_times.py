"""Access times: what programs of this host have read, told to both volumes every few seconds (relatime).

No program waits for it, and it is lost where the host ends before, or the other one is away. What a kernel
reads from its own cache nobody hears of; what was changed since it reads anew.
"""

import trio

from fusemirror.control.unit import ControlUnit
from fusemirror.errors import CheckReport, OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ACCESSED_INTERVAL_S, ACCESSED_NOTED_MAX, ACCESSED_PER_CHANGE
from fusemirror.operations import Accessed
from fusemirror.operations.accessed import is_due


class AccessTimes:
    """See the module. `run` tells for ever."""

    def __init__(self, unit: ControlUnit) -> None:
        self._unit = unit
        self._noted: set[InodeNumber] = set()

    def note(self, inode: InodeNumber) -> None:
        """A program has read it just now. Beyond a bound it is forgotten."""
        if len(self._noted) < ACCESSED_NOTED_MAX:
            self._noted.add(inode)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await trio.sleep(ACCESSED_INTERVAL_S)
            await self.tell()

    async def tell(self) -> None:
        """On return what was noted before is told, or forgotten where that could not be."""
        noted, self._noted = sorted(self._noted), set()
        catalog, now_ns = self._unit.volume.catalog, self._unit.volume.clock.now_ns()
        due = [
            number
            for number in noted
            if (inode := catalog.inode(number)) is not None and is_due(catalog, inode, now_ns)
        ]
        for start in range(0, len(due), ACCESSED_PER_CHANGE):
            try:
                await self._unit.perform(Accessed(tuple(due[start : start + ACCESSED_PER_CHANGE])))
            except (OperationFailed, CheckReport):
                return
