"""Requests on attributes, as bytes."""

import errno
import os
import stat

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusemirror.control.unit import ControlUnit
from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, Opcode
from fusemirror.operations import AnyOperation
from fusemirror.volume.inode import Inode
from tests.filesystem.serving.conftest import NOW_NS, ROOT, Kernel, setattr_of


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


def xattr_of(name: bytes, value: bytes, flags: int = 0) -> bytes:
    return codec.SETXATTR_IN.pack(len(value), flags) + name + b"\0" + value


@pytest.mark.parametrize("flags", [os.XATTR_CREATE, os.XATTR_REPLACE], ids=["create", "replace"])
async def test_of_two_hosts_that_ask_for_one_thing_at_once_one_gets_it(
    kernel: Kernel, unit: ControlUnit, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """Each kernel locks for itself. Both had looked before either was decided, and both were told that they
    made it; or one that replaced what the other had removed by then made it anew."""
    inode, _ = await kernel.create(b"file")
    others = Kernel(kernel.server)
    if flags == os.XATTR_REPLACE:
        await kernel.ask(Opcode.SETXATTR, inode, xattr_of(b"user.lock", b"nobody"))
    under_way, perform, ended = list[trio.Event](), unit.perform, list[str]()

    async def on_its_way(operation: AnyOperation) -> Inode | None:
        under_way.append(trio.Event())
        await under_way[-1].wait()
        return await perform(operation)

    monkeypatch.setattr(unit, "perform", on_its_way)

    async def ask(asking: Kernel, opcode: Opcode, body: bytes) -> None:
        try:
            await asking.ask(opcode, inode, body)
            ended.append("done")
        except OSError as error:
            ended.append(errno.errorcode[error.errno or 0])

    wanted = xattr_of(b"user.lock", b"mine", flags)
    async with trio.open_nursery() as nursery:
        if flags == os.XATTR_CREATE:
            nursery.start_soon(ask, others, Opcode.SETXATTR, wanted)
        else:
            nursery.start_soon(ask, others, Opcode.REMOVEXATTR, b"user.lock\0")
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, kernel, Opcode.SETXATTR, wanted)
        for arrived in (0, 1):
            await wait_all_tasks_blocked()
            under_way[arrived].set()
    assert ended == ["done", "EEXIST" if flags == os.XATTR_CREATE else "ENODATA"]


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
