"""Operations: what a program asks of the mirrored filesystem, before it is decided.

The one vocabulary of the control unit, the same whether a kernel, a test or a simulation is above
it, and what the backup's requests carry over the forward path. An operation that succeeds becomes
one or two changes (`change.py`); one that fails becomes an errno.
"""

import msgspec

from fusemirror.identifiers import InodeNumber
from fusemirror.settings import Access


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """Base of all operations."""


class Write(Operation, tag=1, frozen=True, array_like=True, gc=False):
    """Write the bytes that travel beside; `append` means at the end, wherever that then is.

    `clear_privileges`: the writer may not keep set-user-id and set-group-id bits. (`security.capability`
    ends with any write.)
    """

    inode: InodeNumber
    offset: int
    append: bool = False
    clear_privileges: bool = False


class SetAttributes(Operation, tag=2, frozen=True, array_like=True):
    """Change the attributes that are not None. Times in nanoseconds since the epoch, sizes in bytes.

    `clear_privileges`: with the size, as for a write.
    """

    inode: InodeNumber
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    clear_privileges: bool = False


class Create(Operation, tag=3, frozen=True, array_like=True):
    """Make an inode of any type and its first name. `mode` holds the type; `target` is a symlink's.

    `umask` takes permissions away unless the directory has a default access control list (umask(2)).
    """

    parent: InodeNumber
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    umask: int = 0


class Link(Operation, tag=4, frozen=True, array_like=True):
    inode: InodeNumber
    parent: InodeNumber
    name: bytes


class Unlink(Operation, tag=5, frozen=True, array_like=True):
    parent: InodeNumber
    name: bytes


class RemoveDirectory(Operation, tag=6, frozen=True, array_like=True):
    """`expected`: the directory that the kernel takes the name for, 0 where that is not known.

    It would take that one for removed, whatever else the other host has put under the name meanwhile.
    """

    parent: InodeNumber
    name: bytes
    expected: InodeNumber = InodeNumber(0)


class Rename(Operation, tag=7, frozen=True, array_like=True):
    """`flags`: 0, RENAME_NOREPLACE (1) or RENAME_EXCHANGE (2), as renameat2(2) has them.

    `expected`: the directory that is to be replaced, as for `RemoveDirectory`.
    """

    parent: InodeNumber
    name: bytes
    new_parent: InodeNumber
    new_name: bytes
    flags: int = 0
    expected: InodeNumber = InodeNumber(0)


class SetXattr(Operation, tag=8, frozen=True, array_like=True):
    inode: InodeNumber
    name: bytes
    value: bytes


class RemoveXattr(Operation, tag=9, frozen=True, array_like=True):
    inode: InodeNumber
    name: bytes


class Read(Operation, tag=10, frozen=True, array_like=True, gc=False):
    """Read at the primary: what the backup asks when its own image is not up to date."""

    inode: InodeNumber
    offset: int
    length: int


class Flush(Operation, tag=11, frozen=True, array_like=True, gc=False):
    """fsync: make everything done to the inode so far durable in both volumes."""

    inode: InodeNumber


class StartVerify(Operation, tag=12, frozen=True, array_like=True):
    """Begin to compare the volumes, or join a comparison under way.

    `keep`: the role of the host whose version replaces what differs; "" to change nothing.
    """

    keep: str = ""


class VerifyProgress(Operation, tag=13, frozen=True, array_like=True):
    """How far the comparison is; answered with an encoded `mirror.verify.Report`."""


class Reserve(Operation, tag=20, frozen=True, array_like=True):
    """Hold a file, or with inode 0 the whole filesystem, for the host that asks; `preempt` takes it over.

    `path` is what people know the file by, from the root of the filesystem.
    """

    inode: InodeNumber
    path: bytes = b""
    preempt: bool = False


class Release(Operation, tag=21, frozen=True, array_like=True):
    """End a reservation; `preempt` ends one of the other host too."""

    inode: InodeNumber
    preempt: bool = False


class ChangePace(Operation, tag=30, frozen=True, array_like=True):
    """How fast resyncs may copy, and whether; None leaves it as it is."""

    rate_bytes: int | None = None
    paused: bool | None = None


class SwitchRoles(Operation, tag=14, frozen=True, array_like=True):
    """Hand the role of primary to the backup, which asks for it. Answered by a `HandOver`, or not at all."""


class ChangeAccess(Operation, tag=22, frozen=True, array_like=True):
    """Take another access on both hosts."""

    access: Access


AnyOperation = (
    Write
    | SetAttributes
    | Create
    | Link
    | Unlink
    | RemoveDirectory
    | Rename
    | SetXattr
    | RemoveXattr
    | Read
    | Flush
    | StartVerify
    | VerifyProgress
    | Reserve
    | ChangeAccess
    | Release
    | ChangePace
    | SwitchRoles
)
