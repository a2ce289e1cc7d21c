"""The paths of inodes and names, as one walk over the catalog finds them."""

import sys

import trio

from fusemirror.change import Table
from fusemirror.identifiers import ROOT_INODE, InodeNumber, NameKey
from fusemirror.volume.entries import inode_key, key_inode, unpack_entry
from fusemirror.volume.volume import Volume

_DIRECTORY_TYPE = 4
_PER_TURN = 256  # rows between two checkpoints: about a millisecond


def name_of(key: bytes) -> NameKey:
    """The name that a row of entries has for its key."""
    return key_inode(key), key[8:]


async def name_of_directory(volume: Volume, directory: InodeNumber) -> NameKey | None:
    """The name that a directory has now, found among those of its parent; None for one that is not there, or
    that moves meanwhile. DiskFailed, VolumeDamaged. Cancellation: atomic."""
    inode = volume.catalog.inode(directory)
    if inode is None or not inode.is_directory:
        return None
    after = inode_key(inode.parent)
    while rows := volume.catalog.tables.rows(Table.ENTRIES, after, _PER_TURN):
        for key, value in rows:
            if key_inode(key) != inode.parent:
                return None
            if unpack_entry(value).inode == directory:
                return name_of(key)
        after = rows[-1][0]
        await trio.lowlevel.checkpoint()
    return None


class Tree:
    """Which names inodes have, and the paths of names, as one walk over the catalog found them."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._directories: dict[InodeNumber, NameKey] = {}
        self.names: dict[InodeNumber, list[NameKey]] = {}

    async def walk(self, wanted: set[InodeNumber] | None) -> None:
        """Find the names of all `wanted` inodes, None for every one. What changes meanwhile may be missed."""
        if wanted is not None and ROOT_INODE in wanted:
            self.names[ROOT_INODE] = [(ROOT_INODE, b"")]
        after: bytes | None = None
        while rows := self._volume.catalog.tables.rows(Table.ENTRIES, after, _PER_TURN):
            for key, value in rows:
                entry = unpack_entry(value)
                if entry.type == _DIRECTORY_TYPE:
                    self._directories[entry.inode] = name_of(key)
                if wanted is None or entry.inode in wanted:
                    self.names.setdefault(entry.inode, []).append(name_of(key))
            after = rows[-1][0]
            await trio.lowlevel.checkpoint()

    def path(
        self, name: NameKey, then: dict[InodeNumber, NameKey], bytes_max: int = sys.maxsize
    ) -> list[bytes]:
        """The components of a name's path; directories that `then` has are where it says. Of one that is
        longer than `bytes_max` the last of them, which are longer, too."""
        path: list[bytes] = []
        size_bytes = 0
        seen: set[InodeNumber] = set()
        while name[0] not in seen:  # a directory may have moved while the names were read
            path.append(name[1])
            size_bytes += 1 + len(name[1])
            seen.add(name[0])
            parent = then.get(name[0]) or self._directories.get(name[0])
            if name[0] == ROOT_INODE or parent is None or size_bytes > bytes_max:
                break
            name = parent
        path.reverse()
        return path
