"""Privileges: what a program may do that runs a file, and what ends it.

A file capability ends with any change of the data, by root too (capabilities(7)). Set-id bits end with one
by somebody who may not keep them, and with a new owner (chown(2)).
"""

import stat

from fusemirror.change import Row
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import CAPABILITY

_SET_ID = stat.S_ISUID | stat.S_ISGID


def _without_set_id(mode: int) -> int:
    """As the kernel does on a write: set-group-id goes only where the group may execute."""
    kept = mode & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept


def has_privileges(catalog: Catalog, inode: Inode, *, clear_set_id: bool) -> bool:
    """Whether a change of the inode's data ends any; `clear_set_id`: by one who may not keep set-id bits."""
    if inode.capable is not False and catalog.xattrs.has_capability(inode):
        return True
    return clear_set_id and inode.mode & _SET_ID != 0 and _without_set_id(inode.mode) != inode.mode


def end_privileges(draft: Draft, inode: Inode, *, clear_set_id: bool) -> None:
    """End them in the draft; `inode` is its copy."""
    if clear_set_id:
        inode.mode = _without_set_id(inode.mode)
    if draft.catalog.xattrs.value(inode.number, CAPABILITY) is not None:
        draft.put_xattr(inode.number, CAPABILITY, None)


def rows_of_ended_privileges(
    draft: Draft, inode: Inode, *, size_after: int, clear_set_id: bool
) -> tuple[Row, ...]:
    """What a change of the inode's data carries because privileges end with it: the inode as it is then, so
    long, among them; nothing where none end."""
    if draft.keeps_privileges or not has_privileges(draft.catalog, inode, clear_set_id=clear_set_id):
        return ()
    after = draft.inode(inode.number)
    after.size = size_after
    after.mtime_ns = after.ctime_ns = draft.time_ns
    end_privileges(draft, after, clear_set_id=clear_set_id)
    return draft.rows()


class EndPrivileges(OfInode, frozen=True, array_like=True):
    """A step before a change of data, for a peer that takes no rows with it. It never travels."""

    clear_set_id: bool

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        if has_privileges(draft.catalog, draft.file(self.inode), clear_set_id=self.clear_set_id):
            inode = draft.inode(self.inode)
            inode.ctime_ns = draft.time_ns
            end_privileges(draft, inode, clear_set_id=self.clear_set_id)
        return draft.decision(self.inode)
