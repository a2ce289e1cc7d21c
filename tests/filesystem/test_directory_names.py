"""The name by which a kernel has a directory is dropped when the directory has another, and not before."""

import errno
import logging
import threading

import pytest
import trio
import trio.testing

from fusemirror.change import Row, Table
from fusemirror.errors import VolumeDamaged
from fusemirror.filesystem.directory_names import DirectoryNames
from fusemirror.identifiers import ROOT_INODE, InodeNumber, NameKey
from fusemirror.limits import MOVED_LOOKS_MAX
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry
from fusemirror.volume.inode import Inode

DIRECTORY, PARENT, OTHER = InodeNumber(7), InodeNumber(8), InodeNumber(9)
OLD, NEW, NEWEST = (PARENT, b"old"), (OTHER, b"new"), (PARENT, b"newest")
DIRECTORY_TYPE, FILE_TYPE = 4, 8
PATIENCE_S = 30


class Kernel:
    """Drops names, each once its directory is free."""

    def __init__(self) -> None:
        self.dropped: list[NameKey] = []
        self.removed: list[InodeNumber] = []
        self.free = threading.Event()
        self.free.set()
        self.error = 0

    def drop(self, parent: InodeNumber, name: bytes, removed: InodeNumber | None = None) -> None:
        assert self.free.wait(PATIENCE_S), "the directory was never free"
        self.dropped.append((parent, name))
        if removed is not None:
            self.removed.append(removed)
        if self.error:
            raise OSError(self.error, "said the kernel")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def names(kernel: Kernel) -> DirectoryNames:
    return DirectoryNames(kernel.drop)


def put(name: NameKey, file_type: int = DIRECTORY_TYPE) -> Row:
    return Table.ENTRIES, entry_key(*name), pack_entry(Entry(DIRECTORY, file_type, 2))


async def test_what_the_kernel_has_by_that_name_is_left_alone(names: DirectoryNames, kernel: Kernel) -> None:
    assert not await names.found(DIRECTORY, OLD)
    names.told(DIRECTORY, OLD)
    names.rows_changed([put(OLD)])
    assert not await names.found(DIRECTORY, OLD)
    assert not kernel.dropped


async def test_a_move_by_the_other_host_drops_the_name_that_the_kernel_has(
    names: DirectoryNames, kernel: Kernel
) -> None:
    """Though it moves twice, and is found only then."""
    names.told(DIRECTORY, OLD)
    names.rows_changed([put(NEW), (Table.ENTRIES, entry_key(*OLD), None)])
    names.rows_changed([put(NEWEST), (Table.ENTRIES, entry_key(*NEW), None)])
    await names.found(DIRECTORY, NEWEST)
    assert kernel.dropped == [OLD]
    assert not await names.found(DIRECTORY, NEWEST)


def row(nlink: int, number: InodeNumber = DIRECTORY) -> Row:
    inode = Inode(number, 0o040755, nlink, 0, 0, 0, 4096, 1, 1, 1, PARENT)
    return Table.INODES, inode_key(number), inode.pack()


async def test_one_that_the_other_host_removed_is_told_of_as_removed_by_the_name_that_the_kernel_has(
    names: DirectoryNames, kernel: Kernel
) -> None:
    names.told(DIRECTORY, OLD)
    names.rows_changed([row(2), row(0, OTHER)])
    names._droppers.submit(lambda: None).result()
    assert not kernel.dropped
    kernel.error = errno.ENOTEMPTY
    names.rows_changed([row(0), (Table.ENTRIES, entry_key(*OLD), None)])
    names.rows_changed([row(0)])
    names.removed(DIRECTORY)
    names._droppers.shutdown()
    assert (kernel.dropped, kernel.removed) == ([OLD], [DIRECTORY])


async def test_a_look_that_finds_it_waits_for_that(names: DirectoryNames, kernel: Kernel) -> None:
    names.told(DIRECTORY, OLD)
    kernel.free.clear()
    names.rows_changed([put(NEW)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.found, DIRECTORY, NEW)
        await trio.testing.wait_all_tasks_blocked()
        assert not kernel.dropped
        kernel.free.set()
    assert kernel.dropped == [OLD]


async def test_but_not_for_ever(names: DirectoryNames, kernel: Kernel, autojump_clock: object) -> None:
    """It may hold the lock itself."""
    names.told(DIRECTORY, OLD)
    kernel.free.clear()
    assert await names.found(DIRECTORY, NEW)
    assert not kernel.dropped
    kernel.free.set()


async def test_what_was_missed_is_dropped_when_it_is_found(names: DirectoryNames, kernel: Kernel) -> None:
    """As where the whole catalog was replaced, or a listing told the kernel a name that it could not take."""
    names.told(DIRECTORY, OLD)
    names.told(DIRECTORY, NEW)
    assert await names.found(DIRECTORY, NEW)
    assert kernel.dropped == [OLD]
    assert await names.found(DIRECTORY, NEWEST)
    assert kernel.dropped == [OLD, NEW]


async def test_moves_of_this_host_and_of_files_drop_nothing(names: DirectoryNames, kernel: Kernel) -> None:
    names.told(DIRECTORY, OLD)
    names.renamed(DIRECTORY, NEW)
    assert not await names.found(DIRECTORY, NEW)
    names.rows_changed([put(NEWEST, FILE_TYPE)])
    assert not kernel.dropped


async def test_a_directory_that_the_kernel_forgot_has_no_name_there(
    names: DirectoryNames, kernel: Kernel
) -> None:
    names.told(DIRECTORY, OLD)
    names.forgotten(DIRECTORY)
    assert not await names.found(DIRECTORY, NEW)


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("error", "logged"), [(errno.ENOENT, False), (errno.ENODEV, False), (errno.EIO, True)]
)
async def test_a_kernel_that_has_no_such_name_is_no_mistake(
    names: DirectoryNames, kernel: Kernel, caplog: pytest.LogCaptureFixture, error: int, logged: bool
) -> None:
    kernel.error = error
    names.told(DIRECTORY, OLD)
    with caplog.at_level(logging.ERROR):
        assert await names.found(DIRECTORY, NEW)
    assert bool(caplog.records) is logged


class Looks:
    """At paths, as the kernel would do it; each time ESTALE until a rename of this host has ended."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.in_the_way = 0
        self.refused: set[bytes] = set()
        self.looked = threading.Event()

    def __call__(self, path: bytes) -> int:
        self.paths.append(path)
        self.looked.set()
        if path in self.refused:
            raise OSError(errno.ELOOP, "below itself")
        if self.in_the_way:
            self.in_the_way -= 1
            raise OSError(errno.ESTALE, "a rename has the locks")
        return OTHER if path.endswith(b"other") else DIRECTORY


@pytest.fixture
def looks(names: DirectoryNames) -> Looks:
    """The kernel knows the directory, and those above it."""
    names.look = looks = Looks()
    names.told(PARENT, (ROOT_INODE, b"parent"))
    names.told(OTHER, (PARENT, b"other"))
    names.told(DIRECTORY, OLD)
    return looks


async def test_a_directory_in_use_is_looked_at_in_its_new_place(names: DirectoryNames, looks: Looks) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.run)
        names.rows_changed([put(NEW)])
        assert await trio.to_thread.run_sync(looks.looked.wait, PATIENCE_S)
        nursery.cancel_scope.cancel()
    assert looks.paths == [b"parent/other/new"]


async def test_once(names: DirectoryNames, looks: Looks) -> None:
    await names.found(DIRECTORY, NEW)
    for _ in range(2):
        await names.look_at_left()
        names.told(DIRECTORY, NEW)
    assert looks.paths == [b"parent/other/new"]


async def test_one_above_another_that_was_below_it(names: DirectoryNames, looks: Looks) -> None:
    """The kernel refuses the one (ELOOP) until it has the other, which is looked at after it."""
    await names.found(OTHER, (DIRECTORY, b"other"))
    await names.found(DIRECTORY, NEWEST)
    looks.refused = {b"parent/newest/other"}
    await names.look_at_left()
    assert looks.paths == [b"parent/newest/other", b"parent/newest", b"parent/newest/other"]
    looks.refused.clear()
    await names.look_at_left()
    assert len(looks.paths) == 4


async def test_where_it_is_by_then(names: DirectoryNames, looks: Looks) -> None:
    await names.found(DIRECTORY, NEW)
    names.rows_changed([put(NEWEST)])
    await names.look_at_left()
    assert looks.paths == [b"parent/newest"]


async def test_again_while_renames_of_this_host_are_in_the_way(
    names: DirectoryNames, looks: Looks, autojump_clock: object
) -> None:
    looks.in_the_way = MOVED_LOOKS_MAX + 2
    await names.found(DIRECTORY, NEW)
    await names.look_at_left()
    assert len(looks.paths) == MOVED_LOOKS_MAX
    await names.look_at_left()
    assert len(looks.paths) == MOVED_LOOKS_MAX + 3
    await names.look_at_left()
    assert len(looks.paths) == MOVED_LOOKS_MAX + 3, "that was enough"


async def test_what_nobody_uses_and_what_this_host_has_moved_on_needs_no_look(
    names: DirectoryNames, looks: Looks
) -> None:
    await names.found(DIRECTORY, NEW)
    names.forgotten(DIRECTORY)
    await names.look_at_left()
    names.told(DIRECTORY, NEW)
    await names.found(DIRECTORY, NEWEST)
    names.told(DIRECTORY, NEWEST)
    names.renamed(DIRECTORY, OLD)
    await names.look_at_left()
    assert not looks.paths


@pytest.mark.parametrize("damaged", [False, True])
async def test_what_is_below_a_directory_that_the_kernel_has_not_met_is_looked_at_all_the_same(
    names: DirectoryNames, looks: Looks, damaged: bool
) -> None:
    asked: list[InodeNumber] = []

    async def name_of(directory: InodeNumber) -> NameKey | None:
        asked.append(directory)
        if damaged:
            raise VolumeDamaged("volume", "a row is no row")
        return PARENT, b"unmet"

    names.name_of = name_of
    names.forgotten(OTHER)
    await names.found(DIRECTORY, NEW)
    await names.look_at_left()
    assert asked[0] == OTHER
    assert looks.paths == ([] if damaged else [b"parent/unmet/new"])


async def test_in_a_circle_there_is_nothing_to_look_at(names: DirectoryNames, looks: Looks) -> None:
    """While moves arrive that go one by one."""

    async def name_of(directory: InodeNumber) -> NameKey | None:
        return DIRECTORY, b"above itself"

    names.name_of = name_of
    names.forgotten(OTHER)
    await names.found(DIRECTORY, NEW)
    await names.look_at_left()
    assert not looks.paths
