"""A backup's marks reach the primary in messages that fit, whatever was marked, also an older primary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import MESSAGE_BYTES_MAX, RANGES_PER_IMAGE_MAX
from fusemirror.mirror.suspects import marks_of, suspects_of
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Suspects
from fusemirror.volume.region_set import REGIONS_END, RegionSet
from fusemirror.volume.regions import Marks

ONE = InodeNumber(1)


def received(messages: list[Suspects]) -> Marks:
    assert [message.last for message in messages] == [False] * (len(messages) - 1) + [True]
    union: Marks = {}
    for message in messages:
        assert len(encode(message)) <= MESSAGE_BYTES_MAX
        for inode, marked in marks_of(message, "peer").items():
            union.setdefault(inode, RegionSet()).update(marked)
    return union


RANGES = st.lists(st.tuples(st.integers(0, REGIONS_END - 50), st.integers(1, 50)), min_size=1)


@given(marks=st.dictionaries(st.integers(1, 1 << 62).map(InodeNumber), RANGES))
def test_what_is_told_is_what_is_marked(marks: dict[InodeNumber, list[tuple[int, int]]]) -> None:
    made = {
        inode: RegionSet((first, first + count) for first, count in ranges) for inode, ranges in marks.items()
    }
    assert received(list(suspects_of(made))) == made


def test_the_largest_of_each_fits() -> None:
    """232,000 marks were once one message that no connection takes, again at each meeting."""
    far = REGIONS_END // 2
    most = RegionSet((far + 2 * index, far + 2 * index + 1) for index in range(RANGES_PER_IMAGE_MAX))
    marks = {InodeNumber((1 << 62) + index): most for index in range(15)}
    marks |= {InodeNumber(index): RegionSet([(index, REGIONS_END)]) for index in range(5_000)}
    assert sum(map(len, marks.values())) > 232_000
    assert received(list(suspects_of(marks))) == marks


def test_no_marks_are_one_message() -> None:
    assert list(suspects_of({})) == [Suspects((), last=True, ranges=())]


def test_an_older_primary_compares_all_from_the_first_marked_region_on() -> None:
    message, _ = suspects_of({ONE: RegionSet([(5, 6), (1 << 40, 1 << 41)])})
    assert message.marks == ((ONE, (-1 - 5,)),)


def test_what_an_older_backup_tells_is_understood() -> None:
    message = Suspects(((ONE, (3, 4, -1 - 10)),), last=True)
    assert marks_of(message, "peer") == {ONE: RegionSet([(3, 5), (10, REGIONS_END)])}


@pytest.mark.parametrize("bounds", [(1,), (2, 2), (3, 2), (-1, 4), (0, REGIONS_END + 1), (0, 1, 2)], ids=str)
def test_what_cannot_be_ranges_ends_the_link(bounds: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match="peer"):
        marks_of(Suspects((), last=True, ranges=((ONE, bounds),)), "peer")


def test_what_cannot_be_a_region_ends_the_link() -> None:
    with pytest.raises(RemoteProtocolError, match="peer"):
        marks_of(Suspects(((ONE, (REGIONS_END,)),), last=True), "peer")
