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
from fusemirror.xattrs import check_settable


class SetXattr(OfInode, tag=8, frozen=True, array_like=True):
    """Make it, or replace its value."""

    name: bytes
    value: bytes

    def check(self) -> None:
        check_fields(self)
        require(bool(self.name))

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
    """ENOSPC where listxattr(2) could not tell all names any more. A value can always be replaced."""
    if catalog.xattrs.value(inode, name) is None:
        names_bytes = sum(len(each) + 1 for each in catalog.xattrs.walk(inode))
        if names_bytes + len(name) + 1 > XATTR_NAMES_BYTES_MAX:
            raise OperationFailed(errno.ENOSPC)
