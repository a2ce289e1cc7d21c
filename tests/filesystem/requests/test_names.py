"""Names, and what they are made, moved and removed by."""

import os
import stat

import pyfuse3

from fusemirror.change import AnyChange
from fusemirror.control.unit import ControlUnit
from fusemirror.identifiers import ChangeNumber, NameKey, RequestId
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.operations import Rename
from fusemirror.operations.draft import Draft
from tests.filesystem.conftest import ROOT_USER, USER, refused
from tests.filesystem.requests.conftest import ROOT, Kernel


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
    kernel: Kernel, unit: ControlUnit, dropped: list[NameKey]
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


def _of_the_other_host(unit: ControlUnit, operation: Rename) -> AnyChange:
    volume = unit.volume
    number, request = ChangeNumber(volume.number + 1), RequestId(b"the other host's")
    change = operation.decide(Draft(volume.catalog, number, volume.clock.next_ns(), request)).change
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
