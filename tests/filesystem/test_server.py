"""Requests as bytes to the handlers over a real volume, and their replies as bytes again."""

import errno
import os
import stat
import struct
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusemirror.errors import MalformedRequest
from fusemirror.filesystem.directory_names import Name
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.server import OperationsServer
from fusemirror.identifiers import InodeNumber
from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, Attr, InHeader, Opcode, Reply
from tests.filesystem.conftest import never

NOW_NS = 1_700_000_000 * NS_PER_S + 5
ROOT = codec.ROOT_INODE


class Kernel:
    """What a kernel asks, and what it makes of the answers."""

    def __init__(self, server: OperationsServer) -> None:
        self.server = server
        self._unique = 0

    async def ask(self, opcode: Opcode, nodeid: int, body: bytes = b"", *, uid: int = 0) -> bytes:
        """The data of the reply; OSError for the error of one."""
        self._unique += 2
        length = codec.IN_HEADER.size + len(body)
        header = InHeader(length, opcode, self._unique, nodeid, uid, uid, 4711, 0, 0)
        handling = self.server.serve(header, memoryview(body))
        assert handling is not None
        self.header, self.body = header, body
        self.reply: Reply = codec.empty_reply(0)
        self.reply = await handling
        data = b"".join(self.reply)
        found = codec.OUT_HEADER.read(data)
        assert (found.len, found.unique) == (len(data), self._unique)
        if found.error:
            raise OSError(-found.error, os.strerror(-found.error))
        return data[codec.OUT_HEADER.size :]

    async def lose_reply(self) -> None:
        """The program was killed: the kernel did not take the last reply."""
        body = self.body if codec.effects_of(self.header.opcode).names else b""
        await self.server.untaken(self.header, body, self.reply)

    async def make_directory(self, name: bytes) -> int:
        made = await self.ask(Opcode.MKDIR, ROOT, codec.MKDIR_IN.pack(0o755, 0) + name + b"\0")
        return codec.ENTRY_OUT.read(made).nodeid

    async def refused(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> str:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is looked at
            await self.ask(opcode, nodeid, body)
        return errno.errorcode[caught.value.errno or 0]

    async def create(self, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR) -> tuple[int, int]:
        """The new inode, and the handle."""
        asked = codec.CREATE_IN.pack(flags, stat.S_IFREG | mode, 0o022, 0)
        data = await self.ask(Opcode.CREATE, ROOT, asked + name + b"\0")
        opened = codec.OPEN_OUT.read(data, codec.ENTRY_OUT.size + codec.ATTR.size)
        return codec.ENTRY_OUT.read(data).nodeid, opened.fh

    async def attributes(self, inode: int) -> Attr:
        data = await self.ask(Opcode.GETATTR, inode, codec.GETATTR_IN.pack(0, 0, 0))
        return codec.ATTR.read(data, codec.ATTR_OUT.size)

    async def names(self, handle: int, *, offset: int = 0, size: int = 4096) -> list[tuple[bytes, int, int]]:
        """Names, their inodes and types."""
        data = await self.ask(Opcode.READDIRPLUS, ROOT, codec.READ_IN.pack(handle, offset, size, 0, 0, 0, 0))
        assert len(data) <= size
        self.last_offset = 0
        found = []
        for name, entry, dirent in codec.directory_entries(data):
            self.last_offset = dirent.off
            found.append((name, entry.nodeid, dirent.type))
        return found


@pytest.fixture
def kernel(operations: Operations) -> Kernel:
    return Kernel(OperationsServer(operations, lambda: NOW_NS, never, tells_of_privileges=True))


async def test_a_file_is_made_written_read_and_closed(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")
    written = await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 3, 5, 0, 0, 0, 0) + b"hello")
    assert codec.WRITE_OUT.read(written).size == 5
    read = await kernel.ask(Opcode.READ, inode, codec.READ_IN.pack(handle, 0, 100, 0, 0, 0, 0))
    assert read == b"\0\0\0hello"
    assert await kernel.ask(Opcode.FLUSH, inode, codec.FLUSH_IN.pack(handle, 0, 0, 0)) == b""
    assert await kernel.ask(Opcode.FSYNC, inode, codec.FSYNC_IN.pack(handle, 1, 0)) == b""
    assert await kernel.ask(Opcode.RELEASE, inode, codec.RELEASE_IN.pack(handle, 0, 0, 0)) == b""
    attributes = await kernel.attributes(inode)
    assert (attributes.ino, attributes.size, attributes.mode) == (inode, 8, stat.S_IFREG | 0o644)
    assert attributes.blksize == 4096


async def test_appending_is_as_it_is_now_and_not_as_it_was_at_the_open(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file", flags=os.O_RDWR | os.O_APPEND)

    async def write(data: bytes, flags: int, write_flags: int = 0) -> None:
        asked = codec.WRITE_IN.pack(handle, 0, len(data), write_flags, 0, flags, 0)
        await kernel.ask(Opcode.WRITE, inode, asked + data)

    await write(b"aaa", os.O_APPEND)
    await write(b"bbb", os.O_APPEND)
    await write(b"c", 0)
    await write(b"d", os.O_APPEND, codec.WRITE_CACHE)
    read = await kernel.ask(Opcode.READ, inode, codec.READ_IN.pack(handle, 0, 100, 0, 0, 0, 0))
    assert read == b"daabbb"


async def test_it_is_opened_anew_as_the_kernel_asks(kernel: Kernel) -> None:
    inode, _ = await kernel.create(b"file")
    opened = codec.OPEN_OUT.read(await kernel.ask(Opcode.OPEN, inode, codec.OPEN_IN.pack(os.O_WRONLY, 0)))
    assert opened.open_flags & codec.FOPEN_DIRECT_IO


async def test_names_come_and_go(kernel: Kernel) -> None:
    made = await kernel.ask(Opcode.MKDIR, ROOT, codec.MKDIR_IN.pack(0o777, 0o027) + b"d\0")
    assert codec.ATTR.read(made, codec.ENTRY_OUT.size).mode == stat.S_IFDIR | 0o750
    directory = codec.ENTRY_OUT.read(made).nodeid
    inode, _ = await kernel.create(b"a")
    await kernel.ask(Opcode.LINK, directory, codec.LINK_IN.pack(inode) + b"b\0")
    await kernel.ask(Opcode.RENAME, ROOT, codec.RENAME_IN.pack(directory) + b"a\0c\0")
    assert await kernel.refused(Opcode.LOOKUP, ROOT, b"a\0") == "ENOENT"
    renamed = codec.RENAME2_IN.pack(directory, 1, 0) + b"b\0c\0"  # RENAME_NOREPLACE
    assert await kernel.refused(Opcode.RENAME2, directory, renamed) == "EEXIST"
    found = codec.ENTRY_OUT.read(await kernel.ask(Opcode.LOOKUP, directory, b"c\0"))
    assert found.nodeid == inode
    assert await kernel.refused(Opcode.RMDIR, ROOT, b"d\0") == "ENOTEMPTY"
    await kernel.ask(Opcode.UNLINK, directory, b"c\0")
    await kernel.ask(Opcode.UNLINK, directory, b"b\0")
    await kernel.ask(Opcode.RMDIR, ROOT, b"d\0")


async def test_links_and_devices(kernel: Kernel) -> None:
    link = await kernel.ask(Opcode.SYMLINK, ROOT, b"s\0there\0")
    assert await kernel.ask(Opcode.READLINK, codec.ENTRY_OUT.read(link).nodeid) == b"there"
    asked = codec.MKNOD_IN.pack(stat.S_IFCHR | 0o666, os.makedev(300, 70_000) & 0xFFFFFFFF, 0o022, 0)
    made = codec.ATTR.read(await kernel.ask(Opcode.MKNOD, ROOT, asked + b"n\0"), codec.ENTRY_OUT.size)
    assert (made.mode, made.rdev) == (stat.S_IFCHR | 0o644, os.makedev(300, 70_000) & 0xFFFFFFFF)


@pytest.mark.parametrize("may_get_a_name", [True, False])
async def test_a_file_without_a_name(kernel: Kernel, operations: Operations, may_get_a_name: bool) -> None:
    flags = os.O_TMPFILE | os.O_RDWR | (0 if may_get_a_name else os.O_EXCL)
    asked = codec.CREATE_IN.pack(flags, stat.S_IFREG | 0o666, 0o022, 0)
    made = await kernel.ask(Opcode.TMPFILE, ROOT, asked + b"/\0")
    inode = codec.ENTRY_OUT.read(made).nodeid
    opened = codec.OPEN_OUT.read(made, codec.ENTRY_OUT.size + codec.ATTR.size).fh
    attributes = await kernel.attributes(inode)
    assert (attributes.nlink, attributes.mode) == (0, stat.S_IFREG | 0o644)
    named = codec.LINK_IN.pack(inode)
    if may_get_a_name:
        await kernel.ask(Opcode.LINK, ROOT, named + b"name\0")
        assert (await kernel.attributes(inode)).nlink == 1
        await kernel.ask(Opcode.UNLINK, ROOT, b"name\0")
    assert await kernel.refused(Opcode.LINK, ROOT, named + b"again\0") == "ENOENT", "it has had its name"
    await kernel.ask(Opcode.RELEASE, inode, codec.RELEASE_IN.pack(opened, 0, 0, 0))
    assert not operations._unnamed
    assert operations._unit.volume.catalog.is_orphan(InodeNumber(inode)), "the purge finds it"


async def test_a_directory_is_listed_in_as_many_replies_as_it_takes(kernel: Kernel) -> None:
    inodes = {b"%d" % number: (await kernel.create(b"%d" % number))[0] for number in range(20)}
    opened = await kernel.ask(Opcode.OPENDIR, ROOT, codec.OPEN_IN.pack(0, 0))
    handle = codec.OPEN_OUT.read(opened).fh
    listed, offset = [], 0
    while found := await kernel.names(handle, offset=offset, size=700):
        listed += found
        offset = kernel.last_offset
    kinds = {name: kind for name, _, kind in listed}
    assert {name: inode for name, inode, _ in listed[2:]} == inodes
    assert [name for name, _, _ in listed[:2]] == [b".", b".."]
    assert kinds[b"."] == 4  # DT_DIR
    assert kinds[b"7"] == 8  # DT_REG
    await kernel.ask(Opcode.FSYNCDIR, ROOT, codec.FSYNC_IN.pack(handle, 0, 0))
    await kernel.ask(Opcode.RELEASEDIR, ROOT, codec.RELEASE_IN.pack(handle, 0, 0, 0))


def setattr_of(valid: int, **fields: int) -> bytes:
    asked = codec.SetattrIn(*([0] * len(codec.SetattrIn._fields)))._replace(valid=valid, **fields)
    return codec.SETATTR_IN.pack(*asked)


async def test_the_time_of_birth_stays_when_all_others_change(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")
    made = await kernel.attributes(inode)
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 1, 0, 0, 0, 0) + b"x")
    asked = codec.STATX_IN.pack(0, 0, 0, 0, codec.STATX_BTIME)
    found = codec.STATX_OUT.read(await kernel.ask(Opcode.STATX, inode, asked))
    assert found.mask == codec.STATX_BASIC_STATS | codec.STATX_BTIME
    assert (found.btime, found.btimensec) == (made.mtime, made.mtimensec)
    assert (found.ino, found.size, found.mode) == (inode, 1, made.mode)
    root = codec.STATX_OUT.read(await kernel.ask(Opcode.STATX, ROOT, asked))
    assert root.mask == codec.STATX_BASIC_STATS


async def test_only_what_is_asked_for_is_set(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")
    before = await kernel.attributes(inode)
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_MODE, mode=0o600, uid=7, size=9))
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_UID | codec.FATTR_GID, uid=7, gid=8))
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_SIZE | codec.FATTR_FH, size=9, fh=handle))
    found = await kernel.attributes(inode)
    assert (found.mode, found.uid, found.gid, found.size) == (stat.S_IFREG | 0o600, 7, 8, 9)
    assert (found.atime, found.atimensec) == (before.atime, before.atimensec)


async def test_a_size_that_no_file_can_have_is_refused(kernel: Kernel) -> None:
    inode, _ = await kernel.create(b"file")
    asked = setattr_of(codec.FATTR_SIZE, size=(1 << 64) - 1)
    assert await kernel.refused(Opcode.SETATTR, inode, asked) == "EFBIG"


async def test_times_are_set_to_what_is_told_or_to_now(kernel: Kernel) -> None:
    inode, _ = await kernel.create(b"file")
    told = setattr_of(codec.FATTR_ATIME | codec.FATTR_MTIME_NOW, atime=-5, atimensec=7, mtime=99)
    data = await kernel.ask(Opcode.SETATTR, inode, told)
    found = codec.ATTR.read(data, codec.ATTR_OUT.size)
    assert (found.atime, found.atimensec) == (-5, 7)
    assert (found.mtime, found.mtimensec) == divmod(NOW_NS, NS_PER_S)


SET_ID = stat.S_ISUID | stat.S_ISGID


@pytest.mark.parametrize("told", [True, False], ids=["ends privileges", "keeps them"])
@pytest.mark.parametrize("how", ["write", "truncate", "open"])
async def test_the_kernel_says_what_ends_set_user_id(kernel: Kernel, how: str, told: bool) -> None:
    """Whoever asks: the kernel knows who may keep them, by CAP_FSETID."""
    inode, handle = await kernel.create(b"file", mode=SET_ID | 0o755)
    if how == "write":
        flags = codec.WRITE_KILL_SUIDGID if told else 0
        await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 1, flags, 0, 0, 0) + b"x", uid=7)
    elif how == "truncate":
        flags = codec.FATTR_SIZE | (codec.FATTR_KILL_SUIDGID if told else 0)
        await kernel.ask(Opcode.SETATTR, inode, setattr_of(flags, size=9), uid=7)
    else:
        asked = codec.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, codec.OPEN_KILL_SUIDGID if told else 0)
        await kernel.ask(Opcode.OPEN, inode, asked, uid=7)
    assert (await kernel.attributes(inode)).mode & SET_ID == (0 if told else SET_ID)


async def test_a_kernel_that_does_not_say_it_is_judged_by_who_opened(operations: Operations) -> None:
    kernel = Kernel(OperationsServer(operations, lambda: NOW_NS, never))
    inode, handle = await kernel.create(b"file", mode=SET_ID | 0o755)
    opened = codec.OPEN_OUT.read(
        await kernel.ask(Opcode.OPEN, inode, codec.OPEN_IN.pack(os.O_WRONLY, 0), uid=7)
    )
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 1, 0, 0, 0, 0) + b"x", uid=7)
    assert (await kernel.attributes(inode)).mode & SET_ID == SET_ID
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(opened.fh, 0, 1, 0, 0, 0, 0) + b"x")
    assert (await kernel.attributes(inode)).mode & SET_ID == 0


def xattr_of(name: bytes, value: bytes, flags: int = 0) -> bytes:
    return codec.SETXATTR_IN.pack(len(value), flags) + name + b"\0" + value


async def test_extended_attributes(kernel: Kernel) -> None:
    inode, _ = await kernel.create(b"file")
    assert await kernel.ask(Opcode.LISTXATTR, inode, codec.GETXATTR_IN.pack(100, 0)) == b""
    replaced = xattr_of(b"user.a", b"x", os.XATTR_REPLACE)
    assert await kernel.refused(Opcode.SETXATTR, inode, replaced) == "ENODATA"
    await kernel.ask(Opcode.SETXATTR, inode, xattr_of(b"user.a", b"one\0two", os.XATTR_CREATE))
    again = xattr_of(b"user.a", b"x", os.XATTR_CREATE)
    assert await kernel.refused(Opcode.SETXATTR, inode, again) == "EEXIST"
    assert await kernel.refused(Opcode.SETXATTR, inode, xattr_of(b"user.a", b"x", 8)) == "EINVAL"

    async def get(size: int) -> bytes:
        return await kernel.ask(Opcode.GETXATTR, inode, codec.GETXATTR_IN.pack(size, 0) + b"user.a\0")

    assert await get(100) == b"one\0two"
    assert codec.GETXATTR_OUT.read(await get(0)).size == 7
    asked = codec.GETXATTR_IN.pack(6, 0) + b"user.a\0"
    assert await kernel.refused(Opcode.GETXATTR, inode, asked) == "ERANGE"
    assert await kernel.ask(Opcode.LISTXATTR, inode, codec.GETXATTR_IN.pack(100, 0)) == b"user.a\0"
    await kernel.ask(Opcode.REMOVEXATTR, inode, b"user.a\0")
    assert await kernel.refused(Opcode.REMOVEXATTR, inode, b"user.a\0") == "ENODATA"


async def test_the_rest(kernel: Kernel) -> None:
    found = codec.KSTATFS.read(await kernel.ask(Opcode.STATFS, ROOT))
    assert (found.bsize, found.namelen) == (4096, 255)
    assert found.blocks > found.bfree >= found.bavail
    assert await kernel.ask(Opcode.ACCESS, ROOT, codec.ACCESS_IN.pack(7, 0)) == b""
    assert await kernel.refused(Opcode.IOCTL, ROOT) == "ENOTTY"
    assert await kernel.ask(Opcode.DESTROY, 0) == b""


async def test_what_is_not_served_is_left_to_the_session(kernel: Kernel, operations: Operations) -> None:
    header = InHeader(40, 4711, 2, 1, 0, 0, 0, 0, 0)
    assert kernel.server.serve(header, memoryview(b"")) is None


async def test_what_the_kernel_did_not_take_is_taken_back(kernel: Kernel, operations: Operations) -> None:
    inode, _ = await kernel.create(b"file")
    await kernel.lose_reply()
    assert inode not in operations._cache._known
    assert not operations._unit.is_open(inode)  # type: ignore[arg-type]
    await kernel.ask(Opcode.OPENDIR, ROOT, codec.OPEN_IN.pack(0, 0))
    await kernel.lose_reply()
    assert not operations._unit.is_open(ROOT)  # type: ignore[arg-type]


async def test_a_kernel_drops_the_names_that_a_killed_program_changed(
    kernel: Kernel, operations: Operations, dropped: list[Name]
) -> None:
    names = operations._cache.directories
    moved = await kernel.make_directory(b"moved")
    target = await kernel.make_directory(b"target")
    await kernel.make_directory(b"removed")
    await kernel.ask(Opcode.RENAME2, ROOT, codec.RENAME2_IN.pack(target, 0, 0) + b"moved\0new\0")
    await kernel.lose_reply()
    assert InodeNumber(moved) not in names._names
    await kernel.ask(Opcode.LOOKUP, target, b"new\0")  # once the old name is dropped
    assert names._names[InodeNumber(moved)] == (target, b"new")
    await kernel.ask(Opcode.RMDIR, ROOT, b"removed\0")
    await kernel.lose_reply()
    assert await kernel.refused(Opcode.RMDIR, ROOT, b"removed\0") == "ENOENT"
    await kernel.lose_reply()  # which changed nothing
    names._droppers.shutdown()
    assert sorted(dropped) == sorted(
        [(ROOT, b"moved"), (ROOT, b"moved"), (target, b"new"), (ROOT, b"removed")]
    )


async def test_holes_are_found_where_they_are_and_take_no_blocks(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_SIZE, size=3 << 20))
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 1 << 20, 1, 0, 0, 0, 0) + b"x")
    attributes = await kernel.attributes(inode)
    assert attributes.size == 3 << 20
    assert 0 < attributes.blocks * 512 < 1 << 20

    async def seek(offset: int, whence: int) -> int:
        data = await kernel.ask(Opcode.LSEEK, inode, codec.LSEEK_IN.pack(handle, offset, whence, 0))
        return codec.LSEEK_OUT.read(data).offset

    assert await seek(0, os.SEEK_DATA) == 1 << 20
    assert await seek(5, os.SEEK_HOLE) == 5
    assert 1 << 20 < await seek(1 << 20, os.SEEK_HOLE) < 2 << 20
    assert await seek((3 << 20) - 1, os.SEEK_HOLE) == (3 << 20) - 1
    for offset, whence, error in (
        (2 << 20, os.SEEK_DATA, "ENXIO"),
        (3 << 20, os.SEEK_HOLE, "ENXIO"),
        ((1 << 64) - 1, os.SEEK_DATA, "ENXIO"),
        (0, os.SEEK_END, "EINVAL"),
    ):
        asked = codec.LSEEK_IN.pack(handle, offset, whence, 0)
        assert await kernel.refused(Opcode.LSEEK, inode, asked) == error
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_SIZE, size=1 << 20))
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 3, 0, 0, 0, 0) + b"end")
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_SIZE, size=3))
    assert await seek(1, os.SEEK_HOLE) == 3  # its end is one


async def test_room_is_given_and_taken(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")

    def asked(offset: int, length: int, mode: int) -> bytes:
        return codec.FALLOCATE_IN.pack(handle, offset, length, mode, 0)

    await kernel.ask(Opcode.FALLOCATE, inode, asked(0, 1 << 20, 0))
    attributes = await kernel.attributes(inode)
    assert attributes.size == 1 << 20
    assert 1 << 20 <= attributes.blocks * 512 < 2 << 20
    await kernel.ask(Opcode.FALLOCATE, inode, asked(0, 1 << 20, 3))
    attributes = await kernel.attributes(inode)
    assert attributes.size == 1 << 20
    assert attributes.blocks * 512 < 1 << 20
    for length, mode, error in (
        (1, 2, "ENOTSUP"),
        (1, 8, "ENOTSUP"),
        (1, 32, "ENOTSUP"),
        (1 << 63, 0, "EFBIG"),
    ):
        assert await kernel.refused(Opcode.FALLOCATE, inode, asked(0, length, mode)) == error
    for uid, mode in ((0, 0o4755), (1000, 0o755)):
        await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_MODE, mode=0o4755))
        await kernel.ask(Opcode.FALLOCATE, inode, asked(0, 1, 0), uid=uid)
        assert stat.S_IMODE((await kernel.attributes(inode)).mode) == mode


async def test_a_kernel_drops_the_pages_that_a_killed_program_wrote(
    kernel: Kernel, notified: list[tuple[InodeNumber, bool]]
) -> None:
    inode, handle = await kernel.create(b"file")
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 1, 0, 0, 0, 0) + b"x")
    notified.clear()
    await kernel.lose_reply()
    assert notified == [(inode, False)]


async def test_what_another_host_made_first_keeps_set_user_id_where_the_kernel_says_so(
    kernel: Kernel, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CREATE with O_TRUNC: root without CAP_FSETID, and one with it who is not root."""
    await kernel.create(b"file")
    file = operations._unit.volume.catalog.entry(InodeNumber(ROOT), b"file")
    assert file is not None
    for uid, told, mode in ((0, 0, 0o4755), (0, codec.OPEN_KILL_SUIDGID, 0o755), (1000, 0, 0o4755)):
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_MODE, mode=0o4755))
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_UID, uid=uid))
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_MODE, mode=0o4755))
        asked = codec.CREATE_IN.pack(os.O_RDWR | os.O_TRUNC, stat.S_IFREG | 0o644, 0o022, told)
        await kernel.ask(Opcode.CREATE, ROOT, asked + b"file\0", uid=uid)
        assert stat.S_IMODE((await kernel.attributes(file.inode)).mode) == mode


@pytest.mark.expects_warnings
async def test_a_mistake_in_a_handler_is_eio_and_a_line_in_the_log(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mistaken(inode: int, ctx: object) -> int:
        raise KeyError(inode)

    told: list[str] = []
    monkeypatch.setattr(operations, "getattr", mistaken)
    kernel = Kernel(OperationsServer(operations, lambda: NOW_NS, lambda: told.append("bug")))
    assert await kernel.refused(Opcode.GETATTR, ROOT, codec.GETATTR_IN.pack(0, 0, 0)) == "EIO"
    assert told == ["bug"]

    def mistaken_too(inodes: object) -> None:
        raise KeyError(inodes)

    monkeypatch.setattr(operations, "forget", mistaken_too)
    header = InHeader(48, Opcode.FORGET, 2, 1, 0, 0, 0, 0, 0)
    assert kernel.server.serve(header, memoryview(codec.FORGET_IN.pack(1))) is None
    assert told == ["bug", "bug"]


class Willing(pyfuse3.Operations):
    """Takes everything."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("forget", "__class__"):
            return lambda _: None

        async def refuse(*_: Any, **__: Any) -> Any:
            raise pyfuse3.FUSEError(errno.EPERM)

        if name == "program_locks":
            return SimpleNamespace(find=refuse, set=refuse, closed_by=lambda *_: None)
        return refuse


# Numbers of a structure that are each at an end of their range, and what follows it; or any bytes.
_ENDS = st.lists(st.sampled_from([0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]), max_size=12)
_BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda ends, rest: struct.pack(f"<{len(ends)}Q", *ends) + rest, _ENDS, st.binary(max_size=40)),
)


@given(st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 99)), _BODIES)
@example(Opcode.SETATTR, b"\xff" * codec.SETATTR_IN.size)
def test_no_bytes_of_the_kernel_are_a_bug(opcode: int, body: bytes) -> None:
    server = OperationsServer(Willing(), lambda: NOW_NS, never)
    header = InHeader(40 + len(body), opcode, 2, 1, 0, 0, 0, 0, 0)
    try:
        handling = server.serve(header, memoryview(body))
        if handling is not None:
            with pytest.raises(StopIteration):
                handling.send(None)
    except MalformedRequest:
        pass
