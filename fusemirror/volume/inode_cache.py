"""Inode cache: the inodes of a catalog as objects, and those that are newer than their rows.

Attributes that change with every write change in the cached inode, and reach their row at the next commit. So
an inode stays in the cache from when it is touched until its row is committed: only others make place. One
that is touched is what the cache gives from then on, whatever became of its place since it was taken.
"""

import struct

import lmdb

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import INODES_CACHED_MAX
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.inode import Inode

_NUMBER = struct.Struct(">Q")


class InodeCache:
    """That of one catalog."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self.cached: dict[InodeNumber, Inode] = {}
        self.touched: dict[InodeNumber, Inode] = {}
        """Newer than their rows."""
        self._flushed: dict[InodeNumber, Inode] = {}  # as their rows, which are not committed

    def keep(self, inode: Inode) -> Inode:
        """The inode, which is in the cache now. Of a full one a quarter makes place, the oldest first."""
        if len(self.cached) >= INODES_CACHED_MAX:
            clean = [
                number for number in self.cached if number not in self.touched and number not in self._flushed
            ]
            for number in clean[: INODES_CACHED_MAX // 4]:
                del self.cached[number]
        self.cached[inode.number] = inode
        return inode

    def touch(self, inode: Inode) -> bool:
        """The inode is newer than its row from now on, and in the cache; whether it was not newer before."""
        number = inode.number
        if (newer := self.touched.get(number)) is not None:
            assert newer is inode, "what is newer than its row stays in the cache, and nobody loads another"
            return False
        # Others that were looked at since it was taken may have been given its place: who looks at it next
        # must not load the old row.
        self.touched[number] = self.cached[number] = inode
        return True

    def forget(self, number: InodeNumber) -> None:
        """The inode's row is gone."""
        self.cached.pop(number, None)
        self.touched.pop(number, None)
        self._flushed.pop(number, None)

    def flush(self) -> None:
        """Put the rows of all touched inodes. DiskFailed."""
        try:
            for number, inode in self.touched.items():
                self._store.txn.put(_NUMBER.pack(number), inode.pack(), db=self._store.inodes)
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        self._flushed.update(self.touched)
        self.touched.clear()

    def committed(self) -> None:
        """What was flushed is durable."""
        assert not self.touched, "a commit flushes first"
        self._flushed.clear()

    def rollback(self) -> list[Inode]:
        """Forget everything; the inodes whose newest attributes were in memory only."""
        unsaved = [*self._flushed.values(), *self.touched.values()]
        self.cached.clear()
        self.touched.clear()
        self._flushed.clear()
        return unsaved
