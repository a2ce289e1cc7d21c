"""The set of regions as ranges: the same as a set of numbers, at a cost that does not go by length."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.limits import (
    FILE_BYTES_MAX,
    RANGES_MAX,
    RANGES_PER_IMAGE_MAX,
    RANGES_PER_IMAGE_MIN,
    REGION_BYTES,
)
from fusemirror.volume.region_set import REGIONS_END, RegionSet, ranges_allowed, regions_of

NUMBERS = st.integers(0, 40)
CHANGES = st.lists(st.tuples(st.booleans(), NUMBERS, NUMBERS))


def members(regions: RegionSet) -> set[int]:
    return {region for first, end in regions for region in range(first, end)}


def made(changes: list[tuple[bool, int, int]]) -> tuple[RegionSet, set[int]]:
    regions, expected = RegionSet(), set[int]()
    for adds, first, end in changes:
        (regions.add if adds else regions.remove)(first, end)
        (expected.update if adds else expected.difference_update)(range(first, end))
    return regions, expected


@given(changes=CHANGES, first=NUMBERS, end=NUMBERS)
def test_it_is_the_same_as_a_set_of_numbers(
    changes: list[tuple[bool, int, int]], first: int, end: int
) -> None:
    regions, expected = made(changes)
    assert members(regions) == expected
    assert regions.count() == len(expected)
    assert list(regions.within(end)) == list(RegionSet((each, each + 1) for each in expected if each < end))
    if first < end:
        assert regions.covers(first, end) is (set(range(first, end)) <= expected)


@given(changes=CHANGES)
def test_ranges_never_touch_and_stand_in_order(changes: list[tuple[bool, int, int]]) -> None:
    regions, _ = made(changes)
    bounds = [bound for each in regions for bound in each]
    assert bounds == sorted(set(bounds))


@given(changes=CHANGES, more=CHANGES)
def test_a_union_has_what_either_has_and_leaves_the_other_alone(
    changes: list[tuple[bool, int, int]], more: list[tuple[bool, int, int]]
) -> None:
    (regions, expected), (other, others) = made(changes), made(more)
    union = regions.copy()
    union.update(other)
    assert members(union) == expected | others
    assert (members(regions), members(other)) == (expected, others)


@given(changes=CHANGES, ranges_max=st.integers(1, 10))
def test_a_coarser_one_lacks_nothing_and_has_the_smallest_gaps_filled(
    changes: list[tuple[bool, int, int]], ranges_max: int
) -> None:
    regions, expected = made(changes)
    ranges = list(regions)
    gaps = sorted(later[0] - former[1] for former, later in pairwise(ranges))
    regions.coarsen(ranges_max)
    assert len(regions) == min(len(ranges), ranges_max)
    assert members(regions) >= expected
    assert len(members(regions) - expected) == sum(gaps[: max(0, len(ranges) - ranges_max)])


def test_a_whole_image_costs_as_much_as_one_region() -> None:
    whole, one = RegionSet([(0, REGIONS_END)]), RegionSet([(7, 8)])
    assert sys.getsizeof(whole._bounds) == sys.getsizeof(one._bounds)
    assert whole.count() == REGIONS_END
    whole.remove(1 << 40, (1 << 40) + 1)
    assert list(whole) == [(0, 1 << 40), ((1 << 40) + 1, REGIONS_END)]


def test_the_last_byte_that_a_file_can_have_lies_in_the_last_region() -> None:
    assert regions_of(FILE_BYTES_MAX - 1, FILE_BYTES_MAX) == (REGIONS_END - 1, REGIONS_END)
    assert regions_of(0, REGION_BYTES) == (0, 1)
    assert regions_of(REGION_BYTES - 1, REGION_BYTES + 1) == (0, 2)


@pytest.mark.parametrize("images", [0, 1, 100, 10_000, 10_000_000])
def test_ranges_are_shared_out_among_the_images(images: int) -> None:
    allowed = ranges_allowed(images)
    assert RANGES_PER_IMAGE_MIN <= allowed <= RANGES_PER_IMAGE_MAX
    assert allowed in (RANGES_PER_IMAGE_MIN, RANGES_PER_IMAGE_MAX) or allowed * images <= RANGES_MAX
