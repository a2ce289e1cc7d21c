"""Derived tables: LISTING, the names of each directory by their cookies; ORPHANS, the inodes without names.

They follow from the other tables, and are kept so that a listing goes on where it stopped, and a mount knows
at once what is to be purged. `check` compares them with what they should be, and makes them anew.
"""

import struct
from collections.abc import Iterator

import lmdb

from fusemirror.identifiers import InodeNumber
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.entries import key_inode, unpack_entry
from fusemirror.volume.inode import ROW_BYTES_MIN, Inode
from fusemirror.volume.inode_cache import InodeCache

_NUMBER = struct.Struct(">Q")
_COOKIE_KEY = struct.Struct(">QQ")


class DerivedTables:
    """Those of one catalog. What puts into them raises lmdb.Error, as who puts the rows does."""

    def __init__(self, store: CatalogStore, cache: InodeCache) -> None:
        """Use `load` before all else."""
        self._store = store
        self._cache = cache
        self.orphans: set[InodeNumber] = set()
        """The inodes that have no name any more."""

    def load(self) -> None:
        """What is kept in memory of the committed state. DiskFailed."""
        self.orphans = {key_inode(key) for key, _ in self._store.walk(self._store.orphans, b"\x00")}

    def is_orphan(self, inode: InodeNumber) -> bool:
        """Whether an inode has no name any more."""
        return inode in self.orphans

    def listed(self, parent: InodeNumber, after_cookie: int) -> Iterator[tuple[int, bytes]]:
        """Cookie and name of what a directory lists behind a cookie. DiskFailed."""
        for key, name in self._store.walk(self._store.listing, _COOKIE_KEY.pack(parent, after_cookie + 1)):
            listed_parent, cookie = _COOKIE_KEY.unpack(key)
            if listed_parent != parent:
                return
            yield cookie, name

    def list_name(self, key: bytes, cookie: int) -> None:
        """`key` is the entry's."""
        self._store.txn.put(key[:8] + _NUMBER.pack(cookie), key[8:], db=self._store.listing)

    def drop_name(self, key: bytes, cookie: int) -> None:
        """`key` is the entry's."""
        self._store.txn.delete(key[:8] + _NUMBER.pack(cookie), db=self._store.listing)

    def add_orphan(self, number: InodeNumber, key: bytes) -> None:
        """`key` is the inode's."""
        self.orphans.add(number)
        self._store.txn.put(key, b"", db=self._store.orphans)

    def drop_orphan(self, number: InodeNumber, key: bytes) -> None:
        """`key` is the inode's."""
        self.orphans.discard(number)
        self._store.txn.delete(key, db=self._store.orphans)

    def wrong(self) -> int:
        """How many rows of the derived tables are missing, wrong or too many."""
        listing = dict(self._store.walk(self._store.listing, b"\x00"))
        orphans = {key for key, _ in self._store.walk(self._store.orphans, b"\x00")}
        right_listing, right_orphans = self._right()
        return len(listing.items() ^ right_listing.items()) + len(orphans ^ right_orphans)

    def rebuild(self) -> None:
        """On return the derived tables agree with the others. DiskFailed."""
        listing, orphans = self._right()
        try:
            self._store.txn.drop(self._store.listing, delete=False)
            self._store.txn.drop(self._store.orphans, delete=False)
            for key, name in listing.items():
                self._store.txn.put(key, name, db=self._store.listing)
            for key in orphans:
                self._store.txn.put(key, b"", db=self._store.orphans)
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        self.orphans = {key_inode(key) for key in orphans}

    def _right(self) -> tuple[dict[bytes, bytes], set[bytes]]:
        """What the derived tables should hold, of all rows that can be read."""
        self._cache.flush()
        listing = {
            key[:8] + _NUMBER.pack(unpack_entry(value).cookie): key[8:]
            for key, value in self._store.walk(self._store.entries, b"\x00")
            if _is_entry(value)
        }
        orphans = {
            key
            for key, row in self._store.walk(self._store.inodes, b"\x00")
            if len(row) >= ROW_BYTES_MIN and Inode.unpack(InodeNumber(0), row).nlink == 0
        }
        return listing, orphans


def _is_entry(value: bytes) -> bool:
    try:
        unpack_entry(value)
    except ValueError:
        return False
    return True
