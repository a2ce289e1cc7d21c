"""Room: whether the disk of a communication volume has room for a request that is kept there.

Some of the disk stays in reserve, as for the volume itself (`volume/space.py`). Requests that are staged on
the disk of the subvolume need its room twice until they have ended: staged, and applied. Pages that the store
has free in its own file count as room; they do not go back to the disk.
"""

import logging
from collections.abc import Callable

from fusemirror.limits import SPACE_ANSWER_BYTES_MAX, SPACE_PER_CHANGE_BYTES, WRITE_BYTES_MAX
from fusemirror.volume.space import Space

log = logging.getLogger(__name__)

LARGE_BYTES = WRITE_BYTES_MAX + SPACE_PER_CHANGE_BYTES
"""A disk that has not so much for the largest write counts as full."""


class StagingSpace:
    """Of one communication volume. The disk is asked once for half of the room that it has."""

    def __init__(
        self, space: Space, *, applies_here: bool, spare_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        """`applies_here`: it is the subvolume's disk. `spare_bytes`: what is free in the store's own file."""
        self._space = space
        self._applies_here = applies_here
        self._spare_bytes = spare_bytes
        self._left = 0  # of the last answer
        self._told_full = False  # in the log

    def available_bytes(self, pending_bytes: int) -> int:
        """How much data more fits, beside what is pending. OSError."""
        disk, spare = self._space.measure(), self._spare_bytes()
        if not self._applies_here:
            return disk + spare
        to_apply = max(0, disk - pending_bytes)
        return min(to_apply, (to_apply + spare) // 2)

    def take(self, data_bytes: int, pending_bytes: int) -> bool:
        """Whether there is room for a request with so much data; it then counts as taken. OSError."""
        needed = SPACE_PER_CHANGE_BYTES + data_bytes
        if needed > self._left:
            available = self.available_bytes(pending_bytes)
            self._tell(is_full=needed > available)
            if needed > available:
                return False
            self._left = max(needed, min(available // 2, SPACE_ANSWER_BYTES_MAX))
        self._left -= needed
        return True

    def _tell(self, *, is_full: bool) -> None:
        if is_full and not self._told_full:
            log.warning(
                "the disk of the communication volume is full: with acknowledge = async what needs room gets"
                " ENOSPC on this host; delete something there, or make it larger"
            )
        elif self._told_full and not is_full:
            log.info("the disk of the communication volume has room again")
        self._told_full = is_full
