"""Change: one numbered modification, of data or of the namespace; what travels the whole way.

A change is *decided*: the primary has checked it, given it a number and a time, and worked out its
effects. Applying it needs no judgement and cannot fail but for the disk, so both hosts apply the
same change and hold the same result, and applying it a second time changes nothing.

- A `NamespaceChange` carries catalog rows: keys with their new values, or None for a row that goes.
  The same bytes stand in the journal and on the mirror path.
- A `WriteChange`, `TruncateChange`, `AllocateChange` or `CopyChange` concerns an image file. It is not kept
  in the journal, except at the primary for a request of the backup, so that the request takes effect once
  (G4), and on both hosts where it carries rows: what ends with the data, such as the privileges of a program.

Source: seed [0053]-[0057]; design.md, "The volume".
"""

from enum import IntEnum
from typing import get_args

import msgspec

from fusemirror.bounds import AnyRequest, Errno, FileBytes, OwnChangeNumber, OwnInode, OwnTime
from fusemirror.identifiers import ChangeNumber, InodeNumber


class Table(IntEnum):
    """The tables of the catalog (`volume/catalog.py` is the reference for their rows)."""

    META = 0
    INODES = 1
    ENTRIES = 2
    XATTRS = 3


Row = tuple[int, bytes, bytes | None]
"""(table, key, value); the value None removes the row."""


_ROW_OVERHEAD_BYTES = 13  # of the array, the table, and the heads of key and value


def row_bytes(row: Row) -> int:
    """The most that a row takes in an encoded change or message."""
    return len(row[1]) + len(row[2] or b"") + _ROW_OVERHEAD_BYTES


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What all changes have: their place in the order, and the backup's request they answer."""

    number: OwnChangeNumber
    request: AnyRequest
    time_ns: OwnTime

    @property
    def image(self) -> InodeNumber:
        """The inode whose data it changes; 0 where it changes no data."""
        return InodeNumber(0)

    @property
    def length(self) -> int:
        """Of the data that belongs to it."""
        return 0

    @property
    def taken_bytes(self) -> int:
        """What it may take of the disk for data."""
        return self.length

    def data_range(self) -> tuple[InodeNumber, int, int]:
        """The image, and from where to where its bytes change; inode 0 where no data does."""
        return InodeNumber(0), 0, 0


class NamespaceChange(Change, tag=1, frozen=True, array_like=True):
    """New rows of the catalog. `inode` is the inode that a requester wants to hear of, or 0.

    One with `errno` has no rows: a request that was acknowledged early is refused at this place in the order,
    and what is carried out behind it may rely on that.
    """

    inode: OwnInode
    rows: tuple[Row, ...]
    errno: Errno = 0


class _OfImage(Change, frozen=True, array_like=True, gc=False):
    """What a change of data begins with."""

    inode: OwnInode

    @property
    def image(self) -> InodeNumber:
        return self.inode


class WriteChange(_OfImage, tag=2, frozen=True, array_like=True, gc=False):
    """`length` bytes at `offset` of an image file; the bytes travel beside it, once.

    `rows` take effect with the data. The inode is among them then, as it is after the change.
    """

    offset: FileBytes
    length: FileBytes
    rows: tuple[Row, ...] = ()

    def data_range(self) -> tuple[InodeNumber, int, int]:
        return self.inode, self.offset, self.offset + self.length

    def size_after(self, size: int) -> int:
        """How long a file of `size` bytes is then."""
        return max(size, self.offset + self.length)


class TruncateChange(_OfImage, tag=3, frozen=True, array_like=True, gc=False):
    """The image file becomes `size` bytes long, cut or extended by a hole. `rows` as for a write."""

    size: FileBytes
    rows: tuple[Row, ...] = ()

    def data_range(self) -> tuple[InodeNumber, int, int]:
        return self.inode, self.size, 1 << 63

    def size_after(self, size: int) -> int:
        """How long a file of `size` bytes is then."""
        return self.size


KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # linux/falloc.h
ALLOCATION_MODES = frozenset({0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE})
RESERVING_MODES = frozenset({KEEP_SIZE, ZERO_RANGE | KEEP_SIZE})
"""Those that reserve room beyond the end of a file, which stays as long as it is."""


class _OfRange(_OfImage, frozen=True, array_like=True, gc=False):
    """What changes the bytes from `offset` to before `end` begins with, where none travel beside it."""

    offset: FileBytes
    end: FileBytes

    @property
    def taken_bytes(self) -> int:
        return self.end - self.offset

    def data_range(self) -> tuple[InodeNumber, int, int]:
        return self.inode, self.offset, self.end


class AllocateChange(_OfRange, tag=4, frozen=True, array_like=True, gc=False):
    """The image file has room for its bytes from `offset` to before `end`, or a hole there, by `mode` as
    fallocate(2) has it. `rows` as for a write.
    """

    mode: int
    rows: tuple[Row, ...] = ()

    @property
    def taken_bytes(self) -> int:
        return 0 if self.mode & PUNCH_HOLE else self.end - self.offset

    def size_after(self, size: int) -> int:
        """How long a file of `size` bytes is then."""
        return size if self.mode & KEEP_SIZE else max(size, self.end)


class CopyChange(_OfRange, tag=5, frozen=True, array_like=True, gc=False):
    """The bytes from `offset` to before `end` of the image file become those of the image of `source` from
    `source_offset` on, as they are at this place in the order: each host copies its own. `rows` as for a
    write.
    """

    source: OwnInode
    source_offset: FileBytes
    rows: tuple[Row, ...] = ()

    def size_after(self, size: int) -> int:
        """How long a file of `size` bytes is then."""
        return max(size, self.end)


DataChange = WriteChange | TruncateChange | AllocateChange | CopyChange
AnyChange = NamespaceChange | WriteChange | TruncateChange | AllocateChange | CopyChange

COOKIES_PER_CHANGE = 2  # the names that one change adds at most; one is all that any does by now


def first_cookie(number: ChangeNumber) -> int:
    """Cookies of the names that change `number` adds begin here; those of all changes before are lower."""
    return number * COOKIES_PER_CHANGE


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyChange)

encode_change = _encoder.encode
"""The change as bytes, for the journal and the wire alike."""


def decode_change(encoded: bytes | memoryview) -> AnyChange:
    """The change that `encode_change` made these bytes of; `msgspec.DecodeError` if none did."""
    change: AnyChange = _decoder.decode(encoded)
    return change


_TAGS = [kind.__struct_config__.tag for kind in get_args(AnyChange)]
NEWEST_TAG: int = max(_TAGS)
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])


def tag_of(encoded: bytes | memoryview) -> int:
    """The tag of a change, even of one that only a later version knows; 0 where there is none."""
    try:
        return msgspec.msgpack.decode(_parts.decode(encoded)[0], type=int)
    except (msgspec.DecodeError, IndexError):
        return 0
