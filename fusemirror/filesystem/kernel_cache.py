"""What this host's kernel may answer without asking, and how that is taken back.

**Attributes** are granted for a time. A notification takes them back as the change is applied, before
the other host can see it (`volume/invalidation.py`). A kernel that gets it while an
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

Pages of mappings: `kernel_pages.py`.

No acknowledgement waits longer for a lock of a kernel, so two hosts cannot wait for each other's.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable

import pyfuse3
import trio

from fusemirror.change import Row, Table
from fusemirror.filesystem.directory_names import DirectoryNames, DropName
from fusemirror.filesystem.kernel_pages import Ending, Pages, StorePages
from fusemirror.filesystem.letting_go import LettingGo
from fusemirror.filesystem.notifier import Invalidate, Notifier
from fusemirror.filesystem.open_files import OpenFiles, count_down
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.limits import KERNEL_DELAY_S, KERNEL_STEADY_S
from fusemirror.volume.entries import key_inode
from fusemirror.volume.inode import Inode

_NEVER = -math.inf


class KernelCache:
    """The `CacheInvalidator` of the volume that this host shows. `run` drops pages of mappings for ever."""

    def __init__(
        self,
        invalidate: Invalidate = pyfuse3.invalidate_inode,
        drop_name: DropName = pyfuse3.invalidate_entry,
        store: StorePages = pyfuse3.notify_store,
        ending: Ending = lambda _: None,
    ) -> None:
        self.directories = DirectoryNames(drop_name)
        self.files = OpenFiles()
        self._notifier = Notifier(invalidate)
        self.pages = Pages(self._notifier, self._must_wait, store, ending)
        self.letting_go = LettingGo(self._notifier, self.directories.removed)
        self._granted_total = self._taken_back_total = 0
        # Since when the kernel has been told the present attributes of an inode.
        self._told: dict[InodeNumber, float] = {}
        self._granted: dict[InodeNumber, float] = {}  # until when
        self._asking: Counter[InodeNumber] = Counter()  # requests for attributes under way
        self._known: Counter[InodeNumber] = Counter()  # how often the kernel was told the inode by a name
        self._new: set[InodeNumber] = set()  # and had not had it before; it has not changed since
        self._ticks = itertools.count(1)

    # --- telling ----------------------------------------------------------------------------------------

    def named(self, inode: InodeNumber) -> None:
        """The kernel is told the inode by a name now; it lets go of it by as many `forgotten`."""
        if inode not in self._known:
            self._new.add(inode)
        self._known[inode] += 1

    def renamed(self, inode: Inode | None, name: NameKey) -> None:
        """The kernel is told now that its own call has given the inode this name."""
        if inode is not None and inode.is_directory and inode.number in self._known:
            self.directories.renamed(inode.number, name)

    def tell(self, inode: Inode, lifetime_s: float, *, asked: bool = False) -> tuple[float, int]:
        """The kernel is told the attributes of `inode` now: how long it may keep them, `lifetime_s` at
        most, and the mtime to tell. `asked`: it has the inode and asks for no more than this.
        """
        number, mtime_ns, now = inode.number, inode.mtime_ns, trio.current_time()
        if number in self.files.readers and number in self.pages.held and self.pages.is_old(number, now):
            return 0.0, mtime_ns - next(self._ticks)
        since = self._told.setdefault(number, now)
        if lifetime_s <= 0:
            return 0.0, mtime_ns
        first = asked and number in self._new and number not in self.files.writers  # or a write follows
        if now - since < KERNEL_STEADY_S and not first:
            return 0.0, mtime_ns
        self._granted[number] = now + lifetime_s + KERNEL_DELAY_S  # it may take the answer a little later
        self._granted_total += 1
        return lifetime_s, mtime_ns

    def asks(self, inode: InodeNumber) -> None:
        """The kernel asks for the attributes of the inode, until `answered`."""
        self._asking[inode] += 1

    def answered(self, inode: InodeNumber) -> None:
        count_down(self._asking, inode)

    def forgotten(self, inode: InodeNumber, times: int) -> None:
        """The kernel has let go of the inode, `times` of those that it was told it by a name."""
        self._known[inode] -= times
        if self._known[inode] > 0:
            return  # it has been told anew meanwhile
        del self._known[inode]
        self._new.discard(inode)
        self.directories.forgotten(inode)
        self._told.pop(inode, None)
        self._granted.pop(inode, None)
        self.pages.forgotten(inode)

    # --- taking back --------------------------------------------------------------------------------------

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        self.files.moved.add(inode)
        if not own and (inode in self.files.all or inode in self.pages.held):
            self.pages.overtake(inode)
            self._changed(inode, own=False)
            self.pages.refresh(inode)
        else:
            self.pages.forget_end(inode)
            self._changed(inode, own=own)

    def _changed(self, inode: InodeNumber, *, own: bool) -> None:
        self._told.pop(inode, None)
        self._new.discard(inode)
        until = self._granted.pop(inode, None)
        if until is not None and until > trio.current_time():
            self._taken_back_total += 1
            self._notifier.take_back_attributes(inode)
        if inode in self.pages.held:
            # Its own programs' writes a kernel that maps direct I/O brings into its pages by itself.
            self.pages.changed(inode, must_drop=not (own and self.files.maps_direct_io))

    def rows_changed(self, rows: Iterable[Row], *, own: bool) -> None:
        if not own:
            self.directories.rows_changed(rows)
        for table, key, _ in rows:
            if table in (Table.INODES, Table.XATTRS):  # access control lists live as long as attributes
                inode = key_inode(key)
                self._changed(inode, own=True)
                if not own and table == Table.INODES:
                    self.pages.copied(inode, is_open=inode in self.files.all)
                self.letting_go.changed(inode)

    def image_suspect(self, inode: InodeNumber) -> None:
        self.data_changed(inode, own=False)

    def catalog_replaced(self) -> None:
        self.pages.forget_ends()
        self.letting_go.clear()
        for inode in [*self._told, *(self.pages.held.keys() - self._told.keys())]:
            self._changed(inode, own=False)
        self.pages.replaced(self.files.all.keys())

    def lease_over(self) -> None:
        """Only open files have mappings; what reads others opens them first, and that asks."""
        self.pages.replaced(self.files.all.keys() & self.pages.held.keys())

    def has_let_go(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        return self.letting_go.gone(inodes)

    def _must_wait(self, inode: InodeNumber) -> bool:
        """The kernel would throw away an answer that it needs, as with attributes."""
        told_s = trio.current_time() - self._told.get(inode, _NEVER)
        return inode in self._asking or told_s < KERNEL_DELAY_S

    def counters(self) -> dict[str, int]:
        """For `fusemirror status`. What the kernel answers by itself nobody sees, and nobody counts."""
        return {
            "attributes_granted": self._granted_total,
            "attributes_taken_back": self._taken_back_total,
            "pages_dropped": self.pages.dropped_total,
        }

    # --- mappings -----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drop old pages for ever, each inode's in its time, and look at directories that have moved.
        Cancelled, it leaves its threads behind."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.directories.run)
            nursery.start_soon(self.pages.run)
            task_status.started()
