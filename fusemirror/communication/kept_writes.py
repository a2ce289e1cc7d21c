"""Kept writes: those that programs may forget before they are answered, by the inode that they are of.

Reads of this host show them early, and flushes wait for them.
"""

from collections import deque
from collections.abc import Collection

import trio

from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber


class _OfInode(dict[int, Staged]):
    """By serial, the oldest first."""

    __slots__ = ("undoubted",)

    def __init__(self) -> None:
        # Behind the newest that has ended, the oldest first. To look in the dict for the first after each end
        # would go over the places of all that have ended.
        self.undoubted: deque[Staged] = deque()


class KeptWrites:
    """Those of one communication volume that have not ended."""

    def __init__(self, ended: trio.lowlevel.ParkingLot) -> None:
        """`ended` wakes whoever waits there, after each end."""
        self._ended = ended
        self._writes: dict[InodeNumber, _OfInode] = {}

    def add(self, staged: Staged) -> None:
        """One that was staged last."""
        inode = staged.operation.image
        writes = self._writes.get(inode)
        if writes is None:
            writes = self._writes[inode] = _OfInode()
        writes[staged.serial] = staged
        writes.undoubted.append(staged)

    def remove(self, staged: Staged) -> None:
        """It has ended. Requests take effect in their order: those before it may have, too."""
        inode = staged.operation.image
        writes = self._writes[inode]
        del writes[staged.serial]
        if not writes:
            del self._writes[inode]
            return
        undoubted = writes.undoubted
        while undoubted and undoubted[0].serial < staged.serial:
            undoubted.popleft().in_doubt = True
        if undoubted and undoubted[0] is staged:
            undoubted.popleft()

    def newest(self, inode: InodeNumber) -> int:
        """The serial of the inode's newest kept write that has not ended, or 0."""
        return next(reversed(self._writes.get(inode, {})), 0)

    async def wait_ended(self, inode: InodeNumber, last: int) -> None:
        """Return when every kept write of the inode up to serial `last` has ended."""
        for serial in [each for each in self._writes.get(inode, ()) if each <= last]:
            while serial in self._writes.get(inode, ()):
                await self._ended.park()

    def newest_in_doubt(self, inode: InodeNumber) -> int:
        """The serial of the inode's newest kept write that may have taken effect already, or 0."""
        if inode not in self._writes:
            return 0
        return max((serial for serial, staged in self._writes[inode].items() if staged.in_doubt), default=0)

    def of(self, inode: InodeNumber) -> Collection[Staged]:
        """The kept writes of an inode that have not ended, oldest first."""
        writes = self._writes.get(inode)
        return writes.values() if writes is not None else ()
