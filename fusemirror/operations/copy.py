"""Copy: bytes of a regular file into it or another one, by each host on its own disk; copy_file_range(2)."""

import errno
from typing import ClassVar

from fusemirror.change import CopyChange
from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import COPY_BYTES_MAX, FILE_BYTES_MAX, SPACE_PER_CHANGE_BYTES
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import ByteRange, OfInode, check_fields, range_shown_anew, require
from fusemirror.operations.privileges import rows_of_ended_privileges
from fusemirror.volume.catalog import Catalog


class Copy(OfInode, tag=44, frozen=True, array_like=True, gc=False):
    """Bytes of `source` from `source_offset` on become those from `offset` to before `end`.

    All of them or none: ENODATA where the source, at the operation's place in the order, ends before.
    `clear_privileges` as for a write.
    """

    peer_says: ClassVar[str] = "takes_copies"

    offset: int
    end: int
    source: InodeNumber
    source_offset: int
    clear_privileges: bool = False

    def check(self) -> None:
        check_fields(self)
        length = self.end - self.offset
        require(0 < length <= COPY_BYTES_MAX)
        require(self.source_offset + length <= FILE_BYTES_MAX)
        require(self.source != self.inode or abs(self.source_offset - self.offset) >= length)  # overlapping

    @property
    def image(self) -> InodeNumber:
        return self.inode

    @property
    def copied_image(self) -> InodeNumber:
        return self.source

    def touched_range(self, catalog: Catalog, data_bytes: int) -> ByteRange | None:
        inode = catalog.inode(self.inode)
        return None if inode is None else range_shown_anew(inode, self.offset, self.end)

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES + self.end - self.offset

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode, source = draft.file(self.inode), draft.file(self.source)
        draft.check_flags(inode, Act.CHANGE_DATA)
        if self.end > draft.file_bytes_max:
            raise OperationFailed(errno.EFBIG)
        if self.source_offset + self.end - self.offset > source.size:
            raise OperationFailed(errno.ENODATA)
        rows = rows_of_ended_privileges(
            draft, inode, size_after=max(inode.size, self.end), clear_set_id=self.clear_privileges
        )
        change = CopyChange(
            draft.number,
            draft.request,
            draft.time_ns,
            self.inode,
            self.offset,
            self.end,
            self.source,
            self.source_offset,
            rows,
        )
        return Decision(change, self.inode, (self.inode,), inode.size)
