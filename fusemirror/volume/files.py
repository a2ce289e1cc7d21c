"""Files: what a file holds, by its row and its image; and content that comes from the peer's copy.

What is put here is content as it is at the peer, no change of its own: it has no number, and the size and
times that the row has are not touched by it, but for `put_size`.
"""

import contextlib
from collections.abc import Sequence

from fusemirror.errors import DiskFailed, VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import HOLE_PIECE_BYTES, MIB, REGION_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import Entry
from fusemirror.volume.health import Health, noting
from fusemirror.volume.images import NO_IMAGE, Images
from fusemirror.volume.inode import Inode
from fusemirror.volume.regions import Regions
from fusemirror.volume.removal import Removal


class Files:
    """The files of one volume."""

    def __init__(
        self,
        catalog: Catalog,
        images: Images,
        regions: Regions,
        removal: Removal,
        health: Health,
        seams: Seams,
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._regions = regions
        self.removal = removal
        self._seams = seams
        self.health = health

    # --- what they hold ------------------------------------------------------------------------------

    def ending(self, number: InodeNumber) -> tuple[int, bytes] | None:
        """Where the last byte of a file is, and that byte; None for an empty file, or where there is none, or
        the catalog does not tell.

        Of an image that is out of sync the place is right, and the byte may not be. Where the disk does not
        give it, it is zero: the kernel is told how long the file is, and whoever reads there meets the error.
        """
        try:
            inode = self._catalog.inode(number)
        except (DiskFailed, VolumeDamaged):  # whoever looks there meets it
            return None
        if inode is None or not inode.is_regular or inode.size == 0:
            return None
        last = inode.size - 1
        try:
            return last, self._images.read(number, last, 1) or b"\0"
        except OSError as error:  # it is asked when a change has been made, which must not fail any more
            self.health.note(error)
            return last, b"\0"

    @noting
    def next_data(self, inode: InodeNumber, offset: int, size: int) -> int:
        """Where, from `offset` on, a file of so many bytes has data; `size` where a hole ends it. OSError."""
        return self._images.content.next_data(inode, offset, size)

    @noting
    def next_hole(self, inode: InodeNumber, offset: int, size: int) -> int:
        """Where, from `offset` on, a file of so many bytes has a hole; its end is one. OSError."""
        return self._images.content.next_hole(inode, offset, size)

    def allocated_bytes(self, inode: Inode) -> int:
        """How much of the disk the data of an inode takes; where the disk cannot be asked, as if it had no
        holes."""
        if inode.is_regular:
            with contextlib.suppress(OSError):  # whoever reads or writes there meets it
                return self._images.content.data_bytes(inode.number)
        return inode.size

    def measure(self, number: InodeNumber) -> tuple[int, int]:
        """How long a file is, and about how much data it holds: holes do not count, unless the disk cannot be
        asked about them.
        """
        inode = self._catalog.inode(number)
        if inode is None or not inode.is_regular:
            return 0, 0
        size = data_bytes = inode.size
        if size > MIB:
            with contextlib.suppress(OSError):  # whoever reads or writes there meets it
                data_bytes = min(size, self._images.content.data_bytes(number))
        return size, data_bytes

    async def step_points(self, inode: InodeNumber, start: int, end: int) -> Sequence[int]:
        """Where, between two places of a file, work on its disk space stops so that nobody waits long, the
        first place first. OSError.
        """
        return await self._seams.run_blocking(self._images.content.step_points, inode, start, end)

    def prepare(self, number: InodeNumber) -> None:
        """Make the image of a file before it is written to: for a moment when the peer is waited for.

        An error of the disk is left to the write, and damage too.
        """
        if self._images.is_open(number):
            return
        with contextlib.suppress(OSError, DiskFailed, VolumeDamaged):
            inode = self._catalog.inode(number)
            if inode is not None and inode.is_regular:
                self._images.prepare(number)

    def inode_of(self, directory: InodeNumber, name: bytes, entry: Entry) -> Inode | None:
        """The inode of an entry; None where a copy under way has yet to bring it. VolumeDamaged."""
        inode = self._catalog.inode(entry.inode)
        if inode is None and not self._catalog.copying:
            what = f"name {name!r} of directory {directory} names inode {entry.inode}, which is missing"
            raise self._catalog.contradicts(what)
        return inode

    # --- content of the peer's copy ------------------------------------------------------------------

    @noting
    def put_data(self, inode: InodeNumber, offset: int, data: bytes | memoryview) -> None:
        """Put content into an image. OSError."""
        found = self._catalog.inode(inode)
        mtime_ns, ctime_ns = (0, 0) if found is None else (found.mtime_ns, found.ctime_ns)
        self._regions.mark(inode, offset, offset + len(data))
        self._images.write(inode, offset, data, ctime_ns)
        self._images.set_times(inode, mtime_ns, ctime_ns)

    @noting
    def put_size(self, inode: InodeNumber, size: int) -> bool:
        """Make an image and its inode `size` bytes long; whether the inode had another size. OSError."""
        found = self._catalog.inode(inode)
        facts = self._images.facts(inode) or NO_IMAGE
        mtime_ns, ctime_ns = (0, 0) if found is None else (found.mtime_ns, found.ctime_ns)
        if facts.size != size:
            self._regions.mark_length(inode, facts.size, size)
            self._images.truncate(inode, size, ctime_ns)
            self.removal.note_discarded()
            self._images.set_times(inode, mtime_ns, ctime_ns)
        if found is None or found.size == size:
            return False
        found.size = size
        self._catalog.touch(found)
        return True

    @noting
    def put_hole(self, inode: InodeNumber, first: int, end: int) -> int:
        """Make a hole of regions of an image, from `first` to before `end`, as far as can be done at once;
        how far. OSError.
        """
        piece = self._images.content.piece(inode, first, end)
        if piece.is_hole:
            first = piece.end
        if first >= end:
            return end
        stop = min(end, first + HOLE_PIECE_BYTES // REGION_BYTES)
        facts = self._images.facts(inode) or NO_IMAGE
        self._regions.mark(inode, first * REGION_BYTES, stop * REGION_BYTES)
        done = self._images.content.punch(inode, first, stop)
        self._images.set_times(inode, facts.mtime_ns, facts.ctime_ns)
        return done
