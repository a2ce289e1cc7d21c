"""Which regions of which images the peer does not hold, or may not hold."""

from collections.abc import Iterable, Mapping

from fusemirror.identifiers import InodeNumber, RegionIndex
from fusemirror.limits import REGION_BYTES, REGIONS_PER_IMAGE_MAX

WHOLE_IMAGE = RegionIndex(-1)

Marks = Mapping[InodeNumber, Iterable[RegionIndex]]


class OutOfSync:
    """A set of regions per image; an image with too many is held as a whole."""

    def __init__(self) -> None:
        self._regions: dict[InodeNumber, set[RegionIndex]] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, inode: InodeNumber) -> bool:
        return inode in self._regions

    def add_range(self, inode: InodeNumber, start: int, end: int) -> None:
        """Bytes start <= b < end differ; an empty range still says that the size may differ."""
        first = start // REGION_BYTES
        last = max(start, end - 1) // REGION_BYTES
        if last - first >= REGIONS_PER_IMAGE_MAX:
            self.add_whole(inode)
        else:
            self._add(inode, (RegionIndex(index) for index in range(first, last + 1)))

    def add_whole(self, inode: InodeNumber) -> None:
        self._regions[inode] = {WHOLE_IMAGE}

    def add_marks(self, marks: Marks) -> None:
        for inode, regions in marks.items():
            self._add(inode, regions)

    def _add(self, inode: InodeNumber, regions: Iterable[RegionIndex]) -> None:
        held = self._regions.setdefault(inode, set())
        if WHOLE_IMAGE in held:
            return
        held.update(regions)
        if WHOLE_IMAGE in held or len(held) > REGIONS_PER_IMAGE_MAX:
            self.add_whole(inode)

    def discard(self, inode: InodeNumber) -> None:
        self._regions.pop(inode, None)

    def clear(self) -> None:
        self._regions.clear()

    def inodes(self) -> list[InodeNumber]:
        return list(self._regions)

    def regions(self, inode: InodeNumber, size_bytes: int) -> list[int]:
        """The marked regions within an image of `size_bytes`, ascending."""
        count = -(-size_bytes // REGION_BYTES)
        held = self._regions.get(inode, set())
        if WHOLE_IMAGE in held:
            return list(range(count))
        return sorted(index for index in held if index < count)

    def size_bytes(self, sizes: Mapping[InodeNumber, int]) -> int:
        """How many bytes are marked, given the sizes of the images held as a whole."""
        return sum(
            sizes.get(inode, 0) if WHOLE_IMAGE in held else len(held) * REGION_BYTES
            for inode, held in self._regions.items()
        )

    def whole_images(self) -> list[InodeNumber]:
        return [inode for inode, held in self._regions.items() if WHOLE_IMAGE in held]
