"""RemoveXattr: take an extended attribute from an inode; removexattr(2)."""

import errno

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode, check_fields, require
from fusemirror.xattrs import namespace_of


class RemoveXattr(OfInode, tag=9, frozen=True, array_like=True):
    """ENODATA where there is none."""

    name: bytes

    def check(self) -> None:
        check_fields(self)
        require(bool(self.name))

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode = draft.inode(self.inode)
        draft.check_flags(inode, Act.CHANGE_XATTRS)
        namespace_of(self.name)
        if draft.catalog.xattrs.value(inode.number, self.name) is None:
            raise OperationFailed(errno.ENODATA)
        inode.ctime_ns = draft.time_ns
        draft.put_xattr(inode.number, self.name, None)
        return draft.decision(inode.number)
