"""Which regions of which images the peer does not hold, or may not hold.

A region that is being copied is *taken*: it counts as out of sync until the copy is confirmed, and a
mark that is set meanwhile stands beside it and stays.
"""

from collections.abc import Callable

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REGION_BYTES
from fusemirror.volume.region_set import REGIONS_END, RegionSet, ranges_allowed, regions_of
from fusemirror.volume.regions import Marks

_LARGE_REGIONS = 64  # 4 MiB: of a few regions it costs more to ask how much of them is data


class _Image:
    """Marked and taken regions of one image."""

    __slots__ = ("marked", "taken", "version")

    def __init__(self) -> None:
        self.marked = RegionSet()
        self.taken = RegionSet()
        self.version = 0  # of the last mark

    def all(self) -> RegionSet:
        union = self.marked.copy()
        union.update(self.taken)
        return union


class OutOfSyncMap:
    """A set of regions per image; perhaps coarser than what was marked."""

    def __init__(self) -> None:
        self._images: dict[InodeNumber, _Image] = {}
        self._version = 0

    @property
    def newest_version(self) -> int:
        """It grows with every mark."""
        return self._version

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, inode: InodeNumber) -> bool:
        return inode in self._images

    def add_range(self, inode: InodeNumber, start: int, end: int) -> None:
        """Bytes start <= b < end differ; an empty range still says that the size may differ."""
        assert 0 <= start <= end, "a range that is turned round would mark nothing"
        first, behind = regions_of(start, end)
        self.add_regions(inode, first, max(behind, first + 1))

    def add_whole(self, inode: InodeNumber) -> None:
        self.add_regions(inode, 0, REGIONS_END)

    def add_regions(self, inode: InodeNumber, first: int, end: int) -> None:
        image = self._images.get(inode)
        if image is None:
            image = self._images[inode] = _Image()
        self._note(image)
        image.marked.add(first, end)
        self._bound(image)

    def _note(self, image: _Image) -> None:
        self._version += 1
        image.version = self._version

    def _bound(self, image: _Image) -> None:
        allowed = ranges_allowed(len(self._images))
        if len(image.marked) > allowed:
            # Half of what is allowed, so that it is not done again at the next mark. Coarser is never wrong:
            # more is compared.
            image.marked.coarsen(max(1, allowed // 2))

    def add_marks(self, marks: Marks) -> None:
        for inode, marked in marks.items():
            for first, end in marked:
                self.add_regions(inode, first, end)

    def inodes(self) -> list[InodeNumber]:
        return list(self._images)

    def inodes_since(self, version: int) -> list[InodeNumber]:
        """Those that were marked since that was the newest version."""
        return [inode for inode, image in self._images.items() if image.version > version]

    def ranges(self, inode: InodeNumber, size_bytes: int) -> list[tuple[int, int]]:
        """The marked regions within an image of `size_bytes`, as (first, the one behind the last)."""
        image = self._images.get(inode)
        return [] if image is None else list(image.marked.within(-(-size_bytes // REGION_BYTES)))

    def marks(self) -> Marks:
        """All of it, for what a crash must leave: an image whose size alone may differ has a region too."""
        marks = {inode: image.all() for inode, image in self._images.items()}
        for marked in marks.values():
            if not marked:
                marked.add(0, 1)
        return marks

    @property
    def range_count(self) -> int:
        """How many ranges `marks` has, or a few more."""
        return sum(max(1, len(image.marked) + len(image.taken)) for image in self._images.values())

    # --- copying --------------------------------------------------------------------------------------

    def take(self, inode: InodeNumber, first: int, end: int) -> None:
        """These regions are about to be copied."""
        image = self._images.get(inode)
        if image is not None:
            # Apart from the marks: a write that comes from now on marks its region anew, and the end of the
            # copy takes nothing from that.
            image.marked.remove(first, end)
            image.taken.add(first, end)

    def confirm(self, inode: InodeNumber, first: int, end: int) -> None:
        """The peer holds these regions as they were when they were taken, or newer."""
        image = self._images.get(inode)
        if image is not None:
            image.taken.remove(first, end)

    def version(self, inode: InodeNumber) -> int:
        """Names the marks of an image as they are now, for `finish`."""
        image = self._images.get(inode)
        return 0 if image is None else image.version

    def finish(self, inode: InodeNumber, version: int) -> None:
        """The image was copied and confirmed: it is in sync, unless it was marked after `version`."""
        image = self._images.get(inode)
        # A mark that was set since may be of bytes that the copy had read before.
        if image is not None and image.version == version:
            assert not image.taken, "no mark goes whose region nobody has confirmed"
            del self._images[inode]

    def give_back(self) -> None:
        """What was taken and not confirmed is only marked again."""
        for image in self._images.values():
            if image.taken:
                self._note(image)
                image.marked.update(image.taken)
                image.taken = RegionSet()
                self._bound(image)

    # --- counting -------------------------------------------------------------------------------------

    def size_bytes(self, measure: Callable[[InodeNumber], tuple[int, int]]) -> int:
        """About how many bytes are marked. Of an image of which many are, they lie within its size, and are
        no more than it holds as data: `measure` says both.
        """
        return sum(self._image_bytes(inode, measure) for inode in self._images)

    def _image_bytes(self, inode: InodeNumber, measure: Callable[[InodeNumber], tuple[int, int]]) -> int:
        image = self._images[inode]
        count = image.marked.count() + image.taken.count()
        if count <= _LARGE_REGIONS:
            return count * REGION_BYTES
        size_bytes, data_bytes = measure(inode)
        end = -(-size_bytes // REGION_BYTES)
        return min((image.marked.count(end) + image.taken.count(end)) * REGION_BYTES, data_bytes)
