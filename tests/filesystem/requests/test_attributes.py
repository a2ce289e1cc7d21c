"""Attributes of inodes, and those of the filesystem."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from fusemirror.change import Table
from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.operations.acl import ACCESS, GROUP, GROUP_OBJ, MASK, OTHER, USER_OBJ, AclEntry, encode
from fusemirror.volume.entries import xattr_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from tests.filesystem.conftest import ROOT_USER, USER, Caller, refused
from tests.filesystem.requests.conftest import ROOT, Kernel, change


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


async def test_an_access_list_that_is_not_there_is_removed_as_well(kernel: Kernel) -> None:
    inode = await kernel.make(b"file")
    await kernel.operations.removexattr(inode, ACCESS, ROOT_USER)


def access_list(*, group: int) -> bytes:
    """u::rwx g::rwx g:1234:rwx m::rwx o::r-x, of which the kernel makes no plain mode."""
    nobody = 0xFFFFFFFF
    entries = [(USER_OBJ, 7, nobody), (GROUP_OBJ, 7, nobody), (GROUP, 7, group), (MASK, 7, nobody)]
    return encode([AclEntry(*entry) for entry in (*entries, (OTHER, 5, nobody))])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process groups")
async def test_who_sets_an_access_list_and_is_killed_while_it_waits_has_the_groups_that_it_had(
    kernel: Kernel, unit: ControlUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has gone from /proc by then, which was taken for a bug, and ended the mount."""
    directory = await kernel.mkdir(b"shared")
    await change(kernel, directory, mode=stat.S_IFDIR | stat.S_ISGID | 0o775, gid=2000)
    program = subprocess.Popen(["sleep", "60"], extra_groups=[2000], cwd="/")  # noqa: ASYNC220 - at once
    attributes = unit.attributes

    async def long_wait(inode: InodeNumber) -> Inode:
        program.kill()
        program.wait()
        return await attributes(inode)

    monkeypatch.setattr(unit, "attributes", long_wait)
    caller = Caller(1000, 1000, pid=program.pid)
    await kernel.operations.setxattr(directory, ACCESS, access_list(group=1234), caller)
    assert await kernel.operations.getxattr(directory, ACCESS, caller) == access_list(group=1234)
    assert (await kernel.attributes(directory)).st_mode & stat.S_ISGID


async def test_a_caller_of_whom_nothing_is_known_is_outside_the_group(kernel: Kernel) -> None:
    """As one that is in another PID namespace than the mount: the kernel tells it as process 0."""
    directory = await kernel.mkdir(b"shared")
    await change(kernel, directory, mode=stat.S_IFDIR | stat.S_ISGID | 0o775, gid=2000)
    await kernel.operations.setxattr(directory, ACCESS, access_list(group=1234), Caller(1000, 1000, pid=0))
    assert (await kernel.attributes(directory)).st_mode == stat.S_IFDIR | 0o775


async def test_a_disk_that_does_not_say_how_much_room_it_has_is_no_bug(
    kernel: Kernel, volume: Volume
) -> None:
    def fails(_: Path) -> os.statvfs_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    volume.space._statvfs = fails
    assert await refused(kernel.operations.statfs(USER)) == "EIO"
    assert volume.health.failure is not None, "only a broken disk says so"


async def test_the_space_is_that_of_the_disk_under_the_volume(kernel: Kernel, volume: Volume) -> None:
    answer = await kernel.operations.statfs(USER)
    of_disk = os.statvfs(volume.directory)
    assert (answer.f_blocks, answer.f_frsize) == (of_disk.f_blocks, of_disk.f_frsize)
    assert answer.f_namemax == NAME_BYTES_MAX
    assert answer.f_bsize == 4096


async def test_everything_is_allowed_where_the_kernel_does_not_check(kernel: Kernel) -> None:
    assert await kernel.operations.access(ROOT, os.R_OK | os.W_OK, USER)


async def test_the_root_is_opened_and_looked_at_while_the_other_host_is_away(
    operations: Operations, unit: ControlUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.filesystem.requests.attributes.ROOT_PATIENCE_S", 0.01)

    linked = [True, True, False, False, True, False]
    monkeypatch.setattr(ControlUnit, "is_linked", property(lambda _: linked.pop(0)))

    looks = 0

    async def away(key: object) -> None:
        nonlocal looks
        looks += 1
        await trio.sleep_forever()

    monkeypatch.setattr(unit, "showable", away)
    kernel = Kernel(operations)
    with trio.fail_after(5):
        root = await kernel.attributes(ROOT)
        await kernel.operations.releasedir(await kernel.operations.opendir(ROOT, ROOT_USER))
        assert (await kernel.attributes(ROOT)).st_ino == root.st_ino == ROOT
        assert looks == 3, "the first to look has waited for all others"
        await kernel.attributes(ROOT)
    assert looks == 4
    assert not linked, "what a link was there for was not waited for"
