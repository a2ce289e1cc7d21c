"""LinkUnnamed: the first name of a file that was made without one; link(2) after open(2) with O_TMPFILE."""

import errno
from typing import ClassVar

from fusemirror.errors import OperationFailed
from fusemirror.operations.link import HardLink
from fusemirror.volume.inode import Inode


class LinkUnnamed(HardLink, tag=43, frozen=True, array_like=True):
    """Give a file its first name, or another where an answer was lost. The host that asks knows that it was
    made without one, and may get one (O_EXCL)."""

    peer_says: ClassVar[str] = "takes_unnamed"

    def check_names(self, inode: Inode) -> None:
        if not inode.is_regular:
            raise OperationFailed(errno.ENOENT)
