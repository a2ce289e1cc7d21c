"""Allocate: room for bytes of a regular file, or a hole; fallocate(2)."""

import errno
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import msgspec

from fusemirror.change import (
    ALLOCATION_MODES,
    KEEP_SIZE,
    PUNCH_HOLE,
    RESERVING_MODES,
    AllocateChange,
    Row,
)
from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPACE_PER_CHANGE_BYTES
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import ByteRange, OfInode, check_fields, range_shown_anew, require
from fusemirror.operations.privileges import rows_of_ended_privileges
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
        inode = catalog.inode(self.inode)
        if inode is None:
            return None
        if self.mode & KEEP_SIZE:
            return self.inode, self.offset, self.end
        return range_shown_anew(inode, self.offset, self.end)

    def space_needed(self, data_bytes: int) -> int:
        """A hole is made on a full disk too."""
        return 0 if self.mode & PUNCH_HOLE else SPACE_PER_CHANGE_BYTES + self.end - self.offset

    def reserves_beyond_end(self, catalog: Catalog) -> bool:
        inode = catalog.inode(self.inode) if self.mode in RESERVING_MODES else None
        return inode is not None and inode.is_regular and self.end > inode.size

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        inode = draft.file(self.inode)
        draft.check_flags(inode, Act.CHANGE_DATA if self.mode & ~KEEP_SIZE else Act.EXTEND)
        if self.end > draft.file_bytes_max:
            raise OperationFailed(errno.EFBIG)
        size = self._change_of(draft).size_after(inode.size)
        rows = rows_of_ended_privileges(draft, inode, size_after=size, clear_set_id=self.clear_privileges)
        return Decision(self._change_of(draft, rows), self.inode, (self.inode,), inode.size)

    def _change_of(self, draft: Draft, rows: tuple[Row, ...] = ()) -> AllocateChange:
        number, request, time_ns = draft.number, draft.request, draft.time_ns
        return AllocateChange(number, request, time_ns, self.inode, self.offset, self.end, self.mode, rows)
