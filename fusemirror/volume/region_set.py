"""A set of regions of one image, as ranges: what it costs goes by how many ranges there are, never by how
long they are. A mark of a whole image of exbibytes costs as much as one of a single region.

`bounds` holds, ascending, where a range begins and where it ends by turns: [2, 5, 9, 10] is the regions
2, 3, 4 and 9. Two ranges never touch. A region is in the set where an odd number of bounds is not above it.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from heapq import nlargest

from fusemirror.limits import (
    FILE_BYTES_MAX,
    RANGES_MAX,
    RANGES_PER_IMAGE_MAX,
    RANGES_PER_IMAGE_MIN,
    REGION_BYTES,
)

REGIONS_END = FILE_BYTES_MAX // REGION_BYTES + 1
"""Behind the last region that an image can have: a range up to here stays whatever the size becomes."""


class RegionSet:
    """See the module. A range is given and told as its first region and the one behind its last."""

    __slots__ = ("_bounds",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        # Eight bytes for each bound and no objects: all images together have up to `RANGES_MAX` ranges.
        self._bounds = array("q")
        for first, end in ranges:
            self.add(first, end)

    def add(self, first: int, end: int) -> None:
        """Nothing where the range is empty."""
        bounds = self._bounds
        if first >= end:
            return
        if not bounds or first > bounds[-1]:  # as a file is written from its beginning to its end
            bounds.append(first)
            bounds.append(end)
        elif first == bounds[-1]:
            bounds[-1] = end
        else:
            self._put(first, end, there=1)

    def remove(self, first: int, end: int) -> None:
        if first < end:
            self._put(first, end, there=0)

    def _put(self, first: int, end: int, *, there: int) -> None:
        bounds = self._bounds
        # To the left of an equal bound at the beginning and to the right at the end: what only touches is
        # joined.
        start, stop = bisect_left(bounds, first), bisect_right(bounds, end)
        # A bound stays where the set changes there: outside it is as it was, inside it is as it is to be.
        new = [bound for index, bound in ((start, first), (stop, end)) if index % 2 != there]
        bounds[start:stop] = array("q", new)
        assert len(bounds) % 2 == 0, "each range that begins ends"

    def update(self, other: "RegionSet") -> None:
        for first, end in other:
            self._put(first, end, there=1)

    def covers(self, first: int, end: int) -> bool:
        """Whether all of a range that is not empty is in the set."""
        bounds = self._bounds
        index = bisect_right(bounds, first)
        # By one range or not at all: between two there is always something that is in neither.
        return index & 1 == 1 and end <= bounds[index]

    def within(self, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of what lies before region `end`."""
        for first, behind in self:
            if first >= end:
                return
            yield first, min(behind, end)

    def count(self, end: int = REGIONS_END) -> int:
        """How many regions before `end` are in the set."""
        return sum(behind - first for first, behind in self.within(end))

    def coarsen(self, ranges_max: int) -> None:
        """Fill the smallest gaps, so that no more ranges are left."""
        bounds = self._bounds
        if len(self) <= ranges_max:
            return
        gaps = range(1, len(bounds) - 1, 2)
        # The smallest are filled, as what is filled is compared for nothing.
        kept = sorted(nlargest(ranges_max - 1, gaps, key=lambda at: bounds[at + 1] - bounds[at]))
        inner = [bound for at in kept for bound in (bounds[at], bounds[at + 1])]
        self._bounds = array("q", [bounds[0], *inner, bounds[-1]])

    def copy(self) -> "RegionSet":
        same = RegionSet()
        same._bounds = self._bounds[:]
        return same

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = self._bounds
        return zip(bounds[::2], bounds[1::2], strict=True)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._bounds) // 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionSet) and self._bounds == other._bounds

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"RegionSet({list(self)})"


def regions_of(start: int, end: int) -> tuple[int, int]:
    """The range of regions that hold bytes from `start` to before `end`."""
    # Outwards at both ends: of a region one byte is enough to differ.
    return start // REGION_BYTES, -(-end // REGION_BYTES)


def ranges_allowed(image_count: int) -> int:
    """How many ranges each of so many images may have, so that all together stay bounded."""
    # Some for each image even where all together are too many: with none its marks would be lost.
    return max(RANGES_PER_IMAGE_MIN, min(RANGES_PER_IMAGE_MAX, RANGES_MAX // max(1, image_count)))
