"""Link: one more name of an inode; link(2)."""

import errno

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.limits import LINKS_MAX, SPACE_PER_CHANGE_BYTES
from fusemirror.operations.draft import Decision, Draft, check_name
from fusemirror.operations.operation import OfInode, check_fields, require
from fusemirror.volume.inode import Inode


class HardLink(OfInode, tag=4, frozen=True, array_like=True):
    """Give an inode that has a name another one."""

    parent: InodeNumber
    name: bytes

    def check(self) -> None:
        check_fields(self)
        require(b"/" not in self.name)

    def touched_names(self) -> tuple[NameKey, ...]:
        return ((self.parent, self.name),)

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        check_name(self.name)
        inode = draft.inode(self.inode)
        if inode.is_directory:
            raise OperationFailed(errno.EPERM)
        self.check_names(inode)
        if inode.nlink >= LINKS_MAX:
            raise OperationFailed(errno.EMLINK)
        parent = draft.directory(self.parent)
        if draft.catalog.entry(self.parent, self.name) is not None:
            raise OperationFailed(errno.EEXIST)
        draft.check_flags(parent, Act.ADD_ENTRY)
        draft.check_flags(inode, Act.GET_NAME)
        draft.change_links(inode, 1)
        inode.ctime_ns = draft.time_ns
        draft.put_name(self.parent, self.name, inode)
        return draft.decision(inode.number)

    def check_names(self, inode: Inode) -> None:
        """ENOENT for what has lost its names: it waits for its end."""
        if inode.nlink == 0:
            raise OperationFailed(errno.ENOENT)
