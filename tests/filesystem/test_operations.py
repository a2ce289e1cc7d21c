"""The request handlers, driven as the kernel drives them, over a real volume."""

import os
import stat
from dataclasses import dataclass
from typing import Any

import pyfuse3
import pytest
import trio

from fusemirror.change import AnyChange, Table
from fusemirror.control.primary import PrimaryUnit
from fusemirror.filesystem.directory_names import Name
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import KERNEL_STEADY_S, NAME_BYTES_MAX, PURGE_AFTER_S, REST_S
from fusemirror.operations import Rename, Unlink
from fusemirror.operations.acl import ACCESS
from fusemirror.operations.draft import Draft
from fusemirror.volume.catalog import inode_key, xattr_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY
from tests.filesystem.conftest import KEPT_S, ROOT_USER, USER, Caller, refused

ROOT = ROOT_INODE
LATER_S = 3 * PURGE_AFTER_S


class Kernel:
    """Requests in short: by whom is told once, and what is made is known by its inode."""

    def __init__(self, operations: Operations, caller: Caller = ROOT_USER) -> None:
        self.operations: Any = operations
        self.caller = caller

    async def create(
        self, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644, parent: int = ROOT
    ) -> tuple[int, InodeNumber]:
        """The handle and the inode."""
        info, entry = await self.operations.create(parent, name, mode, flags | os.O_CREAT, self.caller)
        return info.fh, InodeNumber(entry.st_ino)

    async def make(self, name: bytes, content: bytes = b"", mode: int = 0o644) -> InodeNumber:
        handle, inode = await self.create(name, mode=mode)
        await self.operations.write(handle, 0, content)
        await self.operations.release(handle)
        return inode

    async def mkdir(self, name: bytes, parent: int = ROOT) -> InodeNumber:
        entry = await self.operations.mkdir(parent, name, stat.S_IFDIR | 0o755, self.caller)
        return InodeNumber(entry.st_ino)

    async def open(self, inode: InodeNumber, flags: int = os.O_RDWR) -> int:
        handle: int = (await self.operations.open(inode, flags, self.caller)).fh
        return handle

    async def content(self, inode: InodeNumber) -> bytes:
        handle = await self.open(inode, os.O_RDONLY)
        content: bytes = await self.operations.read(handle, 0, 1 << 20)
        await self.operations.release(handle)
        return content

    async def attributes(self, inode: int) -> Any:
        return await self.operations.getattr(inode, self.caller)

    async def lookup(self, name: bytes, parent: int = ROOT) -> int:
        number: int = (await self.operations.lookup(parent, name, self.caller)).st_ino
        return number


@pytest.fixture
def kernel(operations: Operations) -> Kernel:
    return Kernel(operations)


def test_the_kernel_is_told_to_keep_nothing_back() -> None:
    assert Operations.enable_writeback_cache is False
    assert Operations.supports_dot_lookup is True
    assert Operations.enable_acl is True


# --- names ------------------------------------------------------------------------------------------------


async def test_a_name_is_found_where_it_was_made_and_nowhere_else(kernel: Kernel) -> None:
    directory = await kernel.mkdir(b"dir")
    _, inode = await kernel.create(b"file", parent=directory)
    assert await kernel.lookup(b"file", directory) == inode
    assert await refused(kernel.lookup(b"file")) == "ENOENT"
    assert await refused(kernel.lookup(b"other", directory)) == "ENOENT"
    assert await refused(kernel.lookup(b"any", 999)) == "ESTALE"
    assert await refused(kernel.lookup(b"n" * (NAME_BYTES_MAX + 1))) == "ENAMETOOLONG"


async def test_dots_are_looked_up_for_those_who_open_by_handle(kernel: Kernel) -> None:
    outer = await kernel.mkdir(b"outer")
    inner = await kernel.mkdir(b"inner", outer)
    file = await kernel.make(b"file")
    assert await kernel.lookup(b".", inner) == inner
    assert await kernel.lookup(b"..", inner) == outer
    assert await kernel.lookup(b"..", outer) == ROOT
    assert await kernel.lookup(b"..", ROOT) == ROOT
    assert await kernel.lookup(b".", file) == file
    assert await refused(kernel.lookup(b".", 999)) == "ESTALE"


async def test_each_kind_of_file_is_made_as_asked(kernel: Kernel) -> None:
    made = kernel.operations
    fifo = await made.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, USER)
    device = await made.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, 0x103, USER)
    link = await made.symlink(ROOT, b"link", b"to/there", USER)
    directory = await made.mkdir(ROOT, b"dir", stat.S_IFDIR | 0o700, USER)
    assert fifo.st_mode == stat.S_IFIFO | 0o600
    assert (device.st_mode, device.st_rdev) == (stat.S_IFCHR | 0o666, 0x103)
    assert (link.st_mode, link.st_size) == (stat.S_IFLNK | 0o777, 8)
    assert (directory.st_mode, directory.st_nlink) == (stat.S_IFDIR | 0o700, 2)
    assert all((entry.st_uid, entry.st_gid) == (1000, 1000) for entry in (fifo, device, link, directory))
    assert await made.readlink(link.st_ino, USER) == b"to/there"


async def test_a_name_that_is_there_cannot_be_made_again(kernel: Kernel) -> None:
    await kernel.make(b"name")
    made = kernel.operations
    for request in (
        made.mkdir(ROOT, b"name", stat.S_IFDIR | 0o755, USER),
        made.mknod(ROOT, b"name", stat.S_IFIFO | 0o600, 0, USER),
        made.symlink(ROOT, b"name", b"x", USER),
        made.link(await kernel.make(b"other"), ROOT, b"name", USER),
    ):
        assert await refused(request) == "EEXIST"


async def test_two_links_are_one_file(kernel: Kernel) -> None:
    inode = await kernel.make(b"one", b"content")
    entry = await kernel.operations.link(inode, ROOT, b"two", USER)
    assert (entry.st_ino, entry.st_nlink) == (inode, 2)
    await kernel.operations.unlink(ROOT, b"one", USER)
    assert await kernel.lookup(b"two") == inode
    assert (await kernel.attributes(inode)).st_nlink == 1
    assert await kernel.content(inode) == b"content"


async def test_directories_go_only_by_rmdir_and_files_only_by_unlink(kernel: Kernel) -> None:
    directory = await kernel.mkdir(b"dir")
    await kernel.create(b"file", parent=directory)
    remove = kernel.operations
    assert await refused(remove.unlink(ROOT, b"dir", USER)) == "EISDIR"
    assert await refused(remove.rmdir(directory, b"file", USER)) == "ENOTDIR"
    assert await refused(remove.rmdir(ROOT, b"dir", USER)) == "ENOTEMPTY"
    await remove.unlink(directory, b"file", USER)
    await remove.rmdir(ROOT, b"dir", USER)
    assert await refused(kernel.lookup(b"dir")) == "ENOENT"


async def test_a_rename_takes_its_flags(kernel: Kernel) -> None:
    one, two = await kernel.make(b"one"), await kernel.make(b"two")
    rename = kernel.operations.rename
    assert await refused(rename(ROOT, b"one", ROOT, b"two", pyfuse3.RENAME_NOREPLACE, USER)) == "EEXIST"
    await rename(ROOT, b"one", ROOT, b"two", pyfuse3.RENAME_EXCHANGE, USER)
    assert (await kernel.lookup(b"one"), await kernel.lookup(b"two")) == (two, one)
    await rename(ROOT, b"one", ROOT, b"two", 0, USER)
    assert await kernel.lookup(b"two") == two
    assert await refused(kernel.lookup(b"one")) == "ENOENT"


async def test_a_directory_that_the_other_host_moved_is_found_once_its_old_name_is_dropped(
    kernel: Kernel, unit: PrimaryUnit, dropped: list[Name]
) -> None:
    new, work, job = [await kernel.mkdir(name) for name in (b"new", b"work", b"job")]
    await kernel.operations.rename(ROOT, b"job", new, b"job", 0, ROOT_USER)
    assert await kernel.lookup(b"job", new) == job
    assert not dropped, "its own kernel has moved it by itself"
    unit.volume.apply(_of_the_other_host(unit, Rename(new, b"job", work, b"job")))
    assert await kernel.lookup(b"job", work) == job
    assert dropped == [(new, b"job")]
    await kernel.mkdir(b"other", work)
    await kernel.operations.rename(work, b"other", work, b"job", pyfuse3.RENAME_EXCHANGE, ROOT_USER)
    assert await kernel.lookup(b"other", work) == job
    assert dropped == [(new, b"job")]


def _of_the_other_host(unit: PrimaryUnit, operation: Rename) -> AnyChange:
    volume = unit.volume
    number, request = ChangeNumber(volume.number + 1), RequestId(b"the other host's")
    change = operation.decide(Draft(volume.catalog, number, volume.time_ns(), request)).change
    assert change is not None
    return change


async def test_the_directory_of_set_aside_files_is_made_removed_and_renamed_by_root_alone(
    kernel: Kernel,
) -> None:
    name = b".fusemirror-conflicts"
    o, mode = kernel.operations, stat.S_IFDIR | 0o777
    assert await refused(o.mkdir(ROOT, name, mode, USER)) == "EPERM"
    assert await refused(o.create(ROOT, name, 0o666, os.O_RDWR | os.O_CREAT, USER)) == "EPERM"
    assert await refused(o.mknod(ROOT, name, stat.S_IFIFO | 0o666, 0, USER)) == "EPERM"
    assert await refused(o.symlink(ROOT, name, b"/tmp", USER)) == "EPERM"
    mine = await o.mkdir(ROOT, b"mine", mode, USER)
    file = await kernel.make(b"file")
    assert await refused(o.link(file, ROOT, name, USER)) == "EPERM"
    assert await refused(o.rename(ROOT, b"mine", ROOT, name, 0, USER)) == "EPERM"
    await o.mkdir(ROOT, name, mode, ROOT_USER)
    assert await refused(o.rename(ROOT, name, ROOT, b"old", 0, USER)) == "EPERM"
    exchange = (ROOT, b"mine", ROOT, name, pyfuse3.RENAME_EXCHANGE)
    assert await refused(o.rename(*exchange, USER)) == "EPERM"
    assert await refused(o.rmdir(ROOT, name, USER)) == "EPERM"
    await o.mkdir(mine.st_ino, name, mode, USER)
    await o.rename(*exchange, ROOT_USER)
    await o.rmdir(ROOT, b"mine", ROOT_USER)


# --- opening ----------------------------------------------------------------------------------------------


async def test_a_file_at_rest_is_read_through_the_page_cache_and_written_past_it(
    kernel: Kernel, cache: KernelCache, autojump_clock: object
) -> None:
    cache.maps_direct_io = True
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


async def test_what_has_gone_cannot_be_opened(kernel: Kernel, unit: PrimaryUnit) -> None:
    gone = InodeNumber(999)
    assert await refused(kernel.open(gone)) == "ESTALE"
    assert await refused(kernel.open(gone, os.O_TRUNC | os.O_RDWR)) == "ESTALE"
    assert await refused(kernel.operations.opendir(gone, USER)) == "ESTALE"
    assert not unit.is_open(gone)


async def test_a_file_that_is_created_is_new_and_open(kernel: Kernel, unit: PrimaryUnit) -> None:
    info, entry = await kernel.operations.create(ROOT, b"file", stat.S_IFREG | 0o4751, os.O_RDWR, USER)
    assert entry.st_mode == stat.S_IFREG | 0o4751
    assert (entry.st_uid, entry.st_gid, entry.st_nlink, entry.st_size) == (1000, 1000, 1, 0)
    assert unit.is_open(entry.st_ino)
    await kernel.operations.release(info.fh)
    assert not unit.is_open(entry.st_ino)


async def test_a_name_that_the_other_host_made_first_is_opened(kernel: Kernel, unit: PrimaryUnit) -> None:
    inode = await kernel.make(b"file", b"content")
    handle, opened = await kernel.create(b"file")
    assert opened == inode
    assert unit.is_open(inode)
    assert await kernel.operations.read(handle, 0, 100) == b"content"
    _, entry = await kernel.operations.create(ROOT, b"file", 0o777, os.O_RDWR | os.O_TRUNC, ROOT_USER)
    assert (entry.st_ino, entry.st_size, stat.S_IMODE(entry.st_mode)) == (inode, 0, 0o644)


async def test_a_name_that_is_gone_again_by_then_is_created(
    kernel: Kernel, unit: PrimaryUnit, monkeypatch: pytest.MonkeyPatch
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


async def test_an_exclusive_creation_refuses_a_name_that_is_there(kernel: Kernel, unit: PrimaryUnit) -> None:
    inode = await kernel.make(b"file", b"content")
    assert await refused(kernel.create(b"file", os.O_RDWR | os.O_EXCL | os.O_TRUNC)) == "EEXIST"
    assert await kernel.content(inode) == b"content"
    assert not unit.is_open(inode)


async def test_creation_over_what_is_no_file_opens_nothing(kernel: Kernel, unit: PrimaryUnit) -> None:
    directory = await kernel.mkdir(b"dir")
    link = await kernel.operations.symlink(ROOT, b"link", b"dir", USER)
    assert await refused(kernel.create(b"dir")) == "EISDIR"
    assert await refused(kernel.create(b"link")) == "ESTALE", "the kernel shall follow it"
    assert not unit.is_open(directory)
    assert not unit.is_open(link.st_ino)


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


# --- content ----------------------------------------------------------------------------------------------


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


# --- attributes -------------------------------------------------------------------------------------------


@dataclass
class Fields:
    """As pyfuse3's SetattrFields, whose fields only the kernel can set."""

    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


async def change(kernel: Kernel, inode: int, **values: int) -> Any:
    attributes, fields = pyfuse3.EntryAttributes(), Fields()
    for field, value in values.items():
        setattr(attributes, f"st_{field}", value)
        setattr(fields, f"update_{field.removesuffix('_ns')}", True)
    return await kernel.operations.setattr(inode, attributes, fields, None, kernel.caller)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", stat.S_IFREG | 0o751),
        ("uid", 3),
        ("gid", 4),
        ("size", 1 << 40),
        ("size", 2),
        ("atime_ns", 1_000_000_007),
        ("mtime_ns", -1),
    ],
)
async def test_one_attribute_changes_and_the_others_stay(kernel: Kernel, field: str, value: int) -> None:
    inode = await kernel.make(b"file", b"content")
    names = ("mode", "uid", "gid", "size", "atime_ns", "nlink")
    before = {name: getattr(await kernel.attributes(inode), f"st_{name}") for name in names}
    answer = await change(kernel, inode, **{field: value})
    expected = {**before, field: value}
    for entry in (answer, await kernel.attributes(inode)):
        assert {name: getattr(entry, f"st_{name}") for name in expected} == expected


async def test_a_file_may_be_cut_and_given_away_at_once(kernel: Kernel) -> None:
    inode = await kernel.make(b"file", b"content")
    entry = await change(kernel, inode, size=3, uid=7, mtime_ns=5)
    assert (entry.st_size, entry.st_uid, entry.st_mtime_ns) == (3, 7, 5)
    assert await kernel.content(inode) == b"con"


async def test_only_files_have_a_size_to_set(kernel: Kernel) -> None:
    directory = await kernel.mkdir(b"dir")
    fifo = await kernel.operations.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, USER)
    assert await refused(change(kernel, directory, size=0)) == "EISDIR"
    assert await refused(change(kernel, fifo.st_ino, size=0)) == "EINVAL"
    assert await refused(change(kernel, 999, size=0)) == "ESTALE"


async def test_extended_attributes_are_kept_listed_and_removed(kernel: Kernel) -> None:
    inode = await kernel.make(b"file")
    of = kernel.operations
    await of.setxattr(inode, b"user.b", b"two", USER)
    await of.setxattr(inode, b"user.a", bytes(8000), USER)
    assert await of.listxattr(inode, USER) == [b"user.a", b"user.b"]
    assert await of.getxattr(inode, b"user.a", USER) == bytes(8000)
    await of.removexattr(inode, b"user.a", USER)
    assert await of.listxattr(inode, USER) == [b"user.b"]
    assert await refused(of.getxattr(inode, b"user.a", USER)) == "ENODATA"
    assert await refused(of.removexattr(inode, b"user.a", USER)) == "ENODATA"
    assert await refused(of.listxattr(999, USER)) == "ESTALE"


async def test_attributes_of_no_namespace_are_neither_made_nor_seen_nor_removed(
    kernel: Kernel, volume: Volume
) -> None:
    inode = await kernel.make(b"file")
    of = kernel.operations
    volume.catalog.apply_rows([(Table.XATTRS, xattr_key(inode, b"system.old"), b"of an earlier version")])
    await of.setxattr(inode, b"user.a", b"", ROOT_USER)
    for caller in (ROOT_USER, USER):
        assert await refused(of.setxattr(inode, b"system.new", b"", caller)) == "ENOTSUP"
        assert await refused(of.getxattr(inode, b"system.old", caller)) == "ENOTSUP"
        assert await refused(of.removexattr(inode, b"system.old", caller)) == "ENOTSUP"
        assert await of.listxattr(inode, caller) == [b"user.a"]


async def test_trusted_attributes_are_listed_to_administrators_only(kernel: Kernel) -> None:
    inode = await kernel.make(b"file")
    of = kernel.operations
    for name in (b"trusted.a", b"user.a"):
        await of.setxattr(inode, name, b"", ROOT_USER)
    nobodys = 0  # a process that /proc does not know
    assert await of.listxattr(inode, Caller(0, 0, pid=nobodys)) == [b"trusted.a", b"user.a"]
    assert await of.listxattr(inode, Caller(1000, 1000, pid=nobodys)) == [b"user.a"]


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


async def test_an_access_list_that_is_not_there_is_removed_as_well(kernel: Kernel) -> None:
    inode = await kernel.make(b"file")
    await kernel.operations.removexattr(inode, ACCESS, ROOT_USER)


async def test_the_space_is_that_of_the_disk_under_the_volume(kernel: Kernel, volume: Volume) -> None:
    answer = await kernel.operations.statfs(USER)
    of_disk = os.statvfs(volume.directory)
    assert (answer.f_blocks, answer.f_frsize) == (of_disk.f_blocks, of_disk.f_frsize)
    assert answer.f_namemax == NAME_BYTES_MAX
    assert answer.f_bsize == 4096


# --- directories ------------------------------------------------------------------------------------------

Listed = list[tuple[bytes, int, int]]
"""Name, inode, and the position after it."""


class Listing:
    """Takes what a listing says, `room` entries at a time, as the kernel's buffer does."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kernel = kernel
        self._room = 0
        self._taken: Listed = []
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, _: object, name: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
        if len(self._taken) == self._room:
            return False
        self._taken.append((name, entry.st_ino, position))
        return True

    async def read(self, handle: int, position: int, room: int = 1000) -> Listed:
        self._taken, self._room = [], room
        await self._kernel.operations.readdir(handle, position, None)
        return self._taken

    async def names(self, inode: int) -> list[bytes]:
        """Of a new listing, from its beginning to its end."""
        handle = await self._kernel.operations.opendir(inode, USER)
        taken = [name for name, _, _ in await self.read(handle, 0)]
        await self._kernel.operations.releasedir(handle)
        return taken


@pytest.fixture
def listing(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Listing:
    return Listing(kernel, monkeypatch)


async def test_a_listing_begins_with_the_dots(kernel: Kernel, listing: Listing) -> None:
    outer = await kernel.mkdir(b"outer")
    inner = await kernel.mkdir(b"inner", outer)
    handle = await kernel.operations.opendir(inner, USER)
    assert [entry[:2] for entry in await listing.read(handle, 0)] == [(b".", inner), (b"..", outer)]
    assert await listing.names(outer) == [b".", b"..", b"inner"]


@pytest.mark.parametrize("room", [1, 2, 3, 7, 1000])
async def test_a_listing_in_pieces_tells_every_name_once(kernel: Kernel, listing: Listing, room: int) -> None:
    made = {b"file%d" % index: await kernel.make(b"file%d" % index) for index in range(10)}
    handle = await kernel.operations.opendir(ROOT, USER)
    told: Listed = []
    while piece := await listing.read(handle, told[-1][2] if told else 0, room):
        assert len(told) < 100, "it never ends"
        told += piece
    assert [name for name, _, _ in told] == [b".", b"..", *made]
    assert dict(entry[:2] for entry in told[2:]) == made
    positions = [position for _, _, position in told]
    assert positions == sorted(set(positions))


async def test_a_listing_can_be_taken_up_at_every_position_again(kernel: Kernel, listing: Listing) -> None:
    for index in range(5):
        await kernel.make(b"file%d" % index)
    handle = await kernel.operations.opendir(ROOT, USER)
    whole = await listing.read(handle, 0)
    for index, (_, _, position) in enumerate(whole):
        assert await listing.read(handle, position) == whole[index + 1 :]


async def test_a_long_listing_is_whole(kernel: Kernel, listing: Listing) -> None:
    for index in range(300):
        await kernel.operations.mknod(ROOT, b"%d" % index, stat.S_IFIFO | 0o600, 0, USER)
    assert await listing.names(ROOT) == [b".", b"..", *(b"%d" % index for index in range(300))]


async def test_who_renames_what_it_lists_comes_to_an_end(kernel: Kernel, listing: Listing) -> None:
    for index in range(4):
        await kernel.make(b"%d" % index)
    handle = await kernel.operations.opendir(ROOT, USER)
    told = await listing.read(handle, 0, room=3)
    while piece := await listing.read(handle, told[-1][2], room=1):
        assert len(told) < 10
        told += piece
        await kernel.operations.rename(ROOT, piece[0][0], ROOT, b"new" + piece[0][0], 0, USER)
    assert [name for name, _, _ in told] == [b".", b"..", b"0", b"1", b"2", b"3"]


async def test_a_rewound_listing_tells_what_is_there_by_then(kernel: Kernel, listing: Listing) -> None:
    await kernel.make(b"old")
    handle = await kernel.operations.opendir(ROOT, USER)
    (*_, (_, _, position)) = await listing.read(handle, 0)
    await kernel.make(b"new")
    await kernel.operations.unlink(ROOT, b"old", USER)
    assert await listing.read(handle, position) == []
    assert [name for name, _, _ in await listing.read(handle, 0)] == [b".", b"..", b"new"]


@pytest.mark.parametrize("flags", [0, pyfuse3.RENAME_EXCHANGE])
async def test_a_name_that_is_given_to_another_file_is_in_every_listing(
    kernel: Kernel, listing: Listing, flags: int
) -> None:
    for name in (b"kept", b"moved"):
        await kernel.make(name)
    handle = await kernel.operations.opendir(ROOT, USER)
    ((_, _, position),) = await listing.read(handle, 0, room=1)
    await kernel.operations.rename(ROOT, b"moved", ROOT, b"kept", flags, USER)
    told = await listing.read(handle, position)
    assert b"kept" in [name for name, _, _ in told]
    position = told[-1][2]
    await kernel.make(b"moved later")
    await kernel.operations.rename(ROOT, b"moved later", ROOT, b"kept", 0, USER)
    assert await listing.read(handle, position) == [], "nor is it twice in one"


async def test_a_listing_shows_what_its_host_has_to_hear_of_first(
    kernel: Kernel, unit: PrimaryUnit, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await kernel.operations.opendir(ROOT, USER)
    showable = unit.showable

    async def hear(key: Any) -> None:
        monkeypatch.setattr(unit, "showable", showable)
        await kernel.make(b"made by the other host")
        await showable(key)

    monkeypatch.setattr(unit, "showable", hear)
    told = await listing.read(handle, 0)
    assert b"made by the other host" in [name for name, _, _ in told]


async def test_names_removed_behind_the_position_are_not_missed_before_it(
    kernel: Kernel, listing: Listing
) -> None:
    for index in range(4):
        await kernel.make(b"%d" % index)
    handle = await kernel.operations.opendir(ROOT, USER)
    told = await listing.read(handle, 0, room=4)
    for name in (b"0", b"1", b"2"):
        await kernel.operations.unlink(ROOT, name, USER)
    assert [name for name, _, _ in await listing.read(handle, told[-1][2])] == [b"3"]


async def test_a_removed_directory_lists_nothing_not_even_itself(
    kernel: Kernel, listing: Listing, autojump_clock: object
) -> None:
    directory = await kernel.mkdir(b"dir")
    handle = await kernel.operations.opendir(directory, USER)
    await kernel.operations.rmdir(ROOT, b"dir", USER)
    assert await listing.read(handle, 0) == []
    await trio.sleep(LATER_S)
    assert await listing.read(handle, 0) == [], "it stays while it is open"
    await kernel.operations.releasedir(handle)
    await trio.sleep(LATER_S)
    assert await refused(kernel.attributes(directory)) == "ESTALE"


async def test_an_open_directory_can_be_synced(kernel: Kernel, volume: Volume) -> None:
    handle = await kernel.operations.opendir(ROOT, USER)
    await kernel.make(b"file")
    assert not volume.journal.is_durable
    await kernel.operations.fsyncdir(handle, False)
    assert volume.journal.is_durable


async def test_everything_is_allowed_where_the_kernel_does_not_check(kernel: Kernel) -> None:
    assert await kernel.operations.access(ROOT, os.R_OK | os.W_OK, USER)


async def test_the_root_is_opened_and_looked_at_while_the_other_host_is_away(
    operations: Operations, unit: PrimaryUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.filesystem.operations.ROOT_PATIENCE_S", 0.01)

    linked = [True, True, False]
    monkeypatch.setattr(PrimaryUnit, "is_linked", property(lambda _: linked.pop(0)))

    async def away(key: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(unit, "showable", away)
    kernel = Kernel(operations)
    with trio.fail_after(5):
        root = await kernel.attributes(ROOT)
        await kernel.operations.releasedir(await kernel.operations.opendir(ROOT, ROOT_USER))
    assert root.st_ino == ROOT
    assert not linked, "what a link was there for was not waited for"


def lose(volume: Volume, inode: int, row: bytes | None) -> None:
    """The row of an inode becomes what a failing disk makes of it."""
    catalog = volume.catalog
    catalog.flush_touched()
    catalog.discard(Table.INODES, inode_key(InodeNumber(inode)))
    if row is not None:
        catalog._txn.put(inode_key(InodeNumber(inode)), row, db=catalog._inodes)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("row", [None, b"short", b"\xff" * 200], ids=["missing", "short", "nonsense"])
async def test_a_name_of_a_damaged_inode_is_listed_and_whoever_looks_is_told(
    kernel: Kernel, volume: Volume, listing: Listing, caplog: pytest.LogCaptureFixture, row: bytes | None
) -> None:
    for name in (b"before", b"damaged", b"behind"):
        await kernel.make(name)
    entry = volume.catalog.entry(ROOT_INODE, b"damaged")
    assert entry is not None
    inode = volume.catalog.inode(entry.inode)
    assert inode is not None
    lose(volume, entry.inode, row)
    assert await listing.names(ROOT) == [b".", b"..", b"before", b"damaged", b"behind"]
    assert await refused(kernel.operations.lookup(ROOT, b"damaged", USER)) == "EIO"
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "is damaged: catalog: " in line
    assert "run `fusemirror fsck" in line
    lose(volume, entry.inode, inode.pack())


@pytest.mark.expects_warnings
async def test_a_directory_in_nothing_is_no_stale_handle(
    kernel: Kernel, volume: Volume, listing: Listing, caplog: pytest.LogCaptureFixture
) -> None:
    directory = volume.catalog.inode(InodeNumber(await kernel.mkdir(b"directory")))
    assert directory is not None
    handle = await kernel.operations.opendir(directory.number, USER)
    directory.parent = InodeNumber(4711)
    assert await refused(listing.read(handle, 0)) == "EIO"
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert f"directory {directory.number} names inode 4711, which is missing" in line
    directory.parent = ROOT_INODE
