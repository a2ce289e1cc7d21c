"""A full disk: which operations it refuses, at a primary alone; all others go through."""

import errno

import msgspec
import pytest

from fusemirror.control.unit import ControlUnit
from fusemirror.errors import DiskFailed, DiskStopped, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import (
    Allocate,
    AnyOperation,
    Copy,
    Create,
    HardLink,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.settings import Acknowledge
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import logged
from tests.filesystem.conftest import unit
from tests.volume.conftest import directory, volume
from tests.volume.test_space import Disk

__all__ = ["directory", "network", "pair", "unit", "volume"]

FILE = InodeNumber(2)
DONE: list[AnyOperation] = [
    SetAttributes(FILE, size=1),
    SetAttributes(FILE, size=1 << 40),
    Allocate(FILE, 0, 5000, 3),
    SetAttributes(FILE, mode=0o600),
    Rename(ROOT_INODE, b"file", ROOT_INODE, b"other"),
    RemoveXattr(FILE, b"user.a"),
    RemoveDirectory(ROOT_INODE, b"directory"),
    Unlink(ROOT_INODE, b"file"),
]
REFUSED: list[tuple[AnyOperation, bytes]] = [
    (Create(ROOT_INODE, b"new", 0o100644, 0, 0), b""),
    (HardLink(FILE, ROOT_INODE, b"new"), b""),
    (SetXattr(FILE, b"user.b", b"value"), b""),
    (Write(FILE, 0, append=True), b"more"),
    (Write(FILE, 65536), b"more"),
    (Allocate(FILE, 65536, 65537, 0), b""),
    (Allocate(FILE, 65536, 65537, 17), b""),
    (Copy(FILE, 65536, 65537, FILE, 0), b""),
]


@pytest.fixture
async def full(unit: ControlUnit, volume: Volume) -> ControlUnit:
    """A primary with a file, a directory and an attribute, whose disk is full by now."""
    await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    await unit.perform(Create(ROOT_INODE, b"directory", 0o040755, 0, 0))
    await unit.perform(SetXattr(FILE, b"user.a", b"value"))
    await unit.perform(Write(FILE, 0), b"content")
    disk = Disk(1 << 30)
    disk.free_bytes = 0
    volume.space._statvfs = disk.statvfs
    volume.space.measure()
    return unit


@pytest.mark.parametrize("operation", DONE, ids=repr)
async def test_what_frees_or_needs_no_room_is_done(full: ControlUnit, operation: AnyOperation) -> None:
    assert operation.space_needed(0) == 0
    before = full.volume.number
    await full.perform(operation)
    assert full.volume.number > before


@pytest.mark.parametrize(("operation", "data"), REFUSED, ids=repr)
async def test_what_needs_room_is_refused_and_changes_nothing(
    full: ControlUnit, operation: AnyOperation, data: bytes
) -> None:
    before = full.volume.number
    with pytest.raises(OperationFailed) as raised:
        await full.perform(operation, data)
    assert raised.value.errno == errno.ENOSPC
    assert full.volume.number == before


async def test_bytes_that_are_there_are_overwritten(full: ControlUnit) -> None:
    await full.perform(Write(FILE, 0), b"CONTENT")
    assert await full.read(FILE, 0, 10) == b"CONTENT"


async def test_room_that_was_reserved_is_written_to(unit: ControlUnit, full: ControlUnit) -> None:
    unit.volume.images.allocate(FILE, 0, 1 << 20, 0, 1)  # as before the disk was full
    inode = unit.volume.catalog.inode(FILE)
    assert inode is not None
    inode.size = 1 << 20
    if not unit.volume.images.content.is_allocated(FILE, 0, 1 << 20):
        pytest.skip("this disk does not tell where it has reserved room")
    await full.perform(Write(FILE, 65536), b"more")
    assert await full.read(FILE, 65536, 4) == b"more"


async def test_after_an_error_of_the_disk_everything_gets_a_check_report(
    unit: ControlUnit, volume: Volume
) -> None:
    await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    volume.health.note(OSError(errno.EIO, "broken"))
    for attempt in (
        unit.perform(Write(FILE, 0), b"x"),
        unit.read(FILE, 0, 1),
        unit.lookup(ROOT_INODE, b"file"),
        unit.flush(FILE),
        unit.listing(ROOT_INODE, 0, 10),
    ):
        with pytest.raises(DiskStopped, match="broken"):
            await attempt
    assert unit.unit.status()["disk"]["failure"]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("acknowledge", list(Acknowledge))
async def test_after_an_error_of_its_disk_the_backup_looks_nothing_up_and_gives_check_reports(
    pair: Pair, acknowledge: Acknowledge
) -> None:
    created = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert created is not None
    unit = pair.backup.roles
    pair.backup.succession.configure(msgspec.structs.replace(pair.backup.settings, acknowledge=acknowledge))
    unit.volume.health.note(OSError(errno.EIO, "broken"))
    unit.volume.catalog.rollback()  # nothing is in memory
    unit.volume.catalog._store.txn.abort()  # as an error of the disk leaves it
    for attempt in (
        unit.perform(Write(created.number, 0), b"x"),
        unit.perform(Write(created.number, 0, append=True), b"x"),
        unit.perform(Create(ROOT_INODE, b"other", 0o100644, 0, 0)),
        unit.read(created.number, 0, 1),
        unit.lookup(ROOT_INODE, b"file"),
        unit.flush(created.number),
    ):
        with pytest.raises(DiskStopped, match="broken"):
            await attempt
    unit.volume.catalog.rollback()


@pytest.mark.expects_warnings
async def test_what_a_primary_whose_disk_fails_cannot_do_stays_with_the_backup_that_acknowledged_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    created = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert created is not None
    failing = pair.primary.roles.volume
    backup = pair.backup.roles

    def fail(*_: object, **__: object) -> None:
        error = OSError(errno.EIO, "broken")
        failing.health.note(error)
        raise error

    asynchronous = msgspec.structs.replace(pair.backup.settings, acknowledge=Acknowledge.ASYNC)
    pair.backup.succession.configure(asynchronous)
    monkeypatch.setattr(failing, "apply", fail)
    await backup.perform(Write(created.number, 0), b"acknowledged")
    await backup.unit.host.links.ended.wait()
    assert logged(caplog, "the disk failed") == ["ERROR"]  # only a person mends it
    await pair.backup.succession.takeover(force=True)
    assert await backup.read(created.number, 0, 100) == b"acknowledged"


@pytest.mark.expects_warnings
async def test_a_primary_hears_that_the_disk_of_its_backup_failed_under_what_it_sent(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    created = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert created is not None
    failing = pair.backup.roles.volume

    def fail(*_: object, **__: object) -> None:
        error = OSError(errno.EIO, "broken")
        failing.health.note(error)
        raise DiskFailed(failing.directory, error)

    monkeypatch.setattr(failing, "apply", fail)
    await pair.primary.roles.perform(Write(created.number, 0), b"alone")
    assert "the disk failed" in str(pair.status(pair.primary)["reason"])
