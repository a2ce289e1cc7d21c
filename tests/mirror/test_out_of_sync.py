"""The set of regions that differ: never fewer than what was said, and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from fusemirror.identifiers import InodeNumber, RegionIndex
from fusemirror.limits import REGION_BYTES, REGIONS_PER_IMAGE_MAX
from fusemirror.mirror.out_of_sync import OutOfSync
from fusemirror.volume.regions import WHOLE_IMAGE

ONE, TWO = InodeNumber(1), InodeNumber(2)
SIZE = 10 * REGION_BYTES


@given(
    ranges=st.lists(st.tuples(st.integers(0, 2 * SIZE), st.integers(0, SIZE)), min_size=1),
    size=st.integers(0, 2 * SIZE),
)
def test_every_byte_of_a_range_lies_in_a_marked_region(ranges: list[tuple[int, int]], size: int) -> None:
    marks = OutOfSync()
    expected: set[int] = set()
    for start, length in ranges:
        marks.add_range(ONE, start, start + length)
        expected.update(range(start // REGION_BYTES, max(start, start + length - 1) // REGION_BYTES + 1))
    assert marks.regions(ONE, size) == sorted(index for index in expected if index * REGION_BYTES < size)
    assert marks.size_bytes({}) == len(expected) * REGION_BYTES


def test_an_empty_range_still_marks_the_image() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 5, 5)
    assert ONE in marks
    assert marks.regions(ONE, SIZE) == [0]


def test_a_region_ends_before_the_byte_that_begins_the_next() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, REGION_BYTES)
    assert marks.regions(ONE, SIZE) == [0]
    marks.add_range(ONE, 0, REGION_BYTES + 1)
    assert marks.regions(ONE, SIZE) == [0, 1]


def test_regions_behind_the_end_of_the_image_are_not_named() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 3 * REGION_BYTES, 4 * REGION_BYTES)
    assert marks.regions(ONE, 3 * REGION_BYTES) == []
    assert marks.regions(ONE, 3 * REGION_BYTES + 1) == [3]
    assert ONE in marks, "its size may differ"


def test_a_whole_image_has_the_regions_of_its_size() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, 1)
    marks.add_whole(ONE)
    assert marks.regions(ONE, 2 * REGION_BYTES + 1) == [0, 1, 2]
    assert marks.whole_images() == [ONE]
    assert marks.size_bytes({ONE: 100}) == 100


def test_a_range_adds_nothing_to_a_whole_image() -> None:
    marks = OutOfSync()
    marks.add_whole(ONE)
    marks.add_range(ONE, 0, 1)
    marks.add_marks({ONE: [RegionIndex(3)]})
    assert marks.whole_images() == [ONE]
    assert marks.regions(ONE, REGION_BYTES) == [0]


def test_a_truncation_to_the_end_of_all_files_takes_the_whole_image() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, 1 << 63)
    assert marks.whole_images() == [ONE]


def test_too_many_regions_become_the_whole_image() -> None:
    marks = OutOfSync()
    marks.add_marks({ONE: map(RegionIndex, range(REGIONS_PER_IMAGE_MAX))})
    assert not marks.whole_images()
    marks.add_marks({ONE: [RegionIndex(REGIONS_PER_IMAGE_MAX)]})
    assert marks.whole_images() == [ONE]


def test_a_mark_of_the_whole_image_swallows_the_regions_beside_it() -> None:
    marks = OutOfSync()
    marks.add_marks({ONE: [RegionIndex(1), WHOLE_IMAGE], TWO: [RegionIndex(2)]})
    assert marks.whole_images() == [ONE]
    assert marks.inodes() == [ONE, TWO]
    assert marks.size_bytes({ONE: 7}) == 7 + REGION_BYTES


def test_what_was_copied_and_confirmed_is_in_sync_again() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, SIZE)
    version = marks.version(ONE)
    marks.take(ONE, 0, 4)
    marks.take(ONE, 4, 6)
    assert marks.regions(ONE, SIZE) == []
    assert marks.size_bytes({}) == SIZE, "what is under way counts until it is confirmed"
    marks.confirm(ONE, 0, 4)
    assert marks.marks() == {ONE: set(range(4, 10))}
    marks.confirm(ONE, 4, 6)
    marks.finish(ONE, version)
    assert ONE not in marks
    assert len(marks) == 0
    marks.confirm(ONE, 0, 4)  # of an image that is no more
    marks.finish(ONE, version)


def test_a_mark_that_is_set_while_its_region_is_copied_stays() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, 1)
    version = marks.version(ONE)
    marks.take(ONE, 0, 1)
    marks.add_range(ONE, 0, 1)
    marks.confirm(ONE, 0, 1)
    marks.finish(ONE, version)
    assert marks.regions(ONE, SIZE) == [0]


def test_a_copy_that_was_cut_off_goes_on_where_it_was_confirmed() -> None:
    marks = OutOfSync()
    marks.add_whole(ONE)
    marks.add_range(TWO, 0, SIZE)
    for inode in (ONE, TWO):
        marks.take(inode, 0, 4)
        marks.take(inode, 4, 4)
        marks.confirm(inode, 0, 4)
    told = OutOfSync()
    told.add_marks(marks.marks())
    marks.give_back()
    for inode in (ONE, TWO):
        assert marks.regions(inode, SIZE) == list(range(4, 10))
        assert told.regions(inode, SIZE) == list(range(4, 10))


def test_a_crash_leaves_a_mark_of_an_image_whose_size_alone_may_differ() -> None:
    marks = OutOfSync()
    marks.add_range(ONE, 0, 1)
    marks.take(ONE, 0, 1)
    marks.confirm(ONE, 0, 1)
    told = OutOfSync()
    told.add_marks(marks.marks())
    assert ONE in told
