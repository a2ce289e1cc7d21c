"""Write: bytes into a regular file."""

import errno
from typing import ClassVar

from fusemirror.change import WriteChange
from fusemirror.errors import OperationFailed
from fusemirror.flags import BINDING, Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, SPACE_PER_CHANGE_BYTES, WRITE_BYTES_MAX
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import ByteRange, OfInode, Operation, range_shown_anew
from fusemirror.operations.privileges import EndPrivileges, has_privileges, rows_of_ended_privileges
from fusemirror.volume.catalog import Catalog


class Write(OfInode, tag=1, frozen=True, array_like=True, gc=False):
    """Write the bytes that travel beside; `append` means at the end, wherever that then is.

    `clear_privileges`: the writer may not keep set-user-id and set-group-id bits. (`security.capability`
    ends with any write.)
    """

    carries_data: ClassVar[bool] = True

    offset: int
    append: bool = False
    clear_privileges: bool = False

    def check(self) -> None:
        # The most frequent of all operations: what `check_fields` would say, without its walk.
        if not (0 <= self.inode < 1 << 64 and 0 <= self.offset <= FILE_BYTES_MAX):
            raise OperationFailed(errno.EINVAL)

    @property
    def image(self) -> InodeNumber:
        return self.inode

    @property
    def may_repeat(self) -> bool:
        return not self.append

    @property
    def data_offset(self) -> int:
        return self.offset

    def touched_range(self, catalog: Catalog, data_bytes: int) -> ByteRange | None:
        inode = catalog.inode(self.inode) if data_bytes else None
        if inode is None:
            return None
        start = inode.size if self.append else self.offset
        return range_shown_anew(inode, start, start + data_bytes)

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES + data_bytes if data_bytes else 0

    def may_be_written_behind(self, catalog: Catalog, data_bytes: int, file_bytes_max: int) -> bool:
        """Where the file ends is the primary's to say (O_APPEND), and whether the disks take files that
        long. Flags may forbid it. And nobody may run what was written with the privileges of what was
        there before.
        """
        if not data_bytes or self.append or self.offset + data_bytes > file_bytes_max:
            return False
        inode = catalog.inode(self.inode)
        if inode is None or not inode.is_regular or catalog.xattrs.flags(inode) & BINDING:
            return False
        return not has_privileges(catalog, inode, clear_set_id=self.clear_privileges)

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode = draft.file(self.inode)
        if not data_bytes:  # no bytes, wherever they are written, change nothing (write(2))
            return draft.unchanged(self.inode)
        if inode.flags != 0:  # mostly it is known that there are none
            draft.check_flags(inode, Act.EXTEND if self.append else Act.CHANGE_DATA)
        offset = inode.size if self.append else self.offset
        end = offset + data_bytes
        if end > draft.file_bytes_max or data_bytes > WRITE_BYTES_MAX or offset < 0:
            raise OperationFailed(errno.EFBIG)
        rows = rows_of_ended_privileges(
            draft, inode, size_after=max(end, inode.size), clear_set_id=self.clear_privileges
        )
        number, request, time_ns = draft.number, draft.request, draft.time_ns
        change = WriteChange(number, request, time_ns, self.inode, offset, data_bytes, rows)
        return Decision(change, self.inode, (self.inode,), inode.size)

    def in_steps(self) -> tuple[Operation, ...]:
        return EndPrivileges(self.inode, self.clear_privileges), self
