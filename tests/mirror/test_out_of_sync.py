"""The set of regions that differ: never fewer than what was said, and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import RANGES_MAX, RANGES_PER_IMAGE_MAX, REGION_BYTES
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.volume.region_set import REGIONS_END, RegionSet

ONE, TWO = InodeNumber(1), InodeNumber(2)
SIZE = 10 * REGION_BYTES


def regions_of(marks: OutOfSyncMap, size: int, inode: InodeNumber = ONE) -> list[int]:
    return [region for first, end in marks.ranges(inode, size) for region in range(first, end)]


def is_dense(_: InodeNumber) -> tuple[int, int]:
    return 1 << 62, 1 << 62


@given(
    ranges=st.lists(st.tuples(st.integers(0, 2 * SIZE), st.integers(0, SIZE)), min_size=1),
    size=st.integers(0, 2 * SIZE),
)
def test_every_byte_of_a_range_lies_in_a_marked_region(ranges: list[tuple[int, int]], size: int) -> None:
    marks = OutOfSyncMap()
    expected: set[int] = set()
    for start, length in ranges:
        marks.add_range(ONE, start, start + length)
        expected.update(range(start // REGION_BYTES, max(start, start + length - 1) // REGION_BYTES + 1))
    assert regions_of(marks, size) == sorted(index for index in expected if index * REGION_BYTES < size)
    assert marks.size_bytes(is_dense) == len(expected) * REGION_BYTES


def test_an_empty_range_still_marks_the_image() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 5, 5)
    assert ONE in marks
    assert regions_of(marks, SIZE) == [0]


def test_a_region_ends_before_the_byte_that_begins_the_next() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, REGION_BYTES)
    assert regions_of(marks, SIZE) == [0]
    marks.add_range(ONE, 0, REGION_BYTES + 1)
    assert regions_of(marks, SIZE) == [0, 1]


def test_regions_behind_the_end_of_the_image_are_not_named() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 3 * REGION_BYTES, 4 * REGION_BYTES)
    assert regions_of(marks, 3 * REGION_BYTES) == []
    assert regions_of(marks, 3 * REGION_BYTES + 1) == [3]
    assert ONE in marks, "its size may differ"


def test_a_whole_image_has_the_regions_of_its_size() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 1)
    marks.add_whole(ONE)
    assert regions_of(marks, 2 * REGION_BYTES + 1) == [0, 1, 2]
    assert marks.size_bytes({ONE: (100, 100)}.__getitem__) == 100


def test_holes_do_not_count() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 1 << 63)
    marks.add_range(TWO, 0, REGION_BYTES)
    assert marks.size_bytes({ONE: (1 << 40, 12_345)}.__getitem__) == 12_345 + REGION_BYTES


def test_what_lies_behind_the_end_does_not_count() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 3 * REGION_BYTES, 1 << 63)
    assert marks.size_bytes({ONE: (5 * REGION_BYTES, 5 * REGION_BYTES)}.__getitem__) == 2 * REGION_BYTES


def test_a_range_adds_nothing_to_a_whole_image() -> None:
    marks = OutOfSyncMap()
    marks.add_whole(ONE)
    marks.add_range(ONE, 0, 1)
    marks.add_marks({ONE: RegionSet([(3, 4)])})
    assert marks.marks() == {ONE: RegionSet([(0, REGIONS_END)])}


def test_a_truncation_to_the_end_of_all_files_takes_the_whole_image() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 1 << 63)
    assert marks.marks() == {ONE: RegionSet([(0, REGIONS_END)])}


def test_too_many_ranges_become_fewer_that_cover_them() -> None:
    marks = OutOfSyncMap()
    for index in range(RANGES_PER_IMAGE_MAX + 10):
        marks.add_range(ONE, 2 * index * REGION_BYTES, 2 * index * REGION_BYTES + 1)
    (marked,) = marks.marks().values()
    assert len(marked) <= RANGES_PER_IMAGE_MAX
    assert all(marked.covers(2 * index, 2 * index + 1) for index in range(RANGES_PER_IMAGE_MAX + 10))
    assert marked.count() <= 2 * (RANGES_PER_IMAGE_MAX + 10)


def test_many_images_share_what_may_be_kept() -> None:
    marks = OutOfSyncMap()
    images = 1_000
    for index in range(200):
        for inode in range(images):
            marks.add_range(InodeNumber(inode), 2 * index * REGION_BYTES, 2 * index * REGION_BYTES + 1)
    assert marks.range_count <= RANGES_MAX + images


def test_what_was_copied_and_confirmed_is_in_sync_again() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, SIZE)
    version = marks.version(ONE)
    marks.take(ONE, 0, 4)
    marks.take(ONE, 4, 10)
    assert regions_of(marks, SIZE) == []
    assert marks.size_bytes(is_dense) == SIZE, "what is under way counts until it is confirmed"
    marks.confirm(ONE, 0, 4)
    assert marks.marks() == {ONE: RegionSet([(4, 10)])}
    marks.confirm(ONE, 4, 10)
    marks.finish(ONE, version)
    assert ONE not in marks
    assert len(marks) == 0
    marks.confirm(ONE, 0, 4)  # of an image that is no more
    marks.finish(ONE, version)


def test_a_mark_that_is_set_while_its_region_is_copied_stays() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 1)
    version = marks.version(ONE)
    marks.take(ONE, 0, 1)
    marks.add_range(ONE, 0, 1)
    marks.confirm(ONE, 0, 1)
    marks.finish(ONE, version)
    assert regions_of(marks, SIZE) == [0]


def test_a_copy_that_was_cut_off_goes_on_where_it_was_confirmed() -> None:
    marks = OutOfSyncMap()
    marks.add_whole(ONE)
    marks.add_range(TWO, 0, SIZE)
    for inode in (ONE, TWO):
        marks.take(inode, 0, 4)
        marks.take(inode, 4, 8)
        marks.confirm(inode, 0, 4)
    told = OutOfSyncMap()
    told.add_marks(marks.marks())
    marks.give_back()
    for inode in (ONE, TWO):
        assert regions_of(marks, SIZE, inode) == list(range(4, 10))
        assert regions_of(told, SIZE, inode) == list(range(4, 10))


def test_a_crash_leaves_a_mark_of_an_image_whose_size_alone_may_differ() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 1)
    marks.take(ONE, 0, 1)
    marks.confirm(ONE, 0, 1)
    told = OutOfSyncMap()
    told.add_marks(marks.marks())
    assert ONE in told


def test_what_was_marked_since_is_known() -> None:
    marks = OutOfSyncMap()
    marks.add_range(ONE, 0, 10)
    marks.add_range(TWO, 0, 10)
    assert marks.inodes_since(0) == [ONE, TWO]
    newest = marks.newest_version
    assert marks.inodes_since(newest) == []
    marks.add_range(ONE, 0, 10)
    assert marks.inodes_since(newest) == [ONE]
    marks.take(TWO, 0, 1)
    marks.give_back()
    assert marks.inodes_since(newest) == [ONE, TWO]
