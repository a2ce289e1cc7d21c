"""Allocate: room for bytes of a regular file, or a hole; fallocate(2)."""

import errno
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import msgspec

from fusemirror.change import ALLOCATION_MODES, KEEP_SIZE, PUNCH_HOLE, AllocateChange, Row
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, SPACE_PER_CHANGE_BYTES
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import ByteRange, OfInode, check_fields, require
from fusemirror.operations.privileges import end_privileges, has_privileges
from fusemirror.volume.catalog import Catalog


class Allocate(OfInode, tag=41, frozen=True, array_like=True, gc=False):
    """Bytes from `offset` to before `end`, by `mode` (`ALLOCATION_MODES`). `clear_privileges` as for a
    write."""

    peer_says: ClassVar[str] = "takes_allocations"

    offset: int
    end: int
    mode: int
    clear_privileges: bool = False

    def check(self) -> None:
        check_fields(self)
        require(self.mode in ALLOCATION_MODES, errno.EOPNOTSUPP)
        require(self.offset < self.end)

    @property
    def image(self) -> InodeNumber:
        return self.inode

    @property
    def stepwise(self) -> tuple[int, int] | None:
        return self.offset, self.end

    def steps(self, points: Sequence[int], size_now: Callable[[], int]) -> Iterator[Self]:
        for start, end in pairwise((self.offset, *points, self.end)):
            yield msgspec.structs.replace(self, offset=start, end=end)

    def touched_range(self, catalog: Catalog, data_bytes: int) -> ByteRange | None:
        """One that makes the file longer takes everything from its old end on."""
        inode = catalog.inode(self.inode)
        if inode is None:
            return None
        if self.mode & KEEP_SIZE or self.end <= inode.size:
            return self.inode, self.offset, self.end
        return self.inode, min(self.offset, inode.size), FILE_BYTES_MAX

    def space_needed(self, data_bytes: int) -> int:
        """A hole is made on a full disk too."""
        return 0 if self.mode & PUNCH_HOLE else SPACE_PER_CHANGE_BYTES + self.end - self.offset

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode = draft.file(self.inode)
        if self.end > draft.file_bytes_max:
            raise OperationFailed(errno.EFBIG)
        rows: tuple[Row, ...] = ()
        clear = self.clear_privileges
        if has_privileges(draft.catalog, inode, clear_set_id=clear) and not draft.keeps_privileges:
            after = draft.inode(self.inode)
            after.size = self._change_of(draft).size_after(inode.size)
            after.mtime_ns = after.ctime_ns = draft.time_ns
            end_privileges(draft, after, clear_set_id=clear)
            rows = draft.rows()
        return Decision(self._change_of(draft, rows), self.inode, (self.inode,), inode.size)

    def _change_of(self, draft: Draft, rows: tuple[Row, ...] = ()) -> AllocateChange:
        number, request, time_ns = draft.number, draft.request, draft.time_ns
        return AllocateChange(number, request, time_ns, self.inode, self.offset, self.end, self.mode, rows)
