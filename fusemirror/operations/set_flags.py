"""SetFlags: the flags of a file or directory; FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR and chattr(1)."""

import errno
from typing import ClassVar

from fusemirror.errors import OperationFailed
from fusemirror.flags import KNOWN, Flag, encode_flags
from fusemirror.limits import SPACE_PER_CHANGE_BYTES
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode, check_fields, require
from fusemirror.xattrs import FLAGS


class SetFlags(OfInode, tag=45, frozen=True, array_like=True):
    """Those that it has from then on. Who may ask the kernel knows; what is immutable, and stays so, has the
    flags that it has (EPERM), as on ext4."""

    peer_says: ClassVar[str] = "takes_flags"

    flags: int

    def check(self) -> None:
        check_fields(self)
        require(not self.flags & ~KNOWN, errno.EOPNOTSUPP)

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES if self.flags else 0

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode = draft.inode(self.inode)
        if not (inode.is_regular or inode.is_directory):
            raise OperationFailed(errno.ENOTTY)
        before = draft.catalog.xattrs.flags(inode)
        if before & self.flags & Flag.IMMUTABLE and self.flags != before:
            raise OperationFailed(errno.EPERM)
        inode.ctime_ns = draft.time_ns
        draft.put_xattr(inode.number, FLAGS, encode_flags(self.flags))
        return draft.decision(inode.number)
