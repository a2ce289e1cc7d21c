"""Requests on what is in a file, as bytes."""

import errno
import os
import stat

import outcome
import pytest

from fusemirror.control.unit import BegunWrite
from fusemirror.errors import ChangeInDoubt, OperationFailed, RoleChanged
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.requests import files as files_module
from fusemirror.filesystem.server import OperationsServer
from fusemirror.identifiers import InodeNumber
from fusemirror.kernel import codec
from fusemirror.kernel.codec import Opcode
from fusemirror.operations import AnyOperation, SetAttributes, Write
from fusemirror.promise import Promise
from fusemirror.volume.inode import Inode
from tests.filesystem.conftest import never
from tests.filesystem.serving.conftest import NOW_NS, ROOT, SET_ID, Kernel, setattr_of


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


def begins_with(
    settled: "outcome.Outcome[None]", operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes wait for the other host alone, and that says this."""
    unit = operations.files._unit

    def begin(write: Write, data: bytes) -> BegunWrite:
        promise: Promise[None] = Promise()
        promise.settle(settled)
        return BegunWrite(unit.present.role, write, data, promise)

    monkeypatch.setattr(unit, "begin_write", begin)


@pytest.mark.parametrize(
    ("settled", "told"),
    [
        (outcome.Value(None), ""),
        (outcome.Error(RoleChanged()), ""),
        (outcome.Error(ChangeInDoubt("lost")), "EIO"),
        (outcome.Error(OperationFailed(errno.ENOSPC)), "ENOSPC"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
@pytest.mark.expects_warnings
async def test_a_write_that_waited_for_the_other_host_alone_becomes_what_that_says(
    kernel: Kernel,
    operations: Operations,
    monkeypatch: pytest.MonkeyPatch,
    settled: "outcome.Outcome[None]",
    told: str,
) -> None:
    inode, handle = await kernel.create(b"file")
    begins_with(settled, operations, monkeypatch)
    asked = codec.WRITE_IN.pack(handle, 3, 5, 0, 0, 0, 0) + b"hello"
    if told:
        assert await kernel.refused(Opcode.WRITE, inode, asked) == told
    else:
        assert codec.WRITE_OUT.read(await kernel.ask(Opcode.WRITE, inode, asked)).size == 5
    monkeypatch.undo()
    done_anew = isinstance(settled, outcome.Error) and isinstance(settled.error, RoleChanged)
    assert (await kernel.attributes(inode)).size == (8 if done_anew else 0)
    assert not operations.files._cache.pages._moving


@pytest.mark.expects_warnings
async def test_a_host_whose_disk_has_failed_meanwhile_says_so(
    kernel: Kernel, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode, handle = await kernel.create(b"file")
    begins_with(outcome.Value(None), operations, monkeypatch)
    monkeypatch.setattr(operations.files._unit.volume.health, "failure", "it is gone")
    asked = codec.WRITE_IN.pack(handle, 0, 5, 0, 0, 0, 0) + b"hello"
    assert await kernel.refused(Opcode.WRITE, inode, asked) == "EIO"


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
    assert not operations.files._unnamed
    assert operations.files._unit.volume.catalog.derived.is_orphan(InodeNumber(inode)), "the purge finds it"


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


async def test_a_range_is_copied_in_steps(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "COPY_STEP_BYTES", 1000)
    source, from_handle = await kernel.create(b"source")
    target, to_handle = await kernel.create(b"target")
    content = os.urandom(2500)
    write = codec.WRITE_IN.pack(from_handle, 0, len(content), 0, 0, 0, 0) + content
    await kernel.ask(Opcode.WRITE, source, write)

    def asked(off_in: int, off_out: int, length: int, *, to: int = to_handle, flags: int = 0) -> bytes:
        inode = target if to == to_handle else source
        return codec.COPY_FILE_RANGE_IN.pack(from_handle, off_in, inode, to, off_out, length, flags)

    async def copy(off_in: int, off_out: int, length: int, *, uid: int = 0) -> int:
        body = asked(off_in, off_out, length)
        return codec.WRITE_OUT.read(await kernel.ask(Opcode.COPY_FILE_RANGE, source, body, uid=uid)).size

    assert await copy(10, 3, 1 << 40) == 2490  # as far as the source goes
    assert await copy(2500, 0, 100) == 0
    read = codec.READ_IN.pack(to_handle, 0, 9999, 0, 0, 0, 0)
    assert await kernel.ask(Opcode.READ, target, read) == bytes(3) + content[10:]
    for body, error in (
        (asked(0, 5, 100, to=from_handle), "EINVAL"),
        (asked(0, 0, 1, flags=1), "EINVAL"),
        (asked(0, (1 << 63) - 5, 100), "EFBIG"),
    ):
        assert await kernel.refused(Opcode.COPY_FILE_RANGE, source, body) == error
    for uid, mode in ((0, 0o4755), (1000, 0o755)):
        await kernel.ask(Opcode.SETATTR, target, setattr_of(codec.FATTR_MODE, mode=0o4755))
        assert await copy(0, 0, 5, uid=uid) == 5
        assert stat.S_IMODE((await kernel.attributes(target)).mode) == mode


async def test_a_source_that_is_cut_again_and_again_is_copied_as_far_as_it_goes(
    kernel: Kernel, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode, handle = await kernel.create(b"file")
    await kernel.ask(Opcode.WRITE, inode, codec.WRITE_IN.pack(handle, 0, 9, 0, 0, 0, 0) + b"123456789")
    perform = operations.files._unit.perform
    cuts = [7, 5]

    async def cut_first(operation: AnyOperation, data: bytes = b"") -> Inode | None:
        if cuts:
            await perform(SetAttributes(InodeNumber(inode), size=cuts.pop(0)))
        return await perform(operation, data)

    monkeypatch.setattr(operations.files._unit, "perform", cut_first)
    asked = codec.COPY_FILE_RANGE_IN.pack(handle, 2, inode, handle, 20, 7, 0)
    reply = await kernel.ask(Opcode.COPY_FILE_RANGE, inode, asked)
    assert codec.WRITE_OUT.read(reply).size == 3
    read = codec.READ_IN.pack(handle, 18, 99, 0, 0, 0, 0)
    assert await kernel.ask(Opcode.READ, inode, read) == bytes(2) + b"345"
    cuts[:] = range(1000, 100, -1)
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(codec.FATTR_SIZE, size=1001))
    asked = codec.COPY_FILE_RANGE_IN.pack(handle, 0, inode, handle, 5000, 3000, 0)
    assert await kernel.refused(Opcode.COPY_FILE_RANGE, inode, asked) == "EAGAIN"


async def test_a_kernel_drops_the_pages_that_a_killed_program_copied_to(
    kernel: Kernel, notified: list[tuple[InodeNumber, bool]]
) -> None:
    source, from_handle = await kernel.create(b"source")
    target, to_handle = await kernel.create(b"target")
    await kernel.ask(Opcode.WRITE, source, codec.WRITE_IN.pack(from_handle, 0, 3, 0, 0, 0, 0) + b"123")
    for inode, handle in ((source, from_handle), (target, to_handle)):
        await kernel.ask(Opcode.READ, inode, codec.READ_IN.pack(handle, 0, 99, 0, 0, 0, 0))
    notified.clear()
    asked = codec.COPY_FILE_RANGE_IN.pack(from_handle, 0, target, to_handle, 0, 3, 0)
    await kernel.ask(Opcode.COPY_FILE_RANGE, source, asked)
    await kernel.lose_reply()
    assert {inode for inode, only_attributes in notified if not only_attributes} == {target}


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
    file = operations.files._unit.volume.catalog.entry(InodeNumber(ROOT), b"file")
    assert file is not None
    for uid, told, mode in ((0, 0, 0o4755), (0, codec.OPEN_KILL_SUIDGID, 0o755), (1000, 0, 0o4755)):
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_MODE, mode=0o4755))
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_UID, uid=uid))
        await kernel.ask(Opcode.SETATTR, file.inode, setattr_of(codec.FATTR_MODE, mode=0o4755))
        asked = codec.CREATE_IN.pack(os.O_RDWR | os.O_TRUNC, stat.S_IFREG | 0o644, 0o022, told)
        await kernel.ask(Opcode.CREATE, ROOT, asked + b"file\0", uid=uid)
        assert stat.S_IMODE((await kernel.attributes(file.inode)).mode) == mode
