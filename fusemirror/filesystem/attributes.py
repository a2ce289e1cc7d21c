"""Inodes as the kernel wants them."""

import pyfuse3

from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.identifiers import NameKey
from fusemirror.volume.entries import Entry
from fusemirror.volume.inode import Inode

BLOCK_BYTES = 4096  # st_blksize, and the size of a logical block for programs that align their writes
_SECTOR_BYTES = 512

NO_LIFETIME_S = 0.0  # the kernel asks again each time: what the other host changed is seen (G2)


def no_entry(kept_s: float) -> pyfuse3.EntryAttributes:
    """There is no such name, and the kernel may keep that."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = kept_s
    return entry


def damaged_entry(found: Entry) -> pyfuse3.EntryAttributes:
    """Of a name whose inode cannot be read: no more than what the directory says."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = found.inode
    entry.entry_timeout = NO_LIFETIME_S
    entry.attr_timeout = NO_LIFETIME_S
    entry.st_mode = found.type << 12
    return entry


def entry_attributes(inode: Inode, allocated_bytes: int) -> pyfuse3.EntryAttributes:
    """`allocated_bytes`: what its data takes of the disk."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.number
    entry.generation = 0  # inode numbers are never reused
    entry.entry_timeout = NO_LIFETIME_S
    entry.attr_timeout = NO_LIFETIME_S
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = BLOCK_BYTES
    entry.st_blocks = -(-allocated_bytes // _SECTOR_BYTES)
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


class AttributeReplies:
    """What the kernel is told of an inode, and for how long it may keep that."""

    def __init__(self, unit: ControlUnit, cache: KernelCache) -> None:
        self._unit = unit
        self._cache = cache

    def of(self, inode: Inode, *, asked: bool = False) -> pyfuse3.EntryAttributes:
        """`asked`: the kernel wants to know just this."""
        entry = entry_attributes(inode, self._unit.allocated_bytes(inode))
        lifetime_s = self._unit.cacheable_s(inode.number)
        entry.attr_timeout, entry.st_mtime_ns = self._cache.tell(inode, lifetime_s, asked=asked)
        return entry

    def named(
        self, inode: Inode, name: NameKey | None = None, name_lifetime_s: float = 0.0
    ) -> pyfuse3.EntryAttributes:
        """The kernel refers to the inode from now on; by `name`, where that is one to be kept."""
        entry = self.of(inode)
        entry.entry_timeout = name_lifetime_s
        self._cache.named(inode.number)
        if name is not None and inode.is_directory:
            self._cache.directories.told(inode.number, name)
        return entry
