"""Files are opened, read, written and closed."""

import os
import stat
from dataclasses import dataclass

import pytest
import trio

from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import KERNEL_STEADY_S, REST_S
from fusemirror.operations import Unlink
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import CAPABILITY
from tests.filesystem.conftest import KEPT_S, ROOT_USER, USER, Caller, refused
from tests.filesystem.requests.conftest import LATER_S, ROOT, Kernel, change


async def test_a_file_at_rest_is_read_through_the_page_cache_and_written_past_it(
    kernel: Kernel, cache: KernelCache, autojump_clock: object
) -> None:
    cache.files.negotiated(maps_direct_io=True)
    inode = await kernel.make(b"file")
    await trio.sleep(3 * REST_S)
    for flags, cached in ((os.O_RDONLY, True), (os.O_RDWR, False), (os.O_RDONLY, False)):
        info = await kernel.operations.open(inode, flags, USER)
        assert (info.direct_io, info.keep_cache) == (not cached, cached)


async def test_a_change_takes_back_what_the_kernel_was_told(
    kernel: Kernel, notified: list[tuple[InodeNumber, bool]], autojump_clock: object
) -> None:
    inode = await kernel.make(b"file")
    handle = await kernel.open(inode)
    await kernel.operations.write(handle, 0, b"1")
    assert (await kernel.attributes(inode)).attr_timeout == 0
    await trio.sleep(KERNEL_STEADY_S)
    assert (await kernel.attributes(inode)).attr_timeout == KEPT_S
    assert notified == []
    for _ in range(2):
        await kernel.operations.write(handle, 0, b"2")
    assert notified == [(inode, True)]
    assert (await kernel.attributes(inode)).attr_timeout == 0


async def test_truncation_is_part_of_the_open(kernel: Kernel) -> None:
    inode = await kernel.make(b"file", b"content")
    await kernel.open(inode, os.O_WRONLY)
    assert await kernel.content(inode) == b"content"
    await kernel.open(inode, os.O_WRONLY | os.O_TRUNC)
    assert await kernel.content(inode) == b""
    assert (await kernel.attributes(inode)).st_size == 0


async def test_what_has_gone_cannot_be_opened(kernel: Kernel, unit: ControlUnit) -> None:
    gone = InodeNumber(999)
    assert await refused(kernel.open(gone)) == "ESTALE"
    assert await refused(kernel.open(gone, os.O_TRUNC | os.O_RDWR)) == "ESTALE"
    assert await refused(kernel.operations.opendir(gone, USER)) == "ESTALE"
    assert gone not in unit.open_inodes


async def test_a_file_that_is_created_is_new_and_open(kernel: Kernel, unit: ControlUnit) -> None:
    info, entry = await kernel.operations.create(ROOT, b"file", stat.S_IFREG | 0o4751, os.O_RDWR, USER)
    assert entry.st_mode == stat.S_IFREG | 0o4751
    assert (entry.st_uid, entry.st_gid, entry.st_nlink, entry.st_size) == (1000, 1000, 1, 0)
    assert entry.st_ino in unit.open_inodes
    await kernel.operations.release(info.fh)
    assert entry.st_ino not in unit.open_inodes


async def test_a_name_that_the_other_host_made_first_is_opened(kernel: Kernel, unit: ControlUnit) -> None:
    inode = await kernel.make(b"file", b"content")
    handle, opened = await kernel.create(b"file")
    assert opened == inode
    assert inode in unit.open_inodes
    assert await kernel.operations.read(handle, 0, 100) == b"content"
    _, entry = await kernel.operations.create(ROOT, b"file", 0o777, os.O_RDWR | os.O_TRUNC, ROOT_USER)
    assert (entry.st_ino, entry.st_size, stat.S_IMODE(entry.st_mode)) == (inode, 0, 0o644)


async def test_a_name_that_is_gone_again_by_then_is_created(
    kernel: Kernel, unit: ControlUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await kernel.make(b"file", b"content")

    async def lookup_too_late(parent: InodeNumber, name: bytes) -> Inode:
        monkeypatch.undo()
        await unit.perform(Unlink(parent, name))
        return await unit.lookup(parent, name)

    monkeypatch.setattr(unit, "lookup", lookup_too_late)
    handle, created = await kernel.create(b"file")
    assert created != there
    assert await kernel.operations.read(handle, 0, 100) == b""


async def test_an_exclusive_creation_refuses_a_name_that_is_there(kernel: Kernel, unit: ControlUnit) -> None:
    inode = await kernel.make(b"file", b"content")
    assert await refused(kernel.create(b"file", os.O_RDWR | os.O_EXCL | os.O_TRUNC)) == "EEXIST"
    assert await kernel.content(inode) == b"content"
    assert inode not in unit.open_inodes


async def test_creation_over_what_is_no_file_opens_nothing(kernel: Kernel, unit: ControlUnit) -> None:
    directory = await kernel.mkdir(b"dir")
    link = await kernel.operations.symlink(ROOT, b"link", b"dir", USER)
    assert await refused(kernel.create(b"dir")) == "EISDIR"
    assert await refused(kernel.create(b"link")) == "ESTALE", "the kernel shall follow it"
    assert directory not in unit.open_inodes
    assert link.st_ino not in unit.open_inodes


@dataclass(frozen=True)
class Access:
    mode: int
    owner: Caller
    flags: int
    allowed: bool


@pytest.mark.parametrize(
    "access",
    [
        Access(0o600, USER, os.O_RDWR, True),
        Access(0o400, USER, os.O_RDONLY, True),
        Access(0o400, USER, os.O_WRONLY, False),
        Access(0o400, USER, os.O_RDONLY | os.O_TRUNC, False),
        Access(0o200, USER, os.O_WRONLY, True),
        Access(0o200, USER, os.O_RDWR, False),
        Access(0o077, USER, os.O_RDONLY, False),
        Access(0o666, ROOT_USER, os.O_RDWR, False),  # group and others: the kernel decides
    ],
    ids=str,
)
async def test_creation_over_a_file_opens_only_what_its_owner_may(
    operations: Operations, access: Access
) -> None:
    inode = await Kernel(operations, access.owner).make(b"file", b"content", access.mode)
    request = Kernel(operations, USER).create(b"file", access.flags)
    if access.allowed:
        assert (await request)[1] == inode
    else:
        assert await refused(request) == "ESTALE"
        assert await Kernel(operations).content(inode) == b"content"


async def test_what_was_written_is_read(kernel: Kernel) -> None:
    handle, inode = await kernel.create(b"file")
    assert await kernel.operations.write(handle, 3, b"abc") == 3
    assert await kernel.operations.read(handle, 0, 100) == b"\0\0\0abc"
    assert await kernel.operations.read(handle, 4, 1) == b"b"
    assert await kernel.operations.read(handle, 6, 10) == b""
    assert (await kernel.attributes(inode)).st_size == 6
    await kernel.operations.fsync(handle, True)
    await kernel.operations.flush(handle)


async def test_who_appends_writes_at_the_end_wherever_the_kernel_thinks_it_is(kernel: Kernel) -> None:
    inode = await kernel.make(b"file", b"content")
    handle = await kernel.open(inode, os.O_WRONLY | os.O_APPEND)
    assert await kernel.operations.write(handle, 0, b"!") == 1
    assert await kernel.content(inode) == b"content!"


@pytest.mark.parametrize(
    ("writer", "mode", "left"),
    [(USER, 0o6755, 0o755), (USER, 0o2644, 0o2644), (ROOT_USER, 0o6755, 0o6755)],
    ids=["anyone", "no group execution", "root"],
)
async def test_a_write_ends_privileges_unless_it_is_roots(
    operations: Operations, writer: Caller, mode: int, left: int
) -> None:
    inode = await Kernel(operations, USER).make(b"file")
    await change(Kernel(operations), inode, mode=stat.S_IFREG | mode)
    kernel = Kernel(operations, writer)
    await kernel.operations.write(await kernel.open(inode), 0, b"x")
    assert stat.S_IMODE((await kernel.attributes(inode)).st_mode) == left


async def test_a_removed_file_lives_as_long_as_it_is_open(kernel: Kernel, autojump_clock: object) -> None:
    inode = await kernel.make(b"file", b"content")
    handle = await kernel.open(inode)
    await kernel.operations.unlink(ROOT, b"file", USER)
    await trio.sleep(LATER_S)
    assert await kernel.operations.read(handle, 0, 100) == b"content"
    assert (await kernel.attributes(inode)).st_nlink == 0
    assert await kernel.lookup(b".", inode) == inode
    await kernel.operations.release(handle)
    assert await refused(kernel.lookup(b".", inode)) == "ESTALE"  # its handle, while it waits to be purged
    await trio.sleep(LATER_S)
    assert await refused(kernel.attributes(inode)) == "ESTALE"


@pytest.mark.parametrize(("caller", "mode"), [(ROOT_USER, 0o6755), (USER, 0o755)])
async def test_who_opens_a_file_decides_whether_set_id_bits_stay(
    kernel: Kernel, caller: Caller, mode: int
) -> None:
    """The kernel tells no more than that of who writes (without FUSE_HANDLE_KILLPRIV_V2)."""
    opener = Kernel(kernel.operations, caller)
    for name, flags in ((b"written", os.O_WRONLY), (b"emptied", os.O_WRONLY | os.O_TRUNC)):
        inode = await kernel.make(name, b"as it was")
        await change(kernel, inode, mode=0o6755)
        await kernel.operations.setxattr(inode, CAPABILITY, b"value", ROOT_USER)
        handle = await opener.open(inode, flags)
        if not flags & os.O_TRUNC:
            await opener.operations.write(handle, 0, b"evil")
        await opener.operations.release(handle)
        assert stat.S_IMODE((await kernel.attributes(inode)).st_mode) == mode
        assert await refused(kernel.operations.getxattr(inode, CAPABILITY, ROOT_USER)) == "ENODATA"
