"""Which regions of which images the peer does not hold, or may not hold.

A region that is being copied is *taken*: it counts as out of sync until the copy is confirmed, and a
mark that is set meanwhile stands beside it and stays.
"""

from collections.abc import Iterable, Mapping

from fusemirror.identifiers import InodeNumber, RegionIndex
from fusemirror.limits import REGION_BYTES, REGIONS_PER_IMAGE_MAX

Marks = Mapping[InodeNumber, Iterable[RegionIndex]]


class _Image:
    """Marked regions; beyond `REGIONS_PER_IMAGE_MAX` everything `whole_from` a region on."""

    __slots__ = ("marked", "taken", "version", "whole_from")

    def __init__(self) -> None:
        self.marked: set[int] = set()
        self.taken: set[int] = set()
        self.version = 0  # grows with every mark
        self.whole_from: int | None = None

    def mark(self, regions: Iterable[int]) -> None:
        self.version += 1
        for region in regions:
            if region < 0:  # as `whole_from` is told
                self.mark_whole(-1 - region)
            elif self.whole_from is None or region < self.whole_from:
                self.marked.add(region)
        if len(self.marked) > REGIONS_PER_IMAGE_MAX:
            self.mark_whole(0)

    def mark_whole(self, first: int) -> None:
        self.version += 1
        self.whole_from = first if self.whole_from is None else min(self.whole_from, first)
        self.marked = {region for region in self.marked if region < self.whole_from}

    def take(self, first: int, count: int) -> None:
        regions = range(first, first + count)
        self.taken.update(regions)
        self.marked.difference_update(regions)
        if self.whole_from is not None and self.whole_from in regions:
            self.whole_from = first + count

    def regions(self, count: int) -> list[int]:
        """Those that are to be copied in an image of `count` regions."""
        whole = range(count if self.whole_from is None else self.whole_from, count)
        return sorted({region for region in self.marked if region < count}.union(whole))

    def marks(self) -> set[RegionIndex]:
        """What a crash must leave: every region that is not confirmed, or else that the size may differ."""
        marks = {RegionIndex(region) for region in self.marked | self.taken}
        if self.whole_from is not None:
            marks.add(RegionIndex(-1 - self.whole_from))
        return marks or {RegionIndex(0)}

    def size_bytes(self, size_bytes: int) -> int:
        whole = 0 if self.whole_from is None else max(0, size_bytes - self.whole_from * REGION_BYTES)
        return whole + len(self.marked | self.taken) * REGION_BYTES


class OutOfSync:
    """A set of regions per image; of an image with too many, all from one region on."""

    def __init__(self) -> None:
        self._images: dict[InodeNumber, _Image] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, inode: InodeNumber) -> bool:
        return inode in self._images

    def add_range(self, inode: InodeNumber, start: int, end: int) -> None:
        """Bytes start <= b < end differ; an empty range still says that the size may differ."""
        first = start // REGION_BYTES
        last = max(start, end - 1) // REGION_BYTES
        if last - first >= REGIONS_PER_IMAGE_MAX:
            self.add_whole(inode)
        else:
            self._image(inode).mark(range(first, last + 1))

    def add_whole(self, inode: InodeNumber) -> None:
        self._image(inode).mark_whole(0)

    def add_marks(self, marks: Marks) -> None:
        """As `marks` and `Regions.marks` tell them: a negative one stands for all from a region on."""
        for inode, regions in marks.items():
            self._image(inode).mark(regions)

    def _image(self, inode: InodeNumber) -> _Image:
        image = self._images.get(inode)
        if image is None:
            image = self._images[inode] = _Image()
        return image

    def inodes(self) -> list[InodeNumber]:
        return list(self._images)

    def regions(self, inode: InodeNumber, size_bytes: int) -> list[int]:
        """The marked regions within an image of `size_bytes`, ascending."""
        image = self._images.get(inode)
        return [] if image is None else image.regions(-(-size_bytes // REGION_BYTES))

    def marks(self) -> dict[InodeNumber, set[RegionIndex]]:
        """All of it, as `add_marks` takes it."""
        return {inode: image.marks() for inode, image in self._images.items()}

    # --- copying --------------------------------------------------------------------------------------

    def take(self, inode: InodeNumber, first: int, count: int) -> None:
        """These regions are about to be copied. In one image take them in ascending order."""
        self._image(inode).take(first, count)

    def confirm(self, inode: InodeNumber, first: int, count: int) -> None:
        """The peer holds these regions as they were when they were taken, or newer."""
        if inode in self._images:
            self._images[inode].taken.difference_update(range(first, first + count))

    def version(self, inode: InodeNumber) -> int:
        """Names the marks of an image as they are now, for `finish`."""
        image = self._images.get(inode)
        return 0 if image is None else image.version

    def finish(self, inode: InodeNumber, version: int) -> None:
        """The image was copied and confirmed: it is in sync, unless it was marked after `version`."""
        image = self._images.get(inode)
        if image is not None and image.version == version:
            del self._images[inode]

    def give_back(self) -> None:
        """What was taken and not confirmed is only marked again."""
        for image in self._images.values():
            image.mark(image.taken)
            image.taken = set()

    # --- counting -------------------------------------------------------------------------------------

    def size_bytes(self, sizes: Mapping[InodeNumber, int]) -> int:
        """How many bytes are marked, given the sizes of the images held as a whole."""
        return sum(image.size_bytes(sizes.get(inode, 0)) for inode, image in self._images.items())

    def whole_images(self) -> list[InodeNumber]:
        return [inode for inode, image in self._images.items() if image.whole_from is not None]
