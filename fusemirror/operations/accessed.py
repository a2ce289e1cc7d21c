"""Accessed: that files and directories were read, told later and together; the mount option relatime."""

from typing import ClassVar

from fusemirror.flags import Flag
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ACCESSED_AGAIN_S, ACCESSED_PER_CHANGE
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import NO_INODE, Operation, require
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import Inode


class Accessed(Operation, tag=46, frozen=True, array_like=True):
    """The present becomes the time of access of those inodes of which that says something new. Nothing else
    of them changes, and nobody waits for it."""

    obeys_reservations: ClassVar[bool] = False
    peer_says: ClassVar[str] = "takes_accesses"
    begins_line: ClassVar[bool] = False

    inodes: tuple[InodeNumber, ...]

    def check(self) -> None:
        require(0 < len(self.inodes) <= ACCESSED_PER_CHANGE)
        require(all(0 <= inode < 1 << 64 for inode in self.inodes))

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        for number in self.inodes:
            inode = draft.catalog.inode(number)
            if inode is not None and is_due(draft.catalog, inode, draft.time_ns):
                draft.inode(number).atime_ns = draft.time_ns
        return draft.decision(NO_INODE)


def is_due(catalog: Catalog, inode: Inode, now_ns: int) -> bool:
    """By the rule of relatime (mount(8)): the last access was before the last change, or a day ago."""
    if catalog.xattrs.flags(inode) & Flag.NOATIME:
        return False
    changed_since = inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns)
    return changed_since or now_ns - inode.atime_ns >= ACCESSED_AGAIN_S * 10**9
