"""CreateUnnamed: a regular file without a name; open(2) with O_TMPFILE."""

import errno
import stat
from typing import ClassVar

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPACE_PER_CHANGE_BYTES
from fusemirror.operations.create import new_inode
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import Operation, check_fields, require


class CreateUnnamed(Operation, tag=42, frozen=True, array_like=True):
    """Make a file as `Create` would in `directory`, which stays as it is. Unless somebody opens it within
    `PURGE_AFTER_S` it ends as others do that have lost their names; `LinkUnnamed` gives it one."""

    peer_says: ClassVar[str] = "takes_unnamed"

    directory: InodeNumber
    mode: int
    uid: int
    gid: int
    umask: int = 0

    def check(self) -> None:
        check_fields(self)
        require(stat.S_ISREG(self.mode))

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        directory = draft.catalog.inode(self.directory)
        if directory is None:
            raise OperationFailed(errno.ESTALE)
        if not directory.is_directory:
            raise OperationFailed(errno.ENOTDIR)
        if directory.nlink == 0:
            raise OperationFailed(errno.ENOENT)
        draft.check_flags(directory, Act.ADD_ENTRY)
        inode = new_inode(draft, directory, self.mode, self.uid, self.gid, umask=self.umask)
        return draft.decision(inode.number, new_file=True)
