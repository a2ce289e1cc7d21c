"""Effects: what a change does to the journal, the catalog, the marks and the image, in this order.

The order is argued in `volume.py`.
"""

import contextlib
import stat

import xxhash

from fusemirror.change import (
    AllocateChange,
    CopyChange,
    DataChange,
    NamespaceChange,
    Table,
    TruncateChange,
    WriteChange,
)
from fusemirror.errors import BadChange, DiskFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.commits import Commits
from fusemirror.volume.contradictions import check_images
from fusemirror.volume.entries import key_inode
from fusemirror.volume.health import Health, is_of_one_file
from fusemirror.volume.images import Images
from fusemirror.volume.inode import Inode
from fusemirror.volume.journal import Journal
from fusemirror.volume.regions import Regions
from fusemirror.volume.removal import Removal
from fusemirror.volume.rows import check_rows

CONTENT_NOTE = 1 << 63


def content_note(content: bytes | memoryview) -> int:
    """What a record notes of a write within the file. One that changes the size notes the size before,
    which is always less.
    """
    return CONTENT_NOTE | xxhash.xxh3_64_intdigest(content) >> 1


def removed_inodes(change: NamespaceChange) -> list[InodeNumber]:
    """The inodes that a change removes."""
    return [key_inode(key) for table, key, value in change.rows if table == Table.INODES and value is None]


class Effects:
    """Those on one volume. OSError, DiskFailed: there is none, though bytes of marked regions may differ."""

    def __init__(
        self,
        catalog: Catalog,
        images: Images,
        journal: Journal,
        regions: Regions,
        removal: Removal,
        commits: Commits,
        health: Health,
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._journal = journal
        self._regions = regions
        self._removal = removal
        self._commits = commits
        self._health = health

    def make_names(self, change: NamespaceChange, encoded: bytes | memoryview) -> None:
        """Put the record of a change of the namespace into the journal, and its rows into the catalog."""
        if not self._catalog.copying:
            self._journal.append(change.number, encoded)
        try:
            removed = self._catalog.apply_rows(change.rows, change.number)
        except DiskFailed:
            if self._catalog.copying:
                raise
            self._commits.rebuild()
            removed = removed_inodes(change)
        if removed:
            self._removal.add(change.number, removed)

    def make_data(
        self, change: DataChange, data: bytes | memoryview, record: bytes | memoryview | None
    ) -> None:
        """Change an image and the attributes that follow from it; with a `record` in the journal before."""
        number, time_ns = change.inode, change.time_ns
        if type(change) is WriteChange and change.length != len(data):
            raise BadChange(f"it came with {len(data)} of {change.length} bytes")
        if change.rows:
            check_rows(change.rows)
        if type(change) is CopyChange:
            check_images(self._catalog, change)
        inode = self._catalog.inode(number)  # last: a look at others may take its place in the cache
        if inode is None or not stat.S_ISREG(inode.mode):
            check_images(self._catalog, change)
        old_size = 0 if inode is None else inode.size
        if record is not None:
            if time_ns <= self._catalog.meta.set_back.from_ns:
                self._images.make_older(number, time_ns)  # recovery judges the record by that
            within = type(change) is WriteChange and change.offset + change.length <= old_size
            self._journal.append(change.number, record, note=content_note(data) if within else old_size)
        try:
            # The mark first: killed in the middle of the rest, the process leaves an image known to differ.
            if type(change) is WriteChange:
                size = max(old_size, change.offset + change.length)
                self._regions.mark(number, change.offset, change.offset + change.length)
                self._images.write(number, change.offset, data, time_ns)
            elif type(change) is TruncateChange:
                size = change.size
                self._regions.mark_length(number, size if inode is None else old_size, size)
                self._images.truncate(number, size, time_ns)
                self._removal.note_discarded()
            else:
                assert isinstance(change, AllocateChange | CopyChange), "every kind of change has its branch"
                size = change.size_after(old_size)
                self._regions.mark(number, change.offset, change.end)
                if isinstance(change, CopyChange):
                    source = change.source, change.source_offset
                    self._images.copy(number, change.offset, change.end, *source, time_ns)
                else:
                    self._images.allocate(number, change.offset, change.end, change.mode, time_ns)
        except OSError:
            self._take_back(change, inode, journalled=record is not None)
            raise
        if record is not None:
            self._images.unsynced.keep_times(number)
        if inode is None:
            return
        assert 0 <= size <= FILE_BYTES_MAX, "no row says else, here or at the peer"
        inode.size = size
        inode.mtime_ns = inode.ctime_ns = time_ns
        inode.changed = change.number
        self._catalog.touch(inode)
        if change.rows:
            self._put_rows(change)

    def _put_rows(self, change: DataChange) -> None:
        """Put what a data change carries. DiskFailed while copying; else the journal holds it."""
        try:
            self._catalog.apply_rows(change.rows, change.number)
        except DiskFailed:
            if self._catalog.copying:
                raise
            self._commits.rebuild()
            self._catalog.apply_rows(change.rows, change.number)  # over what only memory held

    def _take_back(self, change: DataChange, inode: Inode | None, *, journalled: bool) -> None:
        """A data change met an error of the disk: leave its image as long as it was, and no record. Where the
        disk does not even take that, this host serves nothing any more.
        """
        if inode is not None:
            try:
                self._images.cut(change.inode, inode.size)
            except OSError as error:
                # What lies behind the end would show here, and not at the peer, once the file grows over it.
                # Of an image that cannot be opened nothing was written.
                if not is_of_one_file(error):
                    self._health.fail(f"what a failed write left cannot be cut off: {error}")
            with contextlib.suppress(OSError):
                self._images.set_times(change.inode, inode.mtime_ns, inode.ctime_ns)
        if journalled:
            self._journal.retract(change.number)
