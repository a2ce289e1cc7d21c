"""Pruning: threads tell the kernel to let go of inodes, over the descriptor that the session reads from."""

import errno
import os
import threading
from collections.abc import Sequence

from fusemirror.kernel import codec

_AT_ONCE_MAX = 8  # threads: there are fewer that notify the kernel
_BEGINS_S = 0.1  # after it has looked whether it may


class Pruning:
    """As long as the descriptor leads to the kernel."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._writing = threading.Semaphore(_AT_ONCE_MAX)
        self._has_ended = False

    def prune(self, inodes: Sequence[int]) -> None:
        """Tell the kernel to let go of inodes that no program holds. Thread-safe. OSError once unmounted."""
        with self._writing:
            if self._has_ended:
                raise OSError(errno.ENODEV, "unmounted")
            os.write(self._device, codec.prune_notice(inodes))

    def end(self) -> None:
        """On return no thread begins to write to the descriptor. It is closed next, and its number is then
        that of a file which the volume opens."""
        self._has_ended = True
        # Who keeps it from one longer is in the kernel, which waits for an inode that is being freed.
        taken = [self._writing.acquire(timeout=_BEGINS_S) for _ in range(_AT_ONCE_MAX)]
        for _ in filter(None, taken):
            self._writing.release()
