"""Calls: what the backup asks of the primary besides operations.

They change nothing in the volumes, so they get no number, and whoever waits for one is told by the primary's
`Answer` alone. They travel as operations do, in a `Request`, so no tag here is one of theirs.
"""

import struct
from typing import ClassVar

import msgspec

from fusemirror.identifiers import InodeNumber
from fusemirror.operations.operation import check_fields
from fusemirror.settings import Access


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Base of all calls."""

    carries_data: ClassVar[bool] = False
    peer_says: ClassVar[str] = ""
    """As of an operation."""
    is_repeated: ClassVar[bool] = True
    """It is made again over the next link, where this one is lost before the answer."""

    def check(self) -> None:
        """OperationFailed for what makes no sense: the primary asks it of what comes from its peer, first."""
        check_fields(self)

    @property
    def answer_bytes_max(self) -> int:
        """Of the data beside its answer."""
        return 0


class Read(Call, tag=10, frozen=True, array_like=True, gc=False):
    """Read at the primary: what the backup asks when its own image is not up to date."""

    inode: InodeNumber
    offset: int
    length: int

    @property
    def answer_bytes_max(self) -> int:
        return self.length


class Seek(Call, tag=40, frozen=True, array_like=True, gc=False):
    """Where, from `offset` on, the primary's image has data, or else a hole; asked where `Read` is.

    Answered with the place, 8 bytes (`place_in`). Only of a primary that has said that it takes it.
    """

    peer_says: ClassVar[str] = "takes_seeks"

    inode: InodeNumber
    offset: int
    data: bool


class Flush(Call, tag=11, frozen=True, array_like=True, gc=False):
    """fsync: make everything done to the inode so far durable in both volumes."""

    inode: InodeNumber


class StartVerify(Call, tag=12, frozen=True, array_like=True):
    """Begin to compare the volumes, or join a comparison under way.

    `keep`: the role of the host whose version replaces what differs; "" to change nothing.
    """

    keep: str = ""


class VerifyProgress(Call, tag=13, frozen=True, array_like=True):
    """How far the comparison is; answered with an encoded `mirror.verify.VerifyReport`."""


class SwitchRoles(Call, tag=14, frozen=True, array_like=True):
    """Hand the role of primary to the backup, which asks for it. Answered by a `HandOver`, or not at all."""

    is_repeated: ClassVar[bool] = False  # whoever asked has been told that it failed


class ChangeAccess(Call, tag=22, frozen=True, array_like=True):
    """Take another access on both hosts."""

    access: Access


class ChangePace(Call, tag=30, frozen=True, array_like=True):
    """How fast resyncs may copy, and whether; None leaves it as it is."""

    rate_bytes: int | None = None
    paused: bool | None = None


_PLACE = struct.Struct(">Q")


def place_value(place: int) -> bytes:
    """The value of the answer to a `Seek`."""
    return _PLACE.pack(place)


def place_in(value: bytes) -> int:
    """What `place_value` made this of; ValueError if it made none."""
    if len(value) != _PLACE.size:
        raise ValueError(f"value: {len(value)} bytes are no place in a file")
    (place,) = _PLACE.unpack(value)
    return int(place)


AnyCall = Read | Seek | Flush | StartVerify | VerifyProgress | SwitchRoles | ChangeAccess | ChangePace
