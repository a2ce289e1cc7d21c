"""SetAttributes: mode, owner, size and times of an inode; chmod(2), chown(2), truncate(2), utimensat(2)."""

import errno
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import msgspec

from fusemirror.change import Row, TruncateChange
from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, TIME_NS_MAX, TIME_NS_MIN
from fusemirror.operations import acl
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import NO_INODE, ByteRange, OfInode, Operation
from fusemirror.operations.privileges import EndPrivileges, end_privileges, has_privileges
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import Inode


def nearest_time(time_ns: int) -> int:
    """The time itself, or the first or last that an inode can hold, as Linux does it (utimensat(2))."""
    return min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


class SetAttributes(OfInode, tag=2, frozen=True, array_like=True):
    """Change the attributes that are not None. Times in nanoseconds since the epoch, sizes in bytes.

    `clear_privileges`: with the size, as for a write.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    clear_privileges: bool = False

    @property
    def image(self) -> InodeNumber:
        return NO_INODE if self.size is None else self.inode

    @property
    def stepwise(self) -> tuple[int, int] | None:
        # To nothing it is one step: an empty image takes the place of the old one.
        return (self.size, FILE_BYTES_MAX) if self.size and self.size > 0 else None

    def steps(self, points: Sequence[int], size_now: Callable[[], int]) -> Iterator[Self]:
        """From the end."""
        for point in reversed(points):
            if point < size_now():
                yield type(self)(self.inode, size=point, clear_privileges=self.clear_privileges)
        yield self

    def touched_range(self, catalog: Catalog, data_bytes: int) -> ByteRange | None:
        """Everything from the old or the new end on."""
        inode = None if self.size is None else catalog.inode(self.inode)
        if self.size is None or inode is None:
            return None
        return self.inode, max(0, min(self.size, inode.size)), FILE_BYTES_MAX

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        if self.mode is not None or self.uid is not None or self.gid is not None:
            draft.check_flags(draft.inode(self.inode), Act.CHANGE_ATTRIBUTES)
        if self.size is not None:
            return self._truncate(draft, self.size)
        # Times that are given, and not the present, an append-only file does not take: asked for before.
        draft.check_flags(draft.inode(self.inode), Act.TOUCH)
        self._draft_attributes(draft, draft.inode(self.inode))
        return draft.decision(self.inode)

    def _truncate(self, draft: Draft, size: int) -> Decision:
        """The other attributes, and the privileges that end, are rows of the one change."""
        inode = draft.file(self.inode)
        draft.check_flags(inode, Act.CHANGE_DATA)
        if not 0 <= size <= max(draft.file_bytes_max, inode.size):
            raise OperationFailed(errno.EFBIG)
        clear = self.clear_privileges
        ends = has_privileges(draft.catalog, inode, clear_set_id=clear) and not draft.keeps_privileges
        rows: tuple[Row, ...] = ()
        if ends or self._others != SetAttributes(self.inode):
            after = draft.inode(self.inode)
            after.size, after.mtime_ns = size, draft.time_ns
            if ends:
                end_privileges(draft, after, clear_set_id=clear)
            self._draft_attributes(draft, after)
            rows = draft.rows()
        change = TruncateChange(draft.number, draft.request, draft.time_ns, self.inode, size, rows)
        return Decision(change, self.inode, (self.inode,), inode.size)

    def _draft_attributes(self, draft: Draft, inode: Inode) -> None:
        """All but the size."""
        if self.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | (self.mode & 0o7777)
            access = draft.catalog.xattrs.value(inode.number, acl.ACCESS)
            if access is not None:
                changed = acl.after_chmod(acl.parse(access), inode.mode)
                draft.put_xattr(inode.number, acl.ACCESS, acl.encode(changed))
        if self.uid is not None:
            inode.uid = self.uid
        if self.gid is not None:
            inode.gid = self.gid
        if not inode.is_directory and (self.uid is not None or self.gid is not None):
            end_privileges(draft, inode, clear_set_id=True)  # root's chown too (chown(2))
        if self.atime_ns is not None:
            inode.atime_ns = nearest_time(self.atime_ns)
        if self.mtime_ns is not None:
            inode.mtime_ns = nearest_time(self.mtime_ns)
        inode.ctime_ns = draft.time_ns

    @property
    def _others(self) -> "SetAttributes":
        """What it does besides the truncation."""
        return msgspec.structs.replace(self, size=None, clear_privileges=False)

    def in_steps(self) -> tuple[Operation, ...]:
        size = SetAttributes(self.inode, size=self.size, clear_privileges=self.clear_privileges)
        first = EndPrivileges(self.inode, self.clear_privileges)
        return (first, size) if self._others == SetAttributes(self.inode) else (first, size, self._others)
