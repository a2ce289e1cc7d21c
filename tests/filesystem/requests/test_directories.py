"""Open directories list each name once, and come to an end."""

import errno
import stat
from typing import Any

import pyfuse3
import pytest
import trio

from fusemirror.change import Table
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.entries import inode_key
from fusemirror.volume.volume import Volume
from tests.filesystem.conftest import USER, refused
from tests.filesystem.requests.conftest import LATER_S, ROOT, Kernel

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


async def test_a_listing_that_fails_half_way_tells_what_it_has_and_then_the_error(
    kernel: Kernel, unit: ControlUnit, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(300):
        await kernel.operations.mknod(ROOT, b"%d" % index, stat.S_IFIFO | 0o600, 0, USER)
    handle = await kernel.operations.opendir(ROOT, USER)
    whole, calls = unit.listing, 0

    async def fails_the_second_time(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OperationFailed(errno.EIO)
        return await whole(*arguments)

    monkeypatch.setattr(unit, "listing", fails_the_second_time)
    told = await listing.read(handle, 0)
    assert len(told) > 2, "what the kernel is said to know, it is told"
    assert await refused(listing.read(handle, told[-1][2])) == "EIO"


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
    kernel: Kernel, unit: ControlUnit, listing: Listing, monkeypatch: pytest.MonkeyPatch
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


def lose(volume: Volume, inode: int, row: bytes | None) -> None:
    """The row of an inode becomes what a failing disk makes of it."""
    catalog = volume.catalog
    catalog.cache.flush()
    catalog.discard(Table.INODES, inode_key(InodeNumber(inode)))
    if row is not None:
        catalog._store.txn.put(inode_key(InodeNumber(inode)), row, db=catalog._store.inodes)


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
