"""Writes that failed after they were acknowledged: who is told, and once (as the kernel's errseq).

Every open file hears of an error that came after it was opened, at its next fsync or close. One that
nobody has heard of yet is told to whoever opens the file next.
"""

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FAILED_WRITES_MAX


class _Failure:
    __slots__ = ("errno", "serial", "told")

    def __init__(self, errno: int, serial: int) -> None:
        self.errno = errno
        self.serial = serial
        self.told = False


class FailedWrites:
    """The newest failure of each inode; of many inodes, the newest are kept."""

    def __init__(self) -> None:
        self._failures: dict[InodeNumber, _Failure] = {}
        self._serial = 0

    def note(self, inode: InodeNumber, errno: int) -> None:
        """A write of the inode came to nothing, and nobody waits for its answer."""
        self._serial += 1
        self._failures.pop(inode, None)
        self._failures[inode] = _Failure(errno, self._serial)
        if len(self._failures) > FAILED_WRITES_MAX:
            del self._failures[next(iter(self._failures))]

    @property
    def serial(self) -> int:
        """What an open file has seen that has just asked."""
        return self._serial

    def seen_at_open(self, inode: InodeNumber) -> int:
        """What a file that is opened now has seen."""
        failure = self._failures.get(inode)
        if failure is not None and not failure.told:
            return failure.serial - 1
        return self._serial

    def since(self, inode: InodeNumber, seen: int) -> int:
        """The errno of a failure that an open file has not seen, and has now; 0 if there is none."""
        failure = self._failures.get(inode)
        if failure is None or failure.serial <= seen:
            return 0
        failure.told = True
        return failure.errno
