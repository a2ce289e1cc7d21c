"""Bounds: types of the fields that come from outside, each with what may stand in it.

A message, a record and a row are decoded into these, so what does not fit is refused by the decoder,
before anybody looks at it. Where two fields bound each other, see `protocol/checks.py`.
"""

from typing import Annotated

from msgspec import Meta

from fusemirror import limits
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId

OwnInode = Annotated[InodeNumber, Meta(ge=0, le=limits.INODE_NUMBER_MAX)]
OwnChangeNumber = Annotated[ChangeNumber, Meta(ge=0, le=limits.CHANGE_NUMBER_MAX)]
OwnTime = Annotated[int, Meta(ge=0, le=limits.CHANGE_TIME_NS_MAX)]
"""In what stands in this host's journal, too."""

AnyInode = Annotated[InodeNumber, Meta(ge=0, le=limits.INODE_NUMBER_RECEIVED_MAX)]
"""An inode number; 0 where the message says what that means."""

AnyChangeNumber = Annotated[ChangeNumber, Meta(ge=0, le=limits.CHANGE_NUMBER_RECEIVED_MAX)]

ClaimedChangeNumber = Annotated[ChangeNumber, Meta(ge=0, le=limits.CHANGE_NUMBER_CLAIMED_MAX)]
"""Of the last change that a peer says it holds, when two hosts meet."""

AnyRequest = Annotated[RequestId, Meta(max_length=limits.REQUEST_ID_BYTES)]
"""A request, or none."""

ARequest = Annotated[RequestId, Meta(min_length=limits.REQUEST_ID_BYTES, max_length=limits.REQUEST_ID_BYTES)]

AnyIdentity = Annotated[bytes, Meta(max_length=limits.IDENTITY_BYTES_MAX)]
"""Of a filesystem, a host, a process, a call or a generation."""

Counter = Annotated[int, Meta(ge=0, le=limits.COUNTER_MAX)]
"""A term, a checkpoint, a token, a serial, or how many there are of something."""

FileBytes = Annotated[int, Meta(ge=0, le=limits.FILE_BYTES_MAX)]
"""A size of a file, or an offset in one."""

Errno = Annotated[int, Meta(ge=0, le=limits.ERRNO_MAX)]

Checksum = Annotated[int, Meta(ge=0)]
"""64 bits."""

Bytes = Annotated[int, Meta(ge=0)]
"""How many bytes, of many files perhaps; for people."""

KeyBytes = Annotated[bytes, Meta(max_length=limits.KEY_BYTES_MAX)]
"""Of a row of the catalog, or before the first one."""

REGIONS_MAX = limits.FILE_BYTES_MAX // limits.REGION_BYTES + 1

FirstRegion = Annotated[int, Meta(ge=0, lt=REGIONS_MAX)]

EndRegion = Annotated[int, Meta(ge=0, le=REGIONS_MAX)]
"""Where a range of regions begins, or the one behind it."""

Mark = Annotated[int, Meta(ge=-1 - REGIONS_MAX, lt=REGIONS_MAX)]
"""A region; or -1 - n, which stands for all from n on."""

LockOwner = Annotated[int, Meta(ge=0)]
"""64 bits that a kernel gave to a process or an open file."""

LockSpace = Annotated[int, Meta(ge=0, le=1)]
"""fcntl(2) or flock(2)."""

ProcessNumber = Annotated[int, Meta(ge=0, lt=1 << 31)]

UserNumber = Annotated[int, Meta(ge=0, lt=1 << 32)]

Text = Annotated[str, Meta(max_length=16_384)]
"""For people; whoever shows it makes it fit for that."""

Word = Annotated[str, Meta(max_length=32)]

HostName = Annotated[
    str, Meta(max_length=limits.HOST_NAME_CHARACTERS_MAX, pattern=r"\A[^/\x00-\x1f\x7f-\x9f]*\Z")
]
"""A directory is named by it, and messages show it."""
