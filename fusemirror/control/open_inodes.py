"""What programs of this host have open, and which inodes without names nobody here opens any more.

An inode without names lives while it is open on either host (`mirror/holdings.py`). The backup says which of
them it gives up; from then on the primary may end them, so they can be opened here no more.
"""

import errno
from collections import Counter
from collections.abc import Iterable

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import NAMELESS_SUMMED_MAX
from fusemirror.volume.volume import Volume


class OpenInodes:
    """Counts over all roles that the host has, as long as its mount process lives."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._count: Counter[InodeNumber] = Counter()
        self._given_up: set[InodeNumber] = set()

    def __contains__(self, inode: InodeNumber) -> bool:
        return inode in self._count

    def add(self, inode: InodeNumber) -> None:
        """An inode without names stays from now on while it is open on either host.

        OperationFailed (ESTALE) where this host has said that nobody here opens it any more.
        """
        if inode in self._given_up and self._volume.catalog.derived.is_orphan(inode):
            raise OperationFailed(errno.ESTALE)
        self._count[inode] += 1

    def remove(self, inode: InodeNumber) -> None:
        assert self._count[inode] > 0, "what is closed was open"
        self._count[inode] -= 1
        if not self._count[inode]:
            del self._count[inode]

    # --- inodes without names -----------------------------------------------------------------------------

    def give_up(self, inodes: tuple[InodeNumber, ...]) -> tuple[InodeNumber, ...]:
        """Those of these inodes without names that are held here; the others nobody here opens any more."""
        let_go = frozenset(self.let_go(inodes))
        held = tuple(inode for inode in inodes if inode not in let_go)
        is_orphan = self._volume.catalog.derived.is_orphan
        self._given_up = {each for each in self._given_up.union(inodes).difference(held) if is_orphan(each)}
        return held

    def let_go(self, inodes: Iterable[InodeNumber]) -> list[InodeNumber]:
        """Those of these inodes without names that no program here has open, and the kernel has let go of."""
        closed = [inode for inode in inodes if inode not in self]
        gone = set(self._volume.invalidator.has_let_go(closed))
        return [inode for inode in closed if inode in gone]

    def keep_all(self) -> None:
        """This host is the primary: what it ends it looks up here at the same moment."""
        self._given_up.clear()

    def nameless_status(self) -> dict[str, int]:
        """Inodes without names that are not purged, for `status`. Sizes are those of the first of them."""
        orphans = self._volume.catalog.orphans()
        known = map(self._volume.catalog.inode, orphans[:NAMELESS_SUMMED_MAX])
        return {"inodes": len(orphans), "bytes": sum(inode.size for inode in known if inode)}
