"""What the kernel may keep, with the kernel played by a list of the notifications that it gets."""

import errno
import os
import threading
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from fusemirror.change import Table
from fusemirror.filesystem import notifier
from fusemirror.filesystem.handles import FileHandle
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import KERNEL_DELAY_S, KERNEL_STEADY_S, MAPPING_DELAY_S, REST_S
from fusemirror.volume.catalog import new_directory
from fusemirror.volume.entries import inode_key, xattr_key
from fusemirror.volume.inode import Inode

INODE, OTHER = InodeNumber(7), InodeNumber(8)
LIFETIME_S = 5.0
MTIME_NS = 1_000_000
ENDING, LATER_ENDING = (4095, b"z"), (8191, b"y")
ATTRIBUTES, PAGES, STORED = True, False, None
TOLD_LONGER = [(INODE, PAGES), (INODE, STORED), (INODE, PAGES)]


def inode(number: InodeNumber = INODE, mtime_ns: int = MTIME_NS) -> Inode:
    made = new_directory(number, number, MTIME_NS)
    made.mtime_ns = mtime_ns
    return made


class Kernel:
    """Gets the notifications."""

    def __init__(self) -> None:
        self.notified: list[tuple[InodeNumber, bool | None]] = []
        self.unknown: set[InodeNumber] = set()
        self.ending: tuple[int, bytes] | None = None
        self.gone = False
        self._heard = threading.Semaphore(0)
        self.freed = threading.Event()  # until it is set, the notification of an inode being freed waits
        self.freed.set()

    def invalidate(self, inode: InodeNumber, attributes_only: bool) -> None:
        assert self.freed.wait(30), "the test never freed the inode"
        self.notified.append((inode, attributes_only))
        self._heard.release()
        if inode in self.unknown:
            raise OSError(errno.ENOENT, "it has let go of it")
        if self.gone:
            raise OSError(errno.ENODEV, "it has let go of the mount")

    def store(self, inode: InodeNumber, offset: int, content: bytes) -> None:
        assert (offset, content) == self.ending
        assert self.freed.wait(30), "the test never answered the read"
        self.notified.append((inode, STORED))
        self._heard.release()

    async def hears(self, count: int) -> None:
        """Wait for so many notifications more; they come from threads, which no clock waits for."""
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(count):
            assert await trio.to_thread.run_sync(self._heard.acquire, True, 30), "no notification came"


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def cache(kernel: Kernel) -> AsyncIterator[KernelCache]:
    cache = KernelCache(kernel.invalidate, store=kernel.store, ending=lambda _: kernel.ending)
    async with trio.open_nursery() as nursery:
        await nursery.start(cache.run)
        yield cache
        nursery.cancel_scope.cancel()


async def grant(cache: KernelCache, number: InodeNumber = INODE) -> None:
    """The kernel is told twice, and may keep it from then on."""
    assert cache.tell(inode(number), LIFETIME_S) == (0, MTIME_NS)
    await trio.sleep(KERNEL_STEADY_S)
    assert cache.tell(inode(number), LIFETIME_S) == (LIFETIME_S, MTIME_NS)


async def test_only_what_was_granted_is_taken_back(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    cache.tell(inode(), LIFETIME_S)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == []
    await grant(cache)
    cache.data_changed(OTHER, own=False)
    assert kernel.notified == []
    cache.data_changed(INODE, own=False)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [(INODE, ATTRIBUTES)]


async def test_what_was_granted_for_a_time_that_is_over_is_not_taken_back(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """It would take the answer from programs that wait for attributes since the other host is away."""
    await grant(cache)
    await trio.sleep(LIFETIME_S + KERNEL_DELAY_S)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == []


async def test_what_changed_is_granted_again_only_after_the_kernel_has_had_it(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    await grant(cache)
    cache.data_changed(INODE, own=False)
    assert cache.tell(inode(), LIFETIME_S)[0] == 0
    await trio.sleep(KERNEL_STEADY_S / 2)
    assert cache.tell(inode(), LIFETIME_S)[0] == 0
    await trio.sleep(KERNEL_STEADY_S / 2)
    assert cache.tell(inode(), LIFETIME_S)[0] == LIFETIME_S


async def test_nothing_is_granted_for_no_time_or_to_a_kernel_that_forgot(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    await grant(cache)
    assert cache.tell(inode(), 0)[0] == 0
    cache.named(INODE)
    cache.forgotten(INODE, 1)
    assert cache.tell(inode(), LIFETIME_S)[0] == 0


async def test_a_kernel_that_had_not_the_inode_may_keep_what_it_asks_for_at_once(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    cache.named(INODE)
    assert cache.tell(inode(), LIFETIME_S)[0] == 0
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == LIFETIME_S
    cache.data_changed(INODE, own=False)
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == 0


async def test_a_file_that_was_made_and_is_written_next_is_granted_when_it_is_at_rest(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """What was granted would have to be taken back at once, which takes longer than to ask again."""
    writer = FileHandle(INODE, os.O_WRONLY, 0, 0, cached=False)
    cache.named(INODE)
    cache.files.opened(writer)
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == 0
    cache.data_changed(INODE, own=True)
    assert kernel.notified == []
    cache.tell(inode(), LIFETIME_S, asked=True)
    await trio.sleep(KERNEL_STEADY_S)
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == LIFETIME_S
    cache.named(OTHER)
    assert cache.tell(inode(OTHER), LIFETIME_S, asked=True)[0] == LIFETIME_S


async def test_a_kernel_that_was_told_an_inode_twice_has_it_until_it_let_go_of_both(
    cache: KernelCache,
    autojump_clock: trio.testing.MockClock,
) -> None:
    for _ in range(2):
        cache.named(INODE)
    cache.data_changed(INODE, own=False)
    cache.forgotten(INODE, 1)
    cache.named(INODE)
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == 0
    cache.forgotten(INODE, 2)
    cache.named(INODE)
    assert cache.tell(inode(), LIFETIME_S, asked=True)[0] == LIFETIME_S


async def test_a_mount_that_has_gone_is_no_error(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    await grant(cache)
    kernel.gone = True
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [(INODE, ATTRIBUTES)]


async def test_an_inode_that_is_being_freed_is_not_waited_for_longer_than_a_moment(
    cache: KernelCache,
    autojump_clock: trio.testing.MockClock,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel frees it once its last write is answered, by the task that notifies."""
    monkeypatch.setattr(notifier, "NOTIFICATION_TIMEOUT_S", 0.01)
    await grant(cache)
    await grant(cache, OTHER)
    kernel.freed.clear()
    cache.data_changed(INODE, own=True)
    assert kernel.notified == []
    kernel.freed.set()
    cache.data_changed(OTHER, own=True)
    assert (OTHER, ATTRIBUTES) in kernel.notified


@pytest.mark.parametrize(
    "row", [(Table.INODES, inode_key(INODE), b"row"), (Table.XATTRS, xattr_key(INODE, b"user.x"), None)]
)
async def test_rows_of_an_inode_take_back_its_attributes(
    cache: KernelCache,
    autojump_clock: trio.testing.MockClock,
    kernel: Kernel,
    row: tuple[Table, bytes, bytes | None],
) -> None:
    await grant(cache)
    cache.rows_changed([row], own=True)
    assert kernel.notified == [(INODE, ATTRIBUTES)]


async def test_a_new_catalog_takes_back_everything(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    await grant(cache)
    await grant(cache, OTHER)
    cache.catalog_replaced()
    assert sorted(kernel.notified) == [(INODE, ATTRIBUTES), (OTHER, ATTRIBUTES)]


async def test_after_a_change_each_answer_has_its_own_mtime_until_old_pages_must_have_gone(
    cache: KernelCache,
    autojump_clock: trio.testing.MockClock,
) -> None:
    reader = FileHandle(INODE, os.O_RDONLY, 0, cached=True)
    cache.files.opened(reader)
    cache.pages.reads(INODE)
    cache.data_changed(INODE, own=False)
    await trio.sleep(2 * KERNEL_STEADY_S)  # however long nobody asks
    mtimes = set()
    for _ in range(3):
        lifetime_s, mtime_ns = cache.tell(inode(), LIFETIME_S)
        assert lifetime_s == 0
        assert MTIME_NS - 10 < mtime_ns < MTIME_NS
        mtimes.add(mtime_ns)
        await trio.sleep(KERNEL_STEADY_S / 5)
    assert len(mtimes) == 3
    await trio.sleep(KERNEL_STEADY_S)
    assert cache.tell(inode(), LIFETIME_S) == (0, MTIME_NS)
    cache.data_changed(INODE, own=False)
    cache.files.closed(reader)
    assert cache.tell(inode(), LIFETIME_S) == (0, MTIME_NS), "the next open drops them"


async def test_an_open_drops_pages_that_may_be_old(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    assert cache.pages.are_fresh(INODE)
    cache.pages.reads(INODE)
    assert cache.pages.are_fresh(INODE)
    cache.data_changed(INODE, own=False)
    await trio.sleep(2 * KERNEL_STEADY_S)
    for _ in range(2):
        assert not cache.pages.are_fresh(INODE), "the first who opens may not have dropped them yet"
    await trio.sleep(KERNEL_STEADY_S)
    assert cache.pages.are_fresh(INODE)


@pytest.mark.parametrize(("maps", "dropped"), [(True, 0), (False, 1)])
async def test_pages_of_mappings_are_dropped_a_while_after_a_program_of_this_host_wrote(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel, maps: bool, dropped: int
) -> None:
    cache.files.negotiated(maps_direct_io=maps)
    kernel.unknown.add(INODE)
    cache.pages.reads(INODE)
    cache.data_changed(INODE, own=True)
    cache.data_changed(INODE, own=True)
    await trio.testing.wait_all_tasks_blocked()
    assert kernel.notified == []
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(dropped)
    assert kernel.notified == [(INODE, PAGES)] * dropped


async def test_what_the_other_host_wrote_is_in_no_old_page_and_within_the_size_that_the_kernel_knows(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """Before anyone can see the change: sendfile(2) and mappings ask for nothing."""
    kernel.ending = ENDING
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [], "the kernel has nothing of it"
    cache.pages.reads(INODE)
    cache.pages.has_moved_data(INODE)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == TOLD_LONGER, "the byte comes into no old page, and does not stay"
    cache.data_changed(INODE, own=False)
    assert len(kernel.notified) == 3, "it has no pages any more"
    kernel.notified.clear()
    reader = FileHandle(INODE, os.O_RDONLY, 0, cached=False)
    cache.files.opened(reader)
    kernel.ending = LATER_ENDING
    cache.data_changed(INODE, own=False)
    assert kernel.notified == TOLD_LONGER, "but an open file, whose size it goes by"
    cache.files.closed(reader)
    cache.data_changed(INODE, own=False)
    await trio.sleep(2 * MAPPING_DELAY_S)
    assert len(kernel.notified) == 3


async def test_a_last_byte_is_stored_only_where_the_kernel_may_take_the_file_for_shorter(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """In a page that a program reads it stands beside what was there before."""
    kernel.ending = LATER_ENDING
    cache.files.opened(FileHandle(INODE, os.O_RDONLY, 0, cached=False))
    cache.data_changed(INODE, own=False)
    kernel.notified.clear()
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [(INODE, PAGES)], "it is as long as before"
    kernel.ending = ENDING
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [(INODE, PAGES)] * 2, "it is shorter"
    kernel.notified.clear()
    kernel.ending = LATER_ENDING
    cache.data_changed(INODE, own=False)
    assert kernel.notified == TOLD_LONGER
    kernel.notified.clear()
    cache.data_changed(INODE, own=True)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == TOLD_LONGER, "a program here may have made it shorter meanwhile"
    kernel.notified.clear()
    reader = FileHandle(INODE, os.O_RDONLY, 0, cached=False)
    cache.files.closed(reader)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == []
    cache.files.opened(reader)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == TOLD_LONGER, "the other host may have, while nobody here had it open"


async def test_a_file_that_grew_in_a_copy_of_this_host_is_told_as_one_that_was_written(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """The hosts were apart: only its row comes, and what is in it later."""
    row = (Table.INODES, inode_key(INODE), b"row")
    kernel.ending = ENDING
    cache.rows_changed([row], own=False)
    assert kernel.notified == [], "nobody has it open"
    cache.files.opened(FileHandle(INODE, os.O_RDONLY, 0, cached=False))
    cache.rows_changed([row], own=True)
    assert kernel.notified == []
    cache.rows_changed([row], own=False)
    assert kernel.notified == TOLD_LONGER
    cache.rows_changed([row], own=False)
    assert kernel.notified == TOLD_LONGER, "it is as long as before"
    kernel.notified.clear()
    kernel.ending = LATER_ENDING
    cache.catalog_replaced()
    await trio.sleep(2 * MAPPING_DELAY_S)
    await kernel.hears(3)
    assert kernel.notified == TOLD_LONGER


async def test_a_last_byte_that_may_be_old_is_not_stored(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """It would stand beside what was written after it."""
    kernel.ending = ENDING
    cache.files.opened(FileHandle(INODE, os.O_RDONLY, 0, cached=False))
    cache.pages.attach(lambda: True, lambda _: True)
    kernel.freed.clear()
    cache.data_changed(INODE, own=False)
    kernel.freed.set()
    await kernel.hears(1)
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(3)
    assert kernel.notified.count((INODE, STORED)) == 1, "but with what it is then, a moment later"
    assert kernel.notified[-1] == (INODE, PAGES)


async def test_a_read_under_way_is_not_waited_for(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    kernel.ending = ENDING
    kernel.freed.clear()
    cache.pages.reads(INODE)
    for _ in range(100):
        cache.data_changed(INODE, own=False)
    assert kernel.notified == []
    cache.pages.has_moved_data(INODE)
    kernel.freed.set()
    await kernel.hears(1)
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(3)
    assert kernel.notified.count((INODE, STORED)) == 1, "once more, for all that came meanwhile"
    assert kernel.notified.count((INODE, PAGES)) == 3


async def test_open_files_lose_their_pages_when_the_lease_is_over(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """Who opens one later asks, and waits for the other host."""
    for number in (INODE, OTHER):
        cache.pages.reads(number)
        cache.pages.has_moved_data(number)
    cache.files.opened(FileHandle(INODE, os.O_RDONLY, 0, cached=True))
    cache.lease_over()
    await kernel.hears(1)
    await trio.sleep(2 * MAPPING_DELAY_S)
    assert kernel.notified == [(INODE, PAGES)]


@pytest.mark.parametrize(("held_up", "asked"), [(False, True), (True, False)])
async def test_a_slow_machine_is_waited_for(
    cache: KernelCache,
    autojump_clock: trio.testing.MockClock,
    kernel: Kernel,
    held_up: bool,
    asked: bool,
) -> None:
    """The thread only has not had its turn, or no request can be in its way."""
    looks = 0

    def look(_: int) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            kernel.freed.set()
        return held_up

    cache.pages.attach(lambda: asked, look)
    kernel.freed.clear()
    cache.pages.reads(INODE)
    cache.pages.has_moved_data(INODE)
    cache.data_changed(INODE, own=False)
    assert kernel.notified == [(INODE, PAGES)]


async def test_a_kernel_that_does_not_hear_holds_up_nobody(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    """A page is locked by a read that this host has not even got yet, of each of many files."""
    cache.pages.attach(lambda: True, lambda _: True)
    kernel.freed.clear()
    for number in range(20):
        cache.pages.reads(InodeNumber(number))
        cache.pages.has_moved_data(InodeNumber(number))
        cache.data_changed(InodeNumber(number), own=False)
    assert kernel.notified == []
    kernel.freed.set()
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(24)
    assert {inode for inode, _ in kernel.notified} == {InodeNumber(number) for number in range(20)}


async def test_an_inode_that_the_kernel_lets_go_of_at_once_has_no_pages_to_drop(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    await trio.testing.wait_all_tasks_blocked()
    cache.pages.reads(INODE)
    cache.data_changed(INODE, own=True)
    cache.forgotten(INODE, 1)  # before `run` has heard of the change
    await trio.testing.wait_all_tasks_blocked()
    cache.pages.reads(OTHER)
    cache.data_changed(OTHER, own=True)
    await trio.sleep(MAPPING_DELAY_S * 2)
    await kernel.hears(1)
    assert kernel.notified == [(OTHER, PAGES)]


async def test_pages_are_not_dropped_while_an_answer_may_be_on_its_way(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    cache.pages.reads(INODE)
    cache.data_changed(INODE, own=True)
    cache.pages.are_fresh(INODE)
    await trio.sleep(MAPPING_DELAY_S - KERNEL_DELAY_S / 2)
    cache.tell(inode(), LIFETIME_S)
    await trio.sleep(KERNEL_DELAY_S)
    assert kernel.notified == []
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(1)
    assert kernel.notified == [(INODE, PAGES)]


async def test_pages_are_not_dropped_while_the_kernel_waits_for_attributes(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, kernel: Kernel
) -> None:
    cache.pages.reads(INODE)
    cache.data_changed(INODE, own=True)
    cache.asks(INODE)
    await trio.sleep(MAPPING_DELAY_S * 3)
    assert kernel.notified == []
    cache.answered(INODE)
    await trio.sleep(MAPPING_DELAY_S)
    await kernel.hears(1)
    assert kernel.notified == [(INODE, PAGES)]


@pytest.mark.parametrize(
    ("flags", "maps_direct_io", "kept"),
    [
        (os.O_RDONLY, True, True),
        (os.O_RDONLY, False, True),
        (os.O_WRONLY, False, False),
        (os.O_RDWR, True, False),
        (os.O_RDWR, False, True),
        (os.O_RDONLY | os.O_DIRECT, False, False),
        (os.O_RDWR | os.O_DIRECT, False, False),
    ],
)
async def test_content_is_kept_of_files_that_are_only_read_or_could_not_be_mapped_otherwise(
    cache: KernelCache, autojump_clock: trio.testing.MockClock, flags: int, maps_direct_io: bool, kept: bool
) -> None:
    cache.files.negotiated(maps_direct_io=maps_direct_io)
    assert cache.files.keeps_content(INODE, flags) == kept


async def test_content_is_not_kept_while_this_host_has_the_file_open_for_writing(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    writer = FileHandle(INODE, os.O_WRONLY, 0, cached=False)
    for _ in range(2):
        cache.files.opened(writer)
    for _ in range(2):
        assert not cache.files.keeps_content(INODE, os.O_RDONLY)
        cache.files.closed(writer)
    assert cache.files.keeps_content(INODE, os.O_RDONLY)


async def test_content_is_kept_of_a_file_at_rest(
    cache: KernelCache, autojump_clock: trio.testing.MockClock
) -> None:
    cache.data_changed(INODE, own=False)
    for _ in range(10):
        assert not cache.files.keeps_content(INODE, os.O_RDONLY)
        await trio.sleep(REST_S / 10)
    await trio.sleep(REST_S * 2)
    assert cache.files.keeps_content(INODE, os.O_RDONLY)


# --- inodes without names -------------------------------------------------------------------------------


async def test_a_kernel_that_cannot_be_told_to_let_go_is_not_asked(
    kernel: Kernel, cache: KernelCache
) -> None:
    assert list(cache.has_let_go([INODE])) == [INODE]
    assert not kernel.notified


async def test_an_inode_without_names_is_let_go_of_when_the_kernel_no_longer_knows_it(
    kernel: Kernel, cache: KernelCache
) -> None:
    pruned = list[InodeNumber]()
    cache.letting_go.attach(pruned.extend)

    async def look() -> list[InodeNumber]:
        cache.has_let_go([INODE, OTHER])
        with trio.fail_after(10):
            while cache.letting_go._asked:  # noqa: ASYNC110 - a thread tells nobody
                await trio.sleep(0.001)
        return sorted(cache.has_let_go([INODE, OTHER]))

    kernel.unknown.add(OTHER)
    assert await look() == [OTHER]
    assert pruned[:2] == [INODE, OTHER]
    kernel.unknown.add(INODE)
    assert await look() == [INODE, OTHER]
    asked = len(pruned)
    assert await look() == [INODE, OTHER]
    assert len(pruned) == asked, "what it has let go of it is not asked about again"
    kernel.unknown.clear()
    cache.rows_changed([(Table.INODES, inode_key(INODE), inode().pack())], own=False)
    assert await look() == [OTHER], "it may have had a name meanwhile"
