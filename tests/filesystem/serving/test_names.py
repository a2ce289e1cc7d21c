"""Requests on names, as bytes."""

import os
import stat
from typing import Any

import pytest

from fusemirror.errors import ChangeInDoubt, DiskFailed, VolumeDamaged, VolumeError
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.kernel import codec
from fusemirror.kernel.codec import Opcode
from tests.filesystem.serving.conftest import ROOT, Kernel


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


async def test_a_kernel_drops_the_names_that_a_killed_program_changed(
    kernel: Kernel, operations: Operations, dropped: list[NameKey]
) -> None:
    names = operations.names._cache.directories
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


@pytest.mark.parametrize("error", [DiskFailed, VolumeDamaged])
async def test_a_kernel_drops_a_name_that_the_catalog_does_not_tell(
    kernel: Kernel,
    operations: Operations,
    dropped: list[NameKey],
    monkeypatch: pytest.MonkeyPatch,
    error: type[VolumeError],
) -> None:
    """No request is answered with that error any more: it left the session, and the mount ended."""

    def fails(*_: object) -> None:
        raise error("volume", "gone")

    removed = b"removed\0"
    await kernel.make_directory(removed[:-1])
    await kernel.ask(Opcode.RMDIR, ROOT, removed)
    monkeypatch.setattr(operations.names._unit.volume.catalog, "entry", fails)
    await kernel.lose_reply()
    kernel.server.in_doubt(kernel.header, removed)
    operations.names._cache.directories._droppers.shutdown()
    assert dropped == [(ROOT, b"removed")] * 2
    monkeypatch.undo()


async def test_a_kernel_drops_the_names_whose_change_is_in_doubt(
    kernel: Kernel, operations: Operations, dropped: list[NameKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep a name that is gone, and a listing would not have it."""
    names = operations.names._cache.directories
    moved = await kernel.make_directory(b"moved")
    await kernel.make_directory(b"removed")
    unit = operations.names._unit
    perform = unit.perform

    async def perform_in_doubt(operation: Any) -> None:
        await perform(operation)
        raise ChangeInDoubt("it was lost")

    monkeypatch.setattr(unit, "perform", perform_in_doubt)
    rename = codec.RENAME2_IN.pack(ROOT, 0, 0) + b"moved\0new\0"
    for opcode, body in (
        (Opcode.RENAME2, rename),
        (Opcode.RMDIR, b"removed\0"),
        (Opcode.MKDIR, codec.MKDIR_IN.pack(0o755, 0) + b"made\0"),
    ):
        assert await kernel.refused(opcode, ROOT, body) == "EIO"
        kernel.server.in_doubt(kernel.header, body)
    assert codec.ENTRY_OUT.read(await kernel.ask(Opcode.LOOKUP, ROOT, b"new\0")).nodeid == moved
    names._droppers.shutdown()
    assert {(ROOT, b"moved"), (ROOT, b"new"), (ROOT, b"removed"), (ROOT, b"made")} == set(dropped)
