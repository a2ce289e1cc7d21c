"""Extended attributes, as a catalog holds them."""

import struct
from collections.abc import Iterator

from fusemirror.flags import decode_flags
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.entries import key_inode, xattr_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.inode_cache import InodeCache
from fusemirror.xattrs import CAPABILITY, FLAGS

_NUMBER = struct.Struct(">Q")


class XattrRows:
    """Those of all inodes of one catalog."""

    def __init__(self, store: CatalogStore, cache: InodeCache) -> None:
        self._store = store
        self._cache = cache

    def put(self, key: bytes, value: bytes | None) -> None:
        """Put a row, or remove it. lmdb.Error."""
        if value is None:
            self._store.txn.delete(key, db=self._store.xattrs)
        else:
            self._store.txn.put(key, value, db=self._store.xattrs)
        inode = self._cache.cached.get(key_inode(key))
        if inode is not None:
            inode.capable = inode.flags = None

    def value(self, inode: InodeNumber, name: bytes) -> bytes | None:
        """The value of an attribute, or None. DiskFailed."""
        if len(name) > NAME_BYTES_MAX:
            return None
        return self._store.get(xattr_key(inode, name), self._store.xattrs)

    def names(self, inode: InodeNumber) -> list[bytes]:
        """The names of the extended attributes, in byte order."""
        return list(self.walk(inode))

    def walk(self, inode: InodeNumber) -> Iterator[bytes]:
        """The names one by one, without their values. Nothing may be put while they are walked."""
        prefix = _NUMBER.pack(inode)
        for key in self._store.keys(self._store.xattrs, prefix):
            if not key.startswith(prefix):
                break
            yield key[8:]

    def has_capability(self, inode: Inode) -> bool:
        """Whether the inode has `security.capability`. The answer is kept: each write asks."""
        if inode.capable is None:
            inode.capable = self.value(inode.number, CAPABILITY) is not None
        return inode.capable

    def flags(self, inode: Inode) -> int:
        """The flags of chattr(1). The answer is kept, likewise."""
        if inode.flags is None:
            inode.flags = decode_flags(self.value(inode.number, FLAGS))
        return inode.flags
