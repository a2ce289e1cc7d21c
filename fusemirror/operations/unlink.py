"""Unlink: take a name from an inode that is no directory; unlink(2)."""

import errno

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfName


class Unlink(OfName, tag=5, frozen=True, array_like=True):
    """Remove a name. The inode stays until neither host has it open (`control/purging.py`)."""

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        parent = draft.directory(self.parent)
        inode = draft.named(self.parent, self.name)
        draft.check_flags(parent, Act.REMOVE_ENTRY)
        draft.check_flags(inode, Act.LOSE_NAME)
        if inode.is_directory:
            raise OperationFailed(errno.EISDIR)
        draft.change_links(inode, -1)
        inode.ctime_ns = draft.time_ns
        draft.remove_name(self.parent, self.name)
        return draft.decision(inode.number)
