"""The FUSE protocol of the kernel, version 7.31 and later: requests as bytes in, replies as bytes out.

No I/O. Each structure of a request or a reply is a `NamedTuple` whose fields bear the names of
linux/fuse.h, with its layout beside it. Numbers are in the byte order of the host, and the kernel pads
every structure by hand to 8 bytes, so formats without alignment are exact. A request that is shorter than
its structure, or that says that it is longer than it is, is a `MalformedRequest`; what follows a structure
that is longer than we know is newer than we are, and is passed over. Source: include/uapi/linux/fuse.h.

Another kind of request takes its number in `Opcode`, its structure and layout, a row of `EFFECTS` where it
changes or hands out anything, and a handler in `filesystem/serving/`.
"""

from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct, error
from typing import Generic, NamedTuple, TypeVar

from fusemirror.errors import MalformedRequest

NS_PER_S = 1_000_000_000
ROOT_INODE = 1


class Opcode(IntEnum):
    """What a request asks for; numbers that are missing here nobody serves."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47  # of which the kernel asks again where it learns that nobody serves 53
    TMPFILE = 51
    STATX = 52


# --- flags ----------------------------------------------------------------------------------------------

INIT_POSIX_LOCKS = 1 << 1
INIT_DONT_MASK = 1 << 6
INIT_FLOCK_LOCKS = 1 << 10
INIT_HANDLE_KILLPRIV_V2 = 1 << 28
INIT_EXT = 1 << 30  # flags2 counts
INIT2_DIRECT_IO_ALLOW_MMAP = 1 << (36 - 32)

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

STATX_BASIC_STATS = 0x7FF  # linux/stat.h: all that stat(2) tells
STATX_BTIME = 1 << 11

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2

OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0  # from the page cache, long after; the handle is a guess
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_FDATASYNC = 1 << 0
LK_FLOCK = 1 << 0  # of flock(2), not of fcntl(2)

# --- layouts --------------------------------------------------------------------------------------------

T = TypeVar("T", bound=NamedTuple)


class Layout(Generic[T]):
    """How a structure lies in memory."""

    def __init__(self, kind: type[T], form: str) -> None:
        struct = Struct("=" + form)
        self.kind = kind
        self.format = form
        self.size = struct.size
        self.pack = struct.pack
        self._unpack = struct.unpack_from

    def read(self, data: bytes | memoryview, offset: int = 0) -> T:
        """The structure at `offset`; MalformedRequest where the bytes end within it."""
        try:
            # As `_make` does, which would only count what `unpack` has counted.
            return tuple.__new__(self.kind, self._unpack(data, offset))
        except error:
            raise MalformedRequest(f"{len(data) - offset} bytes for {self.kind.__name__}") from None


class InHeader(NamedTuple):
    """What every request begins with. It says who asks, too: `pid` is a thread's, 0 for none of ours."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int
    padding: int


class ForgetIn(NamedTuple):
    nlookup: int


class BatchForgetIn(NamedTuple):
    count_: int  # `count` is a method of every tuple
    dummy: int


class ForgetOne(NamedTuple):
    nodeid: int
    nlookup: int


class GetattrIn(NamedTuple):
    getattr_flags: int
    dummy: int
    fh: int


class StatxIn(NamedTuple):
    getattr_flags: int
    reserved: int
    fh: int
    sx_flags: int
    sx_mask: int


class SetattrIn(NamedTuple):
    valid: int
    padding: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    unused4: int
    uid: int
    gid: int
    unused5: int


class MknodIn(NamedTuple):
    mode: int
    rdev: int
    umask: int
    padding: int


class MkdirIn(NamedTuple):
    mode: int
    umask: int


class RenameIn(NamedTuple):
    newdir: int


class Rename2In(NamedTuple):
    newdir: int
    flags: int
    padding: int


class LinkIn(NamedTuple):
    oldnodeid: int


class OpenIn(NamedTuple):
    flags: int
    open_flags: int


class CreateIn(NamedTuple):
    flags: int
    mode: int
    umask: int
    open_flags: int


class ReadIn(NamedTuple):
    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int
    padding: int


class WriteIn(NamedTuple):
    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int
    padding: int


class FlushIn(NamedTuple):
    fh: int
    unused: int
    padding: int
    lock_owner: int


class ReleaseIn(NamedTuple):
    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class LkIn(NamedTuple):
    """What stands before the lock, which `LkFlags` follow."""

    fh: int
    owner: int


class FileLock(NamedTuple):
    """`end` is the last byte; `type` is one of fcntl(2)'s."""

    start: int
    end: int
    type: int
    pid: int


class LkFlags(NamedTuple):
    lk_flags: int
    padding: int


class FsyncIn(NamedTuple):
    fh: int
    fsync_flags: int
    padding: int


class FallocateIn(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int
    padding: int


class LseekIn(NamedTuple):
    fh: int
    offset: int
    whence: int
    padding: int


class CopyFileRangeIn(NamedTuple):
    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


class IoctlIn(NamedTuple):
    """`in_size` bytes follow it; `out_size` are the most that the answer may have."""

    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int


class SetxattrIn(NamedTuple):
    """As it is without FUSE_SETXATTR_EXT, which we do not ask for."""

    size: int
    flags: int


class GetxattrIn(NamedTuple):
    size: int
    padding: int


class AccessIn(NamedTuple):
    mask: int
    padding: int


class InterruptIn(NamedTuple):
    unique: int


class InitIn(NamedTuple):
    """As kernels before 7.36 send it; the second flags follow it."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class InitFlags2(NamedTuple):
    flags2: int


class OutHeader(NamedTuple):
    len: int
    error: int
    unique: int


class Attr(NamedTuple):
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class EntryOut(NamedTuple):
    """Without the attributes, which follow it."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int


class AttrOut(NamedTuple):
    """Without the attributes, which follow it."""

    attr_valid: int
    attr_valid_nsec: int
    dummy: int


class StatxOut(NamedTuple):
    """With its `fuse_statx`, whose fields begin at `mask`, and with the `fuse_sx_time`s of that."""

    attr_valid: int
    attr_valid_nsec: int
    flags: int
    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atimensec: int
    btime: int
    btimensec: int
    ctime: int
    ctimensec: int
    mtime: int
    mtimensec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class OpenOut(NamedTuple):
    fh: int
    open_flags: int
    padding: int


class WriteOut(NamedTuple):
    size: int
    padding: int


class IoctlOut(NamedTuple):
    """Without the data, which follows it."""

    result: int
    flags: int
    in_iovs: int
    out_iovs: int


class LseekOut(NamedTuple):
    offset: int


class GetxattrOut(NamedTuple):
    size: int
    padding: int


class Kstatfs(NamedTuple):
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class Dirent(NamedTuple):
    ino: int
    off: int
    namelen: int
    type: int


class InitOut(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int


_HEAD, _ATTR, _ENTRY, _OPEN = "IiQ", "QQQqqqIIIIIIIIII", "QQQQII", "QII"

IN_HEADER = Layout(InHeader, "IIQQIIIHH")
FORGET_IN = Layout(ForgetIn, "Q")
BATCH_FORGET_IN = Layout(BatchForgetIn, "II")
FORGET_ONE = Layout(ForgetOne, "QQ")
GETATTR_IN = Layout(GetattrIn, "IIQ")
STATX_IN = Layout(StatxIn, "IIQII")
SETATTR_IN = Layout(SetattrIn, "IIQQQqqqIIIIIIII")
MKNOD_IN = Layout(MknodIn, "IIII")
MKDIR_IN = Layout(MkdirIn, "II")
RENAME_IN = Layout(RenameIn, "Q")
RENAME2_IN = Layout(Rename2In, "QII")
LINK_IN = Layout(LinkIn, "Q")
OPEN_IN = Layout(OpenIn, "II")
CREATE_IN = Layout(CreateIn, "IIII")
READ_IN = Layout(ReadIn, "QQIIQII")
WRITE_IN = Layout(WriteIn, "QQIIQII")
FLUSH_IN = Layout(FlushIn, "QIIQ")
RELEASE_IN = Layout(ReleaseIn, "QIIQ")
LK_IN = Layout(LkIn, "QQ")
FILE_LOCK = Layout(FileLock, "QQII")
LK_FLAGS = Layout(LkFlags, "II")
FSYNC_IN = Layout(FsyncIn, "QII")
FALLOCATE_IN = Layout(FallocateIn, "QQQII")
LSEEK_IN = Layout(LseekIn, "QQII")
COPY_FILE_RANGE_IN = Layout(CopyFileRangeIn, "QQQQQQQ")
IOCTL_IN = Layout(IoctlIn, "QIIQII")
SETXATTR_IN = Layout(SetxattrIn, "II")
GETXATTR_IN = Layout(GetxattrIn, "II")
ACCESS_IN = Layout(AccessIn, "II")
INTERRUPT_IN = Layout(InterruptIn, "Q")
INIT_IN = Layout(InitIn, "IIII")
INIT_FLAGS2 = Layout(InitFlags2, "I")

OUT_HEADER = Layout(OutHeader, _HEAD)
NOTIFY_PRUNE = 9  # where the error of a reply stands
_PRUNE_OUT = Struct("=II8x")
_U64 = Struct("=Q")
ATTR = Layout(Attr, _ATTR)
ENTRY_OUT = Layout(EntryOut, _ENTRY)
ATTR_OUT = Layout(AttrOut, "QII")
STATX_OUT = Layout(StatxOut, "QII16xIIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x")
OPEN_OUT = Layout(OpenOut, _OPEN)
WRITE_OUT = Layout(WriteOut, "II")
IOCTL_OUT = Layout(IoctlOut, "iIII")
LSEEK_OUT = Layout(LseekOut, "Q")
GETXATTR_OUT = Layout(GetxattrOut, "II")
KSTATFS = Layout(Kstatfs, "QQQQQIII28x")  # padding and six spare numbers
DIRENT = Layout(Dirent, "QQII")
INIT_OUT = Layout(InitOut, "IIIIHHIIHHI28x")

# Whole replies, so that each is made in one step.
_ATTR_REPLY = Struct("=" + _HEAD + "QII" + _ATTR)
_ENTRY_REPLY = Struct("=" + _HEAD + _ENTRY + _ATTR)
_OPEN_REPLY = Struct("=" + _HEAD + _OPEN)
_CREATE_REPLY = Struct("=" + _HEAD + _ENTRY + _ATTR + _OPEN)
_WRITE_REPLY = Struct("=" + _HEAD + "II")
_DIRENTPLUS = Struct("=" + _ENTRY + _ATTR + "QQII")

# --- requests -------------------------------------------------------------------------------------------


def names_in(body: memoryview, offset: int, count: int) -> list[bytes]:
    """`count` strings, each with a zero after it, that stand one after the other from `offset` on."""
    names = bytes(body[offset:]).split(b"\0", count)
    if len(names) <= count:
        raise MalformedRequest(f"{len(names) - 1} names where there should be {count}")
    return names[:count]


def data_in(body: memoryview, offset: int, size: int) -> bytes:
    """The `size` bytes that stand at `offset`, which outlive the buffer of the request."""
    data = bytes(body[offset : offset + size])
    if len(data) != size:
        raise MalformedRequest(f"{len(data)} bytes of data where there should be {size}")
    return data


def forgotten_in(body: memoryview) -> list[tuple[int, int]]:
    """What a BATCH_FORGET says: inodes, and how many references to each are given back."""
    count = BATCH_FORGET_IN.read(body).count_
    start, size = BATCH_FORGET_IN.size, FORGET_ONE.size
    if len(body) < start + count * size:
        raise MalformedRequest(f"{len(body)} bytes for {count} inodes to forget")
    return [FORGET_ONE.read(body, start + index * size) for index in range(count)]


class LockWanted(NamedTuple):
    """What GETLK, SETLK and SETLKW say."""

    fh: int
    owner: int
    lock: FileLock
    of_flock: bool


def lock_in(body: memoryview) -> LockWanted:
    asked = LK_IN.read(body)
    lock = FILE_LOCK.read(body, LK_IN.size)
    flags = LK_FLAGS.read(body, LK_IN.size + FILE_LOCK.size)
    return LockWanted(asked.fh, asked.owner, lock, bool(flags.lk_flags & LK_FLOCK))


# --- replies --------------------------------------------------------------------------------------------

FuseReply = tuple[bytes, ...]
"""The parts of a reply, to be written by one call."""


def prune_notice(inodes: Sequence[int]) -> bytes:
    """A message that no request waits for: the kernel is to let go of these inodes where no program holds
    them."""
    body = _PRUNE_OUT.pack(len(inodes), 0) + array("Q", inodes).tobytes()
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_PRUNE, 0) + body


def error_reply(unique: int, errno: int) -> FuseReply:
    return (OUT_HEADER.pack(OUT_HEADER.size, -errno, unique),)


def error_of(reply: FuseReply) -> int:
    """The errno that a reply tells, or 0."""
    return -OUT_HEADER.read(reply[0]).error


def empty_reply(unique: int) -> FuseReply:
    return (OUT_HEADER.pack(OUT_HEADER.size, 0, unique),)


def data_reply(unique: int, data: bytes) -> FuseReply:
    return OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, unique), data


def _duration(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * NS_PER_S)


def attr_reply(unique: int, attr: tuple[int, ...], attr_s: float) -> FuseReply:
    valid, valid_ns = _duration(attr_s) if attr_s else (0, 0)
    return (_ATTR_REPLY.pack(_ATTR_REPLY.size, 0, unique, valid, valid_ns, 0, *attr),)


def statx_reply(unique: int, attr: Attr, attr_s: float, birth_ns: int | None) -> FuseReply:
    """`birth_ns` is when the inode was made, None where nobody knows."""
    valid, valid_ns = _duration(attr_s)
    birth, birthnsec = divmod(birth_ns or 0, NS_PER_S)
    found = StatxOut(
        attr_valid=valid,
        attr_valid_nsec=valid_ns,
        flags=0,
        mask=STATX_BASIC_STATS if birth_ns is None else STATX_BASIC_STATS | STATX_BTIME,
        blksize=attr.blksize,
        attributes=0,
        nlink=attr.nlink,
        uid=attr.uid,
        gid=attr.gid,
        mode=attr.mode,
        ino=attr.ino,
        size=attr.size,
        blocks=attr.blocks,
        attributes_mask=0,
        atime=attr.atime,
        atimensec=attr.atimensec,
        btime=birth,
        btimensec=birthnsec,
        ctime=attr.ctime,
        ctimensec=attr.ctimensec,
        mtime=attr.mtime,
        mtimensec=attr.mtimensec,
        rdev_major=(attr.rdev & 0xFFF00) >> 8,  # include/linux/kdev_t.h, new_decode_dev
        rdev_minor=(attr.rdev & 0xFF) | (attr.rdev >> 12 & 0xFFF00),
        dev_major=0,  # the kernel's own business, as with stat(2)
        dev_minor=0,
    )
    return data_reply(unique, STATX_OUT.pack(*found))


def entry_fields(attr: tuple[int, ...], entry_s: float, attr_s: float, generation: int) -> tuple[int, ...]:
    entry_valid, entry_ns = _duration(entry_s)
    attr_valid, attr_ns = _duration(attr_s)
    return attr[0], generation, entry_valid, attr_valid, entry_ns, attr_ns, *attr


def entry_reply(unique: int, entry: tuple[int, ...]) -> FuseReply:
    return (_ENTRY_REPLY.pack(_ENTRY_REPLY.size, 0, unique, *entry),)


def open_reply(unique: int, fh: int, open_flags: int) -> FuseReply:
    return (_OPEN_REPLY.pack(_OPEN_REPLY.size, 0, unique, fh, open_flags, 0),)


def create_reply(unique: int, entry: tuple[int, ...], fh: int, open_flags: int) -> FuseReply:
    return (_CREATE_REPLY.pack(_CREATE_REPLY.size, 0, unique, *entry, fh, open_flags, 0),)


def write_reply(unique: int, size: int) -> FuseReply:
    return (_WRITE_REPLY.pack(_WRITE_REPLY.size, 0, unique, size, 0),)


def lseek_reply(unique: int, offset: int) -> FuseReply:
    return data_reply(unique, LSEEK_OUT.pack(offset))


def ioctl_reply(unique: int, data: bytes) -> FuseReply:
    return data_reply(unique, IOCTL_OUT.pack(0, 0, 0, 0) + data)


def xattr_size_reply(unique: int, size: int) -> FuseReply:
    return data_reply(unique, GETXATTR_OUT.pack(size, 0))


def lock_reply(unique: int, lock: FileLock) -> FuseReply:
    return data_reply(unique, FILE_LOCK.pack(*lock))


def statfs_reply(unique: int, found: Kstatfs) -> FuseReply:
    return data_reply(unique, KSTATFS.pack(*found))


def directory_entry(name: bytes, entry: tuple[int, ...], offset: int, kind: int) -> bytes:
    """One name of a READDIRPLUS's data: `entry` as of `entry_fields`, `kind` as of dirent(5)."""
    record = _DIRENTPLUS.pack(*entry, entry[0], offset, len(name), kind) + name
    return record + bytes(-len(record) % 8)


def directory_entries(data: bytes) -> Iterator[tuple[bytes, EntryOut, Dirent]]:
    """The names in a READDIRPLUS's data."""
    position = 0
    while position < len(data):
        entry = ENTRY_OUT.read(data, position)
        dirent = DIRENT.read(data, position + ENTRY_OUT.size + ATTR.size)
        start = position + _DIRENTPLUS.size
        yield data[start : start + dirent.namelen], entry, dirent
        position = start + dirent.namelen
        position += -position % 8


class Effects(NamedTuple):
    """What a kernel learns from the reply to a request. Where it did not take that, it is told otherwise."""

    names: int = 0
    """How many names the request changes; of a rename the old one, then the new."""
    names_at: int = 0
    """Where in its body they stand: how long the structure before them is."""
    content: bool = False
    """It changes what is in the file."""
    content_at: int = 0
    """Where in its body the inode of that file stands; 0: it is the one that the request is about."""
    entry: bool = False
    """The reply hands out an inode."""


EFFECTS: dict[int, Effects] = {
    Opcode.LOOKUP: Effects(entry=True),
    Opcode.SETATTR: Effects(content=True),
    Opcode.SYMLINK: Effects(names=1, entry=True),
    Opcode.MKNOD: Effects(names=1, names_at=MKNOD_IN.size, entry=True),
    Opcode.MKDIR: Effects(names=1, names_at=MKDIR_IN.size, entry=True),
    Opcode.UNLINK: Effects(names=1),
    Opcode.RMDIR: Effects(names=1),
    Opcode.RENAME: Effects(names=2, names_at=RENAME_IN.size),
    Opcode.LINK: Effects(names=1, names_at=LINK_IN.size, entry=True),
    Opcode.OPEN: Effects(content=True),
    Opcode.WRITE: Effects(content=True),
    Opcode.CREATE: Effects(names=1, names_at=CREATE_IN.size, entry=True),
    Opcode.FALLOCATE: Effects(content=True),
    Opcode.COPY_FILE_RANGE: Effects(content=True, content_at=2 * _U64.size),
    Opcode.TMPFILE: Effects(entry=True),
    Opcode.RENAME2: Effects(names=2, names_at=RENAME2_IN.size),
}
_NO_EFFECTS = Effects()
TELL_IN_BODY = frozenset(opcode for opcode, effects in EFFECTS.items() if effects.names or effects.content_at)
"""What these change stands in their bodies."""


def effects_of(opcode: int) -> Effects:
    return EFFECTS.get(opcode, _NO_EFFECTS)


def names_changed_by(header: InHeader, body: memoryview) -> list[tuple[int, bytes]]:
    """The names that a request changes, each with its directory; of a rename the old one, then the new."""
    effects = effects_of(header.opcode)
    if not effects.names:
        return []
    names = names_in(body, effects.names_at, effects.names)
    directories = [header.nodeid]
    if effects.names > 1:
        directories.append(RENAME_IN.read(body).newdir)
    return list(zip(directories, names, strict=True))


def content_changed_by(header: InHeader, body: memoryview) -> int | None:
    """The inode whose content a request changes; None where it changes none."""
    effects = effects_of(header.opcode)
    if effects.content_at:
        inode: int = _U64.unpack_from(body, effects.content_at)[0]
        return inode
    return header.nodeid if effects.content else None


class Handed(NamedTuple):
    """What a reply hands to the kernel, which it gives back by FORGET, RELEASE and RELEASEDIR."""

    inodes: list[int]
    file: int | None = None
    directory: int | None = None


_DOTS = (b".", b"..")


def handed_by(opcode: int, reply: FuseReply) -> Handed:
    """What a reply to a request would hand to the kernel, if the kernel took it."""
    data = b"".join(reply)
    if OUT_HEADER.read(data).error:
        return Handed([])
    start = OUT_HEADER.size
    if opcode == Opcode.OPEN:
        return Handed([], file=OPEN_OUT.read(data, start).fh)
    if opcode == Opcode.OPENDIR:
        return Handed([], directory=OPEN_OUT.read(data, start).fh)
    if opcode == Opcode.READDIRPLUS:
        listed = directory_entries(data[start:])
        return Handed([entry.nodeid for name, entry, _ in listed if entry.nodeid and name not in _DOTS])
    if effects_of(opcode).entry:
        inode = ENTRY_OUT.read(data, start).nodeid
        opens = opcode in (Opcode.CREATE, Opcode.TMPFILE)
        opened = OPEN_OUT.read(data, start + ENTRY_OUT.size + ATTR.size).fh if opens else None
        return Handed([inode] if inode else [], file=opened)
    return Handed([])
