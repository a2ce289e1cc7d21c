"""Tables: the rows of a catalog as rows, for who copies, compares or checks them.

The catalog's own rows of META, which say where this volume stands, are shown to nobody.
"""

import struct
import sys
from collections.abc import Iterator

import xxhash

from fusemirror.change import Table, row_bytes
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.entries import key_inode
from fusemirror.volume.inode import Inode
from fusemirror.volume.inode_cache import InodeCache
from fusemirror.volume.rows import OWN_META_KEYS

_INODES_PER_TURN = 4096
_LENGTHS = struct.Struct("<II")


class Tables:
    """Those of one catalog, with the newest attributes. DiskFailed where LMDB cannot go on."""

    def __init__(self, store: CatalogStore, cache: InodeCache) -> None:
        self._store = store
        self._cache = cache

    def rows(
        self, table: int, after_key: bytes | None, limit: int, bytes_max: int = sys.maxsize
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows of a table with keys above `after_key`, in the order of keys, and no more
        than `bytes_max` of them but one; none only where there is none.
        """
        self._cache.flush()
        first = b"\x00" if after_key is None else after_key + b"\x00"
        found: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for key, value in self._store.walk(self._store.tables[table], first):
            if table == Table.META and key in OWN_META_KEYS:
                continue
            size_bytes += row_bytes((table, key, value))
            if len(found) >= limit or (found and size_bytes > bytes_max):
                break
            found.append((key, value))
        return found

    def inodes(self) -> Iterator[Inode]:
        """Every inode, as an object of its own; what is added meanwhile may be missing."""
        after: bytes | None = None
        while rows := self.rows(Table.INODES, after, _INODES_PER_TURN):
            for key, row in rows:
                yield Inode.unpack(key_inode(key), row)
            after = rows[-1][0]

    def is_shared(self, table: int, key: bytes) -> bool:
        """Whether both volumes should have the row: the catalog's own say where this one stands."""
        return table != Table.META or key not in OWN_META_KEYS

    def rows_from(self, table: int, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table from key `first` on. Nothing may be put while they are walked."""
        return self._store.walk(self._store.tables[table], first)

    def keys_from(self, table: int, first: bytes) -> Iterator[bytes]:
        """All keys of a table from `first` on; the values are not read. Nothing may be put meanwhile."""
        return self._store.keys(self._store.tables[table], first)

    def digest(self, table: int, first: bytes, last: bytes, count_max: int = sys.maxsize) -> tuple[int, int]:
        """How many rows have first <= key <= last, and a checksum of all their keys and values.

        Where there are more than `count_max`, the count is above it and the rest is not looked at.
        """
        self._cache.flush()
        count, digest = 0, xxhash.xxh3_64()
        for key, value in self._store.walk(self._store.tables[table], first or b"\x00"):
            if key > last or count > count_max:
                break
            if table == Table.META and key in OWN_META_KEYS:
                continue
            count += 1
            digest.update(_LENGTHS.pack(len(key), len(value)) + key + value)
        return count, digest.intdigest()
