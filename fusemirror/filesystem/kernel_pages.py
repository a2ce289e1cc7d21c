"""Pages: what this host's kernel may keep of the content of files, and how old pages of mappings are dropped.

Mappings, sendfile(2), splice(2) and copy_file_range(2) go by the kernel's pages, and by the size that it
knows, however the file was opened, and ask nobody. So when the other host changed a file that is open here,
or of which the kernel may have pages, the kernel drops the pages and, where the file grew, is told its last
byte, before anyone can see the change. It takes that byte into a page. So the pages go first, or a program
could read there what nobody wrote: the old content with the new last byte. Both wait for locks of pages,
which requests hold that this event loop must answer. So a thread does it. The loop waits for it, but for a
few milliseconds only where the thread waits for such a lock and the kernel asks something, which may be that
request, and not at all where it knows of one. What it did not wait for is done when that request ends, and
once more a moment later; of a file that grew the size then.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyfuse3
import trio

from fusemirror.filesystem.notifier import Notifier
from fusemirror.filesystem.open_files import count_down
from fusemirror.identifiers import InodeNumber
from fusemirror.kernel.callers import is_held_up
from fusemirror.limits import KERNEL_STEADY_S, MAPPING_DELAY_S, PAGES_TIMEOUT_S, PAGES_TIMEOUTS_MAX

_DROPPERS = 4  # threads, of their own: they wait for reads
_FRESH, _OLD = -math.inf, math.inf

StorePages = Callable[[InodeNumber, int, bytes], None]
"""(inode, offset, content): pyfuse3.notify_store. The kernel then knows that the file is at least so long."""
Ending = Callable[[InodeNumber], tuple[int, bytes] | None]
"""Where the last byte of a file is, and that byte; None for an empty file, or one that is not there."""


@dataclass
class _Drop:
    """Of an inode the pages are dropped, and the kernel is told how long the file is."""

    inode: InodeNumber
    untold: tuple[int, bytes] | None
    """Where its last byte is, and that byte, if the kernel may take the file for shorter."""
    thread: int = 0
    """The thread that does it, once it has begun."""
    is_late: bool = False
    """It may have changed since, and the last byte may be another: that is told another time."""


class Pages:
    """See the module. `run` drops pages of mappings for ever."""

    def __init__(
        self,
        notifier: Notifier,
        must_wait: Callable[[InodeNumber], bool],
        store: StorePages = pyfuse3.notify_store,
        ending: Ending = lambda _: None,
    ) -> None:
        """`must_wait`: the kernel needs an answer that it would throw away if its pages were dropped now."""
        self.dropped_total = 0
        self.held: dict[InodeNumber, float] = {}
        """Inodes of whose content the kernel may hold pages; until when they may be old."""
        self._notifier = notifier
        self._must_wait = must_wait
        self._store = store
        self._ending = ending
        self._kernel_asks: Callable[[], bool] = lambda: False
        self._is_held_up: Callable[[int], bool] = is_held_up
        self._suspect: dict[InodeNumber, float] = {}  # when their pages are to be dropped
        self._wanted = trio.Event()
        self._droppers = ThreadPoolExecutor(_DROPPERS, "pages")
        self._dropping: dict[InodeNumber, Future[None]] = {}  # under way, or just ended
        self._drops: dict[InodeNumber, _Drop] = {}  # those that tell of an end, and are not late
        self._ends: dict[InodeNumber, int] = {}  # the last byte that the kernel knows of, at least
        self._moving: Counter[InodeNumber] = Counter()  # reads and writes under way: they may hold pages

    def attach(self, kernel_asks: Callable[[], bool], is_held_up: Callable[[int], bool] = is_held_up) -> None:
        """`kernel_asks`: whether a request of the kernel waits to be read."""
        self._kernel_asks, self._is_held_up = kernel_asks, is_held_up

    # --- what the kernel has --------------------------------------------------------------------------------

    def are_fresh(self, inode: InodeNumber) -> bool:
        """Whether what the kernel has of the content is as it is now. Else an open must drop it."""
        return inode not in self.held or not self.is_old(inode, trio.current_time())

    def is_old(self, inode: InodeNumber, now: float) -> bool:
        """Whether pages may be old; if so, the kernel hears of it now and will have dropped them soon."""
        until = self.held[inode]
        if until == _OLD:
            self.held[inode] = until = now + KERNEL_STEADY_S
        return now < until

    def reads(self, inode: InodeNumber) -> None:
        """The kernel asks for content, which it may keep, until `has_moved_data`."""
        self.held.setdefault(inode, _FRESH)
        self._moving[inode] += 1

    def writes(self, inode: InodeNumber) -> None:
        """The kernel brings content, which may be that of pages, until `has_moved_data`."""
        self._moving[inode] = self._moving.get(inode, 0) + 1

    def has_moved_data(self, inode: InodeNumber) -> None:
        count_down(self._moving, inode)

    def changed(self, inode: InodeNumber, *, must_drop: bool) -> None:
        """Pages that it holds are old from now on; `must_drop`: the kernel does not know that by itself."""
        assert inode in self.held, "else an open would drop pages for nothing, for ever"
        self.held[inode] = _OLD
        if must_drop and inode not in self._suspect:
            self.suspect(inode)

    def forget_end(self, inode: InodeNumber) -> None:
        """`overtake` it; it may be shorter besides, and the kernel hears of that by itself."""
        if (drop := self._drops.pop(inode, None)) is not None:
            drop.is_late = True
        self._ends.pop(inode, None)

    def forgotten(self, inode: InodeNumber) -> None:
        """The kernel has let go of the inode."""
        for each in (self.held, self._suspect, self._drops, self._ends):
            each.pop(inode, None)

    def replaced(self, opened: Iterable[InodeNumber]) -> None:
        """All may be other files now: of open ones the size is to be told, after `changed` of each."""
        for inode in opened:
            if inode not in self._suspect:
                self.suspect(inode)

    def forget_ends(self) -> None:
        self._ends.clear()

    def copied(self, inode: InodeNumber, *, is_open: bool) -> None:
        """The row of an inode has come from the other host: what it is now, and its size."""
        ending = self._ending(inode) if is_open else None
        if ending is None:
            self._ends.pop(inode, None)
        elif ending[0] != self._ends.get(inode):
            self.refresh(inode)

    # --- dropping them --------------------------------------------------------------------------------------

    def refresh(self, inode: InodeNumber) -> None:
        """On return the kernel has no old page of the inode, and knows how long it is now.

        Where a request that may hold a page is under way, that is so a moment later.
        """
        if self._is_refreshed(inode):
            self.held.pop(inode, None)
            self._suspect.pop(inode, None)
        elif inode not in self._suspect:
            self.suspect(inode)

    def suspect(self, inode: InodeNumber) -> None:
        """Of an open file, which may have no pages, the size is still to be told."""
        self._suspect[inode] = trio.current_time() + MAPPING_DELAY_S
        self._wanted.set()

    def _is_refreshed(self, inode: InodeNumber) -> bool:
        self._dropping = {each: ends for each, ends in self._dropping.items() if not ends.done()}
        if inode in self._dropping or len(self._dropping) >= _DROPPERS:
            self._ends.pop(inode, None)
            return False
        drop = self._drop(inode)
        dropped = self._dropping[inode] = self._droppers.submit(self._drop_pages, drop)
        if inode in self._moving or not self._has_ended(drop, dropped):
            drop.is_late = True
            return False
        self._has_dropped(drop)
        return True

    def _has_ended(self, drop: _Drop, dropped: "Future[None]") -> bool:
        """Wait for it, unless it waits for a lock, and what the kernel asks could be the read that has it."""
        for _ in range(PAGES_TIMEOUTS_MAX):
            with suppress(TimeoutError):
                dropped.result(timeout=PAGES_TIMEOUT_S)
                return True
            if drop.thread and self._is_held_up(drop.thread) and self._kernel_asks():
                return False
        return False

    async def dropped(self, inode: InodeNumber) -> None:
        """Return when the kernel has nothing old of an inode's content and size: what `refresh` did not wait
        for is waited for here. That may be as long as a read takes that is under way."""
        dropping = self._dropping.get(inode)
        if inode in self._suspect or (dropping is not None and not dropping.done()):
            drop = self._drop(inode)
            await trio.to_thread.run_sync(self._drop_pages, drop, abandon_on_cancel=True)
            self._has_dropped(drop)

    async def run(self) -> None:
        """Drop old pages for ever, each inode's in its time."""
        while True:
            while not self._suspect:  # the kernel may let go of an inode before this has heard of it
                self._wanted = trio.Event()
                await self._wanted.wait()
            inode, due = next(iter(self._suspect.items()))  # the first is the earliest
            await trio.sleep_until(due)
            if self._suspect.pop(inode, None) is None:
                continue
            if self._must_wait(inode):
                # The kernel would throw away an answer that it needs, as with attributes.
                self._suspect[inode] = trio.current_time() + MAPPING_DELAY_S
                continue
            drop = self._drop(inode)
            await trio.to_thread.run_sync(self._drop_pages, drop, abandon_on_cancel=True)
            self._has_dropped(drop)

    def _drop(self, inode: InodeNumber) -> _Drop:
        """What a thread is to do, by `_drop_pages`."""
        self.overtake(inode)
        ending = self._ending(inode)
        end, known = -1 if ending is None else ending[0], self._ends.pop(inode, -1)
        if end <= known:
            self._ends[inode] = end
            return _Drop(inode, None)
        drop = self._drops[inode] = _Drop(inode, ending)
        return drop

    def overtake(self, inode: InodeNumber) -> None:
        """What a thread may still be told to tell of its end may be old."""
        if (drop := self._drops.pop(inode, None)) is not None:
            drop.is_late = True

    def _has_dropped(self, drop: _Drop) -> None:
        if drop.untold is not None and self._drops.get(drop.inode) is drop:
            del self._drops[drop.inode]
            self._ends[drop.inode] = drop.untold[0]

    def _drop_pages(self, drop: _Drop) -> None:
        drop.thread = threading.get_native_id()
        inode, untold = drop.inode, drop.untold
        self._notifier.drop_pages(inode)
        if untold is not None and not drop.is_late:
            self._notifier.tell(inode, lambda: self._store(inode, *untold))
            self._notifier.drop_pages(inode)  # the byte may have come into a page, and be old
        self.dropped_total += 1
