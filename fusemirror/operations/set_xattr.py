"""SetXattr: an extended attribute of an inode; setxattr(2)."""

import errno

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    SPACE_PER_CHANGE_BYTES,
    XATTR_NAME_BYTES_MAX,
    XATTR_NAMES_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from fusemirror.operations import acl
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode, check_fields, require
from fusemirror.volume.catalog import Catalog
from fusemirror.xattrs import SETTING_FLAGS, XATTR_CREATE, XATTR_REPLACE, check_settable


class SetXattr(OfInode, tag=8, frozen=True, array_like=True):
    """Make it, or replace its value; by `flags` only the one or the other.

    A primary of an earlier version does not see the flags, so who asks with some looks before. Whether that
    still holds when the other host's operations have been decided, only the primary can say.
    """

    name: bytes
    value: bytes
    flags: int = 0

    def check(self) -> None:
        check_fields(self)
        require(bool(self.name))
        require(self.flags & ~SETTING_FLAGS == 0)

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES + len(self.value)

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        if len(self.name) > XATTR_NAME_BYTES_MAX:
            raise OperationFailed(errno.ERANGE)
        if len(self.value) > XATTR_VALUE_BYTES_MAX:
            raise OperationFailed(errno.E2BIG)
        inode = draft.inode(self.inode)
        draft.check_flags(inode, Act.CHANGE_XATTRS)
        check_settable(self.name, inode.mode)
        there = draft.catalog.xattrs.value(inode.number, self.name) is not None
        if there and self.flags & XATTR_CREATE:
            raise OperationFailed(errno.EEXIST)
        if not there:
            if self.flags & XATTR_REPLACE:
                raise OperationFailed(errno.ENODATA)
            _check_names_fit(draft.catalog, inode.number, self.name)
        inode.ctime_ns = draft.time_ns
        value: bytes | None = self.value
        if self.name == acl.ACCESS:
            access = acl.parse(self.value)
            inode.mode = acl.mode_of(access, inode.mode)
            value = None if acl.is_minimal(access) else self.value
        elif self.name == acl.DEFAULT:
            acl.parse(self.value)
        draft.put_xattr(inode.number, self.name, value)
        return draft.decision(inode.number)


def _check_names_fit(catalog: Catalog, inode: InodeNumber, name: bytes) -> None:
    """ENOSPC where listxattr(2) could not tell all names any more, with a new one."""
    names_bytes = sum(len(each) + 1 for each in catalog.xattrs.walk(inode))
    if names_bytes + len(name) + 1 > XATTR_NAMES_BYTES_MAX:
        raise OperationFailed(errno.ENOSPC)
