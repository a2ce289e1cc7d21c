"""Operation: what the control units ask of every operation, and what most operations answer.

No unit looks at the type of an operation: it asks one of these questions. Each operation stands in a module
of its own, and answers there what is special about it.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Self

import msgspec

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.limits import DATA_BYTES_MAX, FILE_BYTES_MAX
from fusemirror.operations.draft import Decision, Draft
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import Inode

ByteRange = tuple[InodeNumber, int, int]
"""Bytes of an image: from the second number on, and before the third."""

NO_INODE = InodeNumber(0)


def range_shown_anew(inode: Inode, start: int, end: int) -> ByteRange:
    """What a change of these bytes shows anew: one that makes the file longer, everything from its old end
    on."""
    if end <= inode.size:
        return inode.number, start, end
    return inode.number, min(start, inode.size), FILE_BYTES_MAX


_U32, _U64 = range(1 << 32), range(1 << 64)
_NUMBERS: dict[str, range] = {
    "inode": _U64,
    "parent": _U64,
    "directory": _U64,
    "new_parent": _U64,
    "expected": _U64,
    "source": _U64,
    "flags": _U32,
    "mode": range(1 << 16),  # the type, and what chmod(2) takes
    "umask": range(1 << 12),
    "uid": _U32,
    "gid": _U32,
    "rdev": _U64,
    "offset": range(FILE_BYTES_MAX + 1),
    "end": range(FILE_BYTES_MAX + 1),
    "source_offset": range(FILE_BYTES_MAX + 1),
    "length": range(DATA_BYTES_MAX + 1),
    "rate_bytes": range(FILE_BYTES_MAX + 1),
}
"""Of each field that is a number; sizes and times `decide` looks at itself."""


def require(good: bool, error: int = errno.EINVAL) -> None:
    """OperationFailed unless it is as it should be."""
    if not good:
        raise OperationFailed(error)


def check_fields(asked: msgspec.Struct) -> None:
    """EINVAL where a field holds what no kernel gives: its numbers become arguments of system calls."""
    for field in asked.__struct_fields__:
        value = getattr(asked, field)
        if field in _NUMBERS:
            require(value is None or value in _NUMBERS[field])
        elif isinstance(value, bytes) and field in ("name", "new_name", "target"):
            require(b"\0" not in value)


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """Base of all operations. What it says here is what most of them answer."""

    carries_data: ClassVar[bool] = False
    """Bytes travel beside it."""
    obeys_reservations: ClassVar[bool] = True
    """It is refused where the other host has reserved what it touches."""
    peer_says: ClassVar[str] = ""
    """The field of a `Hello` by which a peer says that it takes such operations and their changes; "": every
    peer does. Where it does not the answer is EOPNOTSUPP."""

    begins_line: ClassVar[bool] = True
    """It may be the first change that the primary makes alone, from which on its history is its own."""

    # --- what it validates ------------------------------------------------------------------------------

    def check(self) -> None:
        """OperationFailed for what no kernel could have asked. A primary asks it of what comes from the peer,
        before anything else looks at the fields."""
        check_fields(self)

    # --- what it touches --------------------------------------------------------------------------------

    def touched_inodes(self, catalog: Catalog) -> Iterable[InodeNumber]:
        """The inodes that it changes as such. Of a directory whose names change, nothing: two hosts may make
        names in one directory although the other has reserved a file there."""
        return ()

    def touched_names(self) -> tuple[NameKey, ...]:
        """The names that it makes, removes or replaces."""
        return ()

    def touched_range(self, catalog: Catalog, data_bytes: int) -> ByteRange | None:
        """The bytes that it writes or shows anew, as the file is now; None where it touches no data.

        What changes the length of a file takes everything from its old or new end on.
        """
        return None

    def must_be_empty(self, catalog: Catalog) -> InodeNumber | None:
        """The directory into which it looks to see that it is empty."""
        return None

    @property
    def image(self) -> InodeNumber:
        """The inode whose data it changes; 0 where it changes no data."""
        return NO_INODE

    @property
    def copied_image(self) -> InodeNumber:
        """The inode whose data each host copies from its own volume; 0 where none is copied."""
        return NO_INODE

    @property
    def stepwise(self) -> tuple[int, int] | None:
        """From where to where the image's room on the disk changes, where that may be so much that it is done
        in steps; else None."""
        return None

    def steps(self, points: Sequence[int], size_now: Callable[[], int]) -> Iterator[Self]:
        """The same in steps that end at these places within `stepwise`, the last step last. `size_now` is how
        long the file is when the next step is asked for: other programs may change it meanwhile."""
        yield self

    @property
    def clear_privileges(self) -> bool:
        """Whether set-id bits end with the data that it changes: its program may not keep them."""
        return False

    # --- what it needs ----------------------------------------------------------------------------------

    def space_needed(self, data_bytes: int) -> int:
        """Bytes that it may take of the disk; 0 for one that must work on a full disk.

        Deleting, cutting, renaming and changing attributes make do with the reserve: a local disk lets
        them through too, and a full one is emptied by them.
        """
        return 0

    @property
    def inodes_needed(self) -> int:
        """Inodes that it may take of the disk: each image has one."""
        return 0

    def reserves_beyond_end(self, catalog: Catalog) -> bool:
        """Whether it asks for room beyond the end of its image, which stays as long as it is."""
        return False

    # --- what it decides, and answers -------------------------------------------------------------------

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        """What it does at the draft's place in the order, with so many bytes beside it.

        OperationFailed with the errno that a local filesystem would give. It changes nothing by itself, so it
        may be asked again, at another place.
        """
        raise NotImplementedError

    def in_steps(self) -> tuple["Operation", ...]:
        """The same by operations that change data or rows, never both: for a peer of an earlier version.

        The last one brings the data, and answers the request.
        """
        return (self,)

    # --- write-behind -----------------------------------------------------------------------------------

    def may_be_written_behind(self, catalog: Catalog, data_bytes: int, file_bytes_max: int) -> bool:
        """Whether the backup may acknowledge it before the primary has given it a place in the order: it is
        sure to succeed, and nothing but data depends on it."""
        return False

    @property
    def may_repeat(self) -> bool:
        """To do it twice is to do it once, but for what others did in between."""
        return False

    @property
    def data_offset(self) -> int:
        """Where in the image the data of one belongs that is written behind."""
        raise NotImplementedError


class OfInode(Operation, frozen=True, array_like=True):
    """Base of those that change an inode by its number."""

    inode: InodeNumber

    def touched_inodes(self, catalog: Catalog) -> Iterable[InodeNumber]:
        return (self.inode,)


class OfName(Operation, frozen=True, array_like=True):
    """Base of those that change a name in a directory."""

    parent: InodeNumber
    name: bytes

    def check(self) -> None:
        check_fields(self)
        require(b"/" not in self.name)

    def touched_names(self) -> tuple[NameKey, ...]:
        return ((self.parent, self.name),)

    def touched_inodes(self, catalog: Catalog) -> Iterable[InodeNumber]:
        entries = [catalog.entry(*name) for name in self.touched_names()]
        return [entry.inode for entry in entries if entry is not None]
