"""Flags of files and directories, which chattr(1) sets: the one table of what each of them forbids.

A local filesystem's kernel goes by them itself; that of a mount knows nothing of them. So each operation asks
here, at its place in the order, for both hosts; who opens a file is asked by the host where that is. Whether
somebody may set them the kernel decides (fs/file_attr.c): the owner, and CAP_LINUX_IMMUTABLE for what binds
root too. They stand among the extended attributes, under a name that no program can have (`xattrs.FLAGS`):
so an earlier version keeps and copies them, and shows them to nobody. Source: chattr(1), ioctl_iflags(2);
fs/namei.c, fs/attr.c, fs/open.c, fs/xattr.c and fs/ext4 for who asks for what.
"""

import errno
from enum import Enum, IntFlag, auto

from fusemirror.errors import OperationFailed


class Flag(IntFlag):
    """The bits of FS_IOC_GETFLAGS (linux/fs.h)."""

    IMMUTABLE = 0x10
    APPEND = 0x20
    NODUMP = 0x40
    NOATIME = 0x80


KNOWN = int(Flag.IMMUTABLE | Flag.APPEND | Flag.NODUMP | Flag.NOATIME)  # of a `Flag`, `~` has no higher bit
INHERITED = Flag.NODUMP | Flag.NOATIME
"""By what is made in a directory that has them, as on ext4."""
BINDING = Flag.IMMUTABLE | Flag.APPEND
"""These forbid something."""

_EXTENDED = {Flag.IMMUTABLE: 0x08, Flag.APPEND: 0x10, Flag.NOATIME: 0x40, Flag.NODUMP: 0x80}
"""The bits of FS_IOC_FSGETXATTR for the same."""


class Act(Enum):
    """What may be done to a file, or a directory."""

    CHANGE_DATA = auto()
    """Change bytes that are there, or its length; all but appending."""
    EXTEND = auto()
    """Append, or reserve room."""
    CHANGE_ATTRIBUTES = auto()
    """Mode and owner; times that are given."""
    TOUCH = auto()
    """Times become the present."""
    CHANGE_XATTRS = auto()
    GET_NAME = auto()
    LOSE_NAME = auto()
    """To be unlinked, moved or replaced."""
    ADD_ENTRY = auto()
    """A directory gets a name in it."""
    REMOVE_ENTRY = auto()


FORBIDDEN_BY: dict[Act, Flag] = {
    Act.CHANGE_DATA: BINDING,
    Act.EXTEND: Flag.IMMUTABLE,
    Act.CHANGE_ATTRIBUTES: BINDING,
    Act.TOUCH: Flag.IMMUTABLE,
    Act.CHANGE_XATTRS: BINDING,
    Act.GET_NAME: BINDING,
    Act.LOSE_NAME: BINDING,
    Act.ADD_ENTRY: Flag.IMMUTABLE,
    Act.REMOVE_ENTRY: BINDING,
}


def check_act(flags: int, act: Act) -> None:
    """OperationFailed (EPERM) where the flags forbid it, root too."""
    if flags & FORBIDDEN_BY[act]:
        raise OperationFailed(errno.EPERM)


def encode_flags(flags: int) -> bytes | None:
    """The value of their attribute; None where there are none."""
    return flags.to_bytes(4, "little") if flags else None


def decode_flags(value: bytes | None) -> int:
    """What an attribute says; a bit of a later version forbids nothing here."""
    return int.from_bytes((value or b"")[:4], "little") & KNOWN


def extended_of(flags: int) -> int:
    """The flags as FS_IOC_FSGETXATTR has them."""
    return sum(extended for flag, extended in _EXTENDED.items() if flags & flag)


def flags_of_extended(extended: int) -> int:
    """The flags that FS_IOC_FSSETXATTR asks for. OperationFailed (EOPNOTSUPP) for any other."""
    if extended & ~sum(_EXTENDED.values()):
        raise OperationFailed(errno.EOPNOTSUPP)
    return sum(flag for flag, bit in _EXTENDED.items() if extended & bit)
