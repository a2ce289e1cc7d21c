"""Inode: the attributes of one file of any type, in memory and as a row of the catalog."""

import stat
import struct

from fusemirror.identifiers import ChangeNumber, InodeNumber

DIRECTORY_SIZE = 4096  # what ext4 shows for a small one

# mode, nlink, uid, gid; rdev or birth, size; atime, mtime, ctime; parent
INODE_ROW = struct.Struct("<IIIIQQqqqQ")
ROW_BYTES_MIN = INODE_ROW.size

_NO_PARENT = InodeNumber(0)


def is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


class Inode:
    """Mutable: the catalog gives out the same object to all, and changes it in place.

    `parent` is a directory's own parent, else 0; `target` is a symlink's. `rdev_or_birth` is the number of a
    device, and of all else the time at which it was made (ns), 0 where an earlier version made it, which had
    `rdev` there: so rows are as long as ever, and such a version takes the time for a number that it never
    uses. Three are in memory only:
    `changed` is the last change that touched the inode, 0 where none did since it was loaded,
    `capable` whether it has `security.capability`, None where nobody has looked (`Catalog.has_capability`),
    and `flags` likewise those of chattr(1) (`Catalog.flags`).
    """

    __slots__ = (
        "atime_ns",
        "capable",
        "changed",
        "ctime_ns",
        "flags",
        "gid",
        "mode",
        "mtime_ns",
        "nlink",
        "number",
        "parent",
        "rdev_or_birth",
        "size",
        "target",
        "uid",
    )

    def __init__(
        self,
        number: InodeNumber,
        mode: int,
        nlink: int,
        uid: int,
        gid: int,
        rdev: int,
        size: int,
        atime_ns: int,
        mtime_ns: int,
        ctime_ns: int,
        parent: InodeNumber = _NO_PARENT,
        target: bytes = b"",
        birth_ns: int = 0,
    ) -> None:
        self.number = number
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev_or_birth = rdev if is_device(mode) else birth_ns
        self.size = size
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.parent = parent
        self.target = target
        self.changed = ChangeNumber(0)
        self.capable: bool | None = None
        self.flags: int | None = None

    def pack(self) -> bytes:
        """The inode as a catalog row."""
        return (
            INODE_ROW.pack(
                self.mode,
                self.nlink,
                self.uid,
                self.gid,
                self.rdev_or_birth,
                self.size,
                self.atime_ns,
                self.mtime_ns,
                self.ctime_ns,
                self.parent,
            )
            + self.target
        )

    @staticmethod
    def unpack(number: InodeNumber, row: bytes) -> "Inode":
        """The inode of a row; `struct.error` where it is too short to be one."""
        inode = Inode.__new__(Inode)
        inode.number = number
        inode.changed = ChangeNumber(0)
        inode.capable = inode.flags = None
        inode.load(row)
        return inode

    def load(self, row: bytes) -> None:
        """Take over what the row says, in place; `struct.error` where it is too short to be one."""
        (
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev_or_birth,
            self.size,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.parent,
        ) = INODE_ROW.unpack_from(row)
        self.target = row[ROW_BYTES_MIN:]

    def copy(self) -> "Inode":
        """Another inode with the same attributes."""
        twin = Inode.unpack(self.number, self.pack())
        twin.changed = self.changed
        return twin

    def __repr__(self) -> str:
        return f"<Inode {self.number} mode={self.mode:o} nlink={self.nlink} size={self.size}>"

    @property
    def rdev(self) -> int:
        return self.rdev_or_birth if is_device(self.mode) else 0

    @property
    def birth_ns(self) -> int | None:
        """When it was made, None where that is not known: of devices, and of what an earlier version made."""
        return None if is_device(self.mode) else self.rdev_or_birth or None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)
