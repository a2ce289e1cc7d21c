"""What this host's kernel may answer without asking, and how that is taken back.

**Attributes** are granted for a time. A notification takes them back as the change is applied, before
the other host can see it (`volume/watcher.py`). A kernel that gets it while an
answer is on its way throws that answer away, and goes by the attributes that it had before. So only
those are granted that the kernel has had for a while, or had first: then it had the same before. It had
them first if it did not have the inode, was told of it by name, and now asks for its attributes. What was
granted for a time that is over is not taken back: programs that wait for attributes because the other host
was away go by what it changed meanwhile, not by what was before.

**Content** stays in the page cache as long as the kernel finds size and mtime unchanged, which it asks
for before each read unless it was granted them. But of two readers at once the first takes over a new
mtime before it has dropped the old pages, and the second then finds nothing new. So while a file is open
that way, after a change each answer has a mtime of its own, some nanoseconds less, until the kernel must
have had one of them: each reader drops the pages by itself. Otherwise the next open drops them. Files
that just changed are opened past the page cache.

A write of this host, too, makes the kernel throw away an answer that is on its way. So a file is not
opened for the page cache where this host has it open for writing. What is left: a file that was opened
at rest, and is then written by both hosts while it is read, may show to a read that runs beside a local
write what was before the last write of the other host. And a read that runs beside a truncation by
this host may show zeros for what is cut off: the kernel does not believe then that an answer is short because
the file is, and fills it up. And of two readers at once the second goes by the attributes that the first was
told, if the first takes its answer only after the second has asked: if the other host changed the file
just between, the second does not see that change yet, and zeros for what the change cut off.

**Mappings**, sendfile(2), splice(2) and copy_file_range(2) go by the kernel's pages, and by the size that it
knows, however the file was opened, and ask nobody. So when the other host changed a file that is open here,
or of which the kernel may have pages, the kernel drops the pages and, where the file grew, is told its last
byte, before anyone can see the change. It takes that byte into a page. So the pages go first, or a program
could read there what nobody wrote: the old content with the new last byte. Both wait for locks of pages,
which requests hold that this event loop must answer. So a thread does it. The loop waits for it, but for a
few milliseconds only where the thread waits for such a lock and the kernel asks something, which may be that
request, and not at all where it knows of one. What it did not wait for is done when that request ends, and
once more a moment later; of a file that grew the size then.

No acknowledgement waits longer for a lock of a kernel, so two hosts cannot wait for each other's.
"""

import errno
import itertools
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyfuse3
import trio

from fusemirror.change import Row, Table
from fusemirror.filesystem.directory_names import DirectoryNames, DropName, Name
from fusemirror.filesystem.handles import FileHandle
from fusemirror.identifiers import InodeNumber
from fusemirror.kernel.callers import is_held_up
from fusemirror.limits import (
    KERNEL_DELAY_S,
    KERNEL_STEADY_S,
    MAPPING_DELAY_S,
    NOTIFICATION_TIMEOUT_S,
    PAGES_TIMEOUT_S,
    PAGES_TIMEOUTS_MAX,
    REST_S,
)
from fusemirror.recent import Recent
from fusemirror.volume.catalog import key_inode
from fusemirror.volume.inode import Inode

log = logging.getLogger(__name__)

# The kernel does not have the inode, or not the mount any more; libfuse says the last.
_LET_GO = {errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.EINVAL}
_NOTIFIERS = 4  # threads: one that waits for an inode to be freed must not keep the others waiting
_FRESH, _OLD = -math.inf, math.inf
_NEVER = -math.inf

Invalidate = Callable[[InodeNumber, bool], None]
"""(inode, whether only its attributes): pyfuse3.invalidate_inode."""
Store = Callable[[InodeNumber, int, bytes], None]
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


class KernelCache:
    """A `Watcher` of the volume that this host shows. `run` drops pages of mappings for ever."""

    def __init__(
        self,
        invalidate: Invalidate = pyfuse3.invalidate_inode,
        drop_name: DropName = pyfuse3.invalidate_entry,
        store: Store = pyfuse3.notify_store,
        ending: Ending = lambda _: None,
    ) -> None:
        self.directories = DirectoryNames(drop_name)
        self.maps_direct_io = False
        """Whether the kernel maps files shared that are open for direct I/O (`kernel/negotiation.py`)."""
        self.kernel_asks: Callable[[], bool] = lambda: False
        """Whether a request of the kernel waits to be read."""
        self.is_held_up: Callable[[int], bool] = is_held_up
        self.attributes_granted = 0
        self.attributes_taken_back = 0
        self.pages_dropped = 0
        self._invalidate = invalidate
        self._store = store
        self._ending = ending
        # Since when the kernel has been told the present attributes of an inode.
        self._told: dict[InodeNumber, float] = {}
        self._granted: dict[InodeNumber, float] = {}  # until when
        self._asking: Counter[InodeNumber] = Counter()  # requests for attributes under way
        self._known: Counter[InodeNumber] = Counter()  # how often the kernel was told the inode by a name
        self._new: set[InodeNumber] = set()  # and had not had it before; it has not changed since
        # Inodes of whose content the kernel may hold pages; until when they may be old.
        self._paged: dict[InodeNumber, float] = {}
        self._ticks = itertools.count(1)
        self._suspect: dict[InodeNumber, float] = {}  # when their pages are to be dropped
        self._wanted = trio.Event()
        self._notifiers = ThreadPoolExecutor(_NOTIFIERS, "notifier")
        self._droppers = ThreadPoolExecutor(_NOTIFIERS, "pages")  # of their own: they wait for reads
        self._dropping: dict[InodeNumber, Future[None]] = {}  # under way, or just ended
        self._drops: dict[InodeNumber, _Drop] = {}  # those that tell of an end, and are not late
        self._ends: dict[InodeNumber, int] = {}  # the last byte that the kernel knows of, at least
        self._moving: Counter[InodeNumber] = Counter()  # reads and writes under way: they may hold pages
        self._open: Counter[InodeNumber] = Counter()  # all handles
        self._writers: Counter[InodeNumber] = Counter()  # handles open for writing,
        self._readers: Counter[InodeNumber] = Counter()  # and those that read through the page cache
        self._moved = Recent[InodeNumber](REST_S)  # inodes whose data changed just now
        self.prune: Callable[[Sequence[InodeNumber]], None] | None = None
        """Tells the kernel to let go of what no program holds; None where it cannot be told."""
        self._let_go: set[InodeNumber] = set()  # inodes without names that it has let go of; a thread adds
        self._letting_go: set[InodeNumber] = set()  # it is asked about these

    # --- opening ----------------------------------------------------------------------------------------

    def keeps_pages(self, inode: InodeNumber) -> bool:
        """Whether what the kernel has of the content is as it is now. Else an open must drop it."""
        return inode not in self._paged or not self._is_old(inode, trio.current_time())

    def keeps_content(self, inode: InodeNumber, flags: int) -> bool:
        """Whether a file that is opened with `flags` now is for the page cache.

        One that is opened for both reading and writing is only where it could not be mapped otherwise:
        the kernel asks for `security.capability` before each write then, which takes half as long.
        """
        access = flags & os.O_ACCMODE
        if flags & os.O_DIRECT or access == os.O_WRONLY:
            return False
        if access == os.O_RDWR:
            return not self.maps_direct_io
        return not (inode in self._writers or inode in self._moved)

    def opened(self, handle: FileHandle) -> None:
        self._open[handle.inode] += 1
        if handle.writes:
            self._writers[handle.inode] += 1
        elif handle.cached:
            self._readers[handle.inode] += 1

    def closed(self, handle: FileHandle) -> None:
        _count_down(self._open, handle.inode)
        if handle.writes:
            _count_down(self._writers, handle.inode)
        elif handle.cached:
            _count_down(self._readers, handle.inode)

    # --- telling ----------------------------------------------------------------------------------------

    def named(self, inode: InodeNumber) -> None:
        """The kernel is told the inode by a name now; it lets go of it by as many `forgotten`."""
        if inode not in self._known:
            self._new.add(inode)
        self._known[inode] += 1

    def renamed(self, inode: Inode | None, name: Name) -> None:
        """The kernel is told now that its own call has given the inode this name."""
        if inode is not None and inode.is_directory and inode.number in self._known:
            self.directories.renamed(inode.number, name)

    def tell(self, inode: Inode, lifetime_s: float, *, asked: bool = False) -> tuple[float, int]:
        """The kernel is told the attributes of `inode` now: how long it may keep them, `lifetime_s` at
        most, and the mtime to tell. `asked`: it has the inode and asks for no more than this.
        """
        number, mtime_ns, now = inode.number, inode.mtime_ns, trio.current_time()
        if number in self._readers and number in self._paged and self._is_old(number, now):
            return 0.0, mtime_ns - next(self._ticks)
        since = self._told.setdefault(number, now)
        if lifetime_s <= 0:
            return 0.0, mtime_ns
        first = asked and number in self._new and number not in self._writers  # or a write follows
        if now - since < KERNEL_STEADY_S and not first:
            return 0.0, mtime_ns
        self._granted[number] = now + lifetime_s + KERNEL_DELAY_S  # it may take the answer a little later
        self.attributes_granted += 1
        return lifetime_s, mtime_ns

    def asks(self, inode: InodeNumber) -> None:
        """The kernel asks for the attributes of the inode, until `answered`."""
        self._asking[inode] += 1

    def answered(self, inode: InodeNumber) -> None:
        _count_down(self._asking, inode)

    def reads(self, inode: InodeNumber) -> None:
        """The kernel asks for content, which it may keep, until `has_moved_data`."""
        self._paged.setdefault(inode, _FRESH)
        self._moving[inode] += 1

    def writes(self, inode: InodeNumber) -> None:
        """The kernel brings content, which may be that of pages, until `has_moved_data`."""
        self._moving[inode] += 1

    def has_moved_data(self, inode: InodeNumber) -> None:
        _count_down(self._moving, inode)

    def _is_old(self, inode: InodeNumber, now: float) -> bool:
        """Whether pages may be old; if so, the kernel hears of it now and will have dropped them soon."""
        until = self._paged[inode]
        if until == _OLD:
            self._paged[inode] = until = now + KERNEL_STEADY_S
        return now < until

    def forgotten(self, inode: InodeNumber, times: int) -> None:
        """The kernel has let go of the inode, `times` of those that it was told it by a name."""
        self._known[inode] -= times
        if self._known[inode] > 0:
            return  # it has been told anew meanwhile
        del self._known[inode]
        self._new.discard(inode)
        self.directories.forgotten(inode)
        self._told.pop(inode, None)
        self._paged.pop(inode, None)
        self._granted.pop(inode, None)
        self._suspect.pop(inode, None)
        self._drops.pop(inode, None)
        self._ends.pop(inode, None)

    # --- taking back --------------------------------------------------------------------------------------

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        self._moved.add(inode)
        self._overtake(inode)
        self._changed(inode, own=own)
        if not own and (inode in self._open or inode in self._paged):
            self._refresh(inode)
        else:
            self._ends.pop(inode, None)  # it may be shorter, and the kernel hears of that by itself

    def _changed(self, inode: InodeNumber, *, own: bool) -> None:
        self._told.pop(inode, None)
        self._new.discard(inode)
        if self._granted.pop(inode, _NEVER) > trio.current_time():
            self.attributes_taken_back += 1
            self._take_back(inode)
        if inode in self._paged:
            self._paged[inode] = _OLD
            # Its own programs' writes a kernel that maps direct I/O brings into its pages by itself.
            if not (own and self.maps_direct_io) and inode not in self._suspect:
                self._suspect[inode] = trio.current_time() + MAPPING_DELAY_S
                self._wanted.set()

    def rows_changed(self, rows: Iterable[Row], *, own: bool) -> None:
        if not own:
            self.directories.rows_changed(rows)
        for table, key, _ in rows:
            if table in (Table.INODES, Table.XATTRS):  # access control lists live as long as attributes
                inode = key_inode(key)
                self._changed(inode, own=True)
                if not own and table == Table.INODES:
                    self._copied(inode)
                self._let_go.discard(inode)  # it may have got a name; or it has ended

    def image_suspect(self, inode: InodeNumber) -> None:
        self.data_changed(inode, own=False)

    def catalog_replaced(self) -> None:
        self._ends.clear()
        self._let_go.clear()
        for inode in [*self._told, *(self._paged.keys() - self._told.keys())]:
            self._changed(inode, own=False)
        for inode in self._open.keys() - self._suspect.keys():
            self._suspect_size(inode)

    def _copied(self, inode: InodeNumber) -> None:
        """The row of an inode has come from the other host: what it is now, and its size."""
        ending = self._ending(inode) if inode in self._open else None
        if ending is None:
            self._ends.pop(inode, None)
        elif ending[0] != self._ends.get(inode):
            self._refresh(inode)

    def has_let_go(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        """A current directory, an O_PATH descriptor and a bind mount hold an inode without an open that this
        host hears of; so do names that the kernel has cached, until it is told to drop them."""
        if self.prune is None:
            return inodes
        gone = self._let_go.intersection(inodes)
        unasked = [inode for inode in inodes if inode not in gone and inode not in self._letting_go]
        if unasked:
            self._letting_go.update(unasked)
            self._notifiers.submit(self._ask_to_let_go, self.prune, unasked)
        return gone

    def _ask_to_let_go(
        self, prune: Callable[[Sequence[InodeNumber]], None], inodes: Sequence[InodeNumber]
    ) -> None:
        """In a thread: the kernel may wait for an inode that is being freed."""
        for inode in inodes:
            try:
                prune((inode,))
                self._invalidate(inode, True)  # an error where it does not have the inode
            except OSError as error:
                if error.errno in _LET_GO:
                    self._let_go.add(inode)
                else:
                    log.error("the kernel could not be asked to let go of inode %d: %s", inode, error)
        self._letting_go.difference_update(inodes)

    def _refresh(self, inode: InodeNumber) -> None:
        """On return the kernel has no old page of the inode, and knows how long it is now.

        Where a request that may hold a page is under way, that is so a moment later.
        """
        if self._is_refreshed(inode):
            self._paged.pop(inode, None)
            self._suspect.pop(inode, None)
        elif inode not in self._suspect:
            self._suspect_size(inode)

    def _suspect_size(self, inode: InodeNumber) -> None:
        """Of an open file, which may have no pages, the size is still to be told."""
        self._suspect[inode] = trio.current_time() + MAPPING_DELAY_S
        self._wanted.set()

    def _is_refreshed(self, inode: InodeNumber) -> bool:
        self._dropping = {each: ends for each, ends in self._dropping.items() if not ends.done()}
        if inode in self._dropping or len(self._dropping) >= _NOTIFIERS:
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
            if drop.thread and self.is_held_up(drop.thread) and self.kernel_asks():
                return False
        return False

    async def settled(self, inode: InodeNumber) -> None:
        """Return when the kernel has nothing old of an inode's content and size: what `_refresh` did not wait
        for is waited for here. That may be as long as a read takes that is under way."""
        dropping = self._dropping.get(inode)
        if inode in self._suspect or (dropping is not None and not dropping.done()):
            drop = self._drop(inode)
            await trio.to_thread.run_sync(self._drop_pages, drop, abandon_on_cancel=True)
            self._has_dropped(drop)

    def _take_back(self, inode: InodeNumber) -> None:
        """On return the kernel asks again, or it is letting go of the inode.

        The notification takes no lock, but it waits for an inode that is being freed, and that may wait
        for the answer to its last write: hence a thread, and a limit. A freed inode is granted nothing.
        """
        notified = self._notifiers.submit(self._notify, inode, attributes_only=True)
        try:
            notified.result(timeout=NOTIFICATION_TIMEOUT_S)
        except TimeoutError:
            log.info("the kernel is letting go of inode %d, and was not waited for", inode)

    def _notify(self, inode: InodeNumber, *, attributes_only: bool) -> None:
        self._tell(inode, lambda: self._invalidate(inode, attributes_only))

    def _tell(self, inode: InodeNumber, notify: Callable[[], None]) -> None:
        try:
            notify()
        except OSError as error:
            if error.errno not in _LET_GO:
                log.error("the kernel could not be told that inode %d changed: %s", inode, error)

    def counters(self) -> dict[str, int]:
        """For `fusemirror status`. What the kernel answers by itself nobody sees, and nobody counts."""
        return {
            "attributes_granted": self.attributes_granted,
            "attributes_taken_back": self.attributes_taken_back,
            "pages_dropped": self.pages_dropped,
        }

    # --- mappings -----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drop old pages for ever, each inode's in its time, and look at directories that have moved.
        Cancelled, it leaves its threads behind."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.directories.run)
            nursery.start_soon(self._run_dropping)
            task_status.started()

    async def _run_dropping(self) -> None:
        while True:
            while not self._suspect:  # the kernel may let go of an inode before this has heard of it
                self._wanted = trio.Event()
                await self._wanted.wait()
            inode, due = next(iter(self._suspect.items()))  # the first is the earliest
            await trio.sleep_until(due)
            if self._suspect.pop(inode, None) is None:
                continue
            told_s = trio.current_time() - self._told.get(inode, _NEVER)
            if inode in self._asking or told_s < KERNEL_DELAY_S:
                # The kernel would throw away an answer that it needs, as with attributes.
                self._suspect[inode] = trio.current_time() + MAPPING_DELAY_S
                continue
            drop = self._drop(inode)
            await trio.to_thread.run_sync(self._drop_pages, drop, abandon_on_cancel=True)
            self._has_dropped(drop)

    def _drop(self, inode: InodeNumber) -> _Drop:
        """What a thread is to do, by `_drop_pages`."""
        self._overtake(inode)
        ending = self._ending(inode)
        end, known = -1 if ending is None else ending[0], self._ends.pop(inode, -1)
        if end <= known:
            self._ends[inode] = end
            return _Drop(inode, None)
        drop = self._drops[inode] = _Drop(inode, ending)
        return drop

    def _overtake(self, inode: InodeNumber) -> None:
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
        self._notify(inode, attributes_only=False)
        if untold is not None and not drop.is_late:
            self._tell(inode, lambda: self._store(inode, *untold))
            self._notify(inode, attributes_only=False)  # the byte may have come into a page, and be old
        self.pages_dropped += 1


def _count_down(counter: Counter[InodeNumber], inode: InodeNumber) -> None:
    counter[inode] -= 1
    if not counter[inode]:
        del counter[inode]
