"""Suspects: a backup's own marks on their way to the primary, in messages that fit, however many they are."""

from collections.abc import Iterator
from itertools import zip_longest

from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SUSPECT_INTS_PER_MESSAGE
from fusemirror.pieces import pieces
from fusemirror.protocol.messages import Suspects
from fusemirror.volume.region_set import REGIONS_END, RegionSet
from fusemirror.volume.regions import Marks

_Ranges = tuple[InodeNumber, tuple[int, ...]]


def suspects_of(marks: Marks) -> Iterator[Suspects]:
    """The messages that tell of all marks; the last one says so."""
    told = ((inode, tuple(bound for each in marked for bound in each)) for inode, marked in marks.items())
    for piece in pieces(told, _int_count, SUSPECT_INTS_PER_MESSAGE):
        yield _message(piece, last=False)
    yield _message([], last=True)


def _int_count(ranges: _Ranges) -> int:
    return 3 + len(ranges[1])  # the inode, and with the first of its regions for an older program once more


def _message(ranges: list[_Ranges], *, last: bool) -> Suspects:
    # To a program before ranges: all regions from the first marked one on.
    marks = tuple((inode, (-1 - bounds[0],)) for inode, bounds in ranges if bounds)
    return Suspects(marks, last, tuple(ranges))


def marks_of(message: Suspects, peer_name: str) -> Marks:
    """What a message tells of. RemoteProtocolError where that cannot be."""
    marks: Marks = {}
    for inode, ranges in _told(message):
        marked = marks.setdefault(inode, RegionSet())
        for first, end in ranges:
            if not 0 <= first < end <= REGIONS_END:
                raise RemoteProtocolError(peer_name, f"Suspects with regions {first} to {end} of an image")
            marked.add(first, end)
    return marks


def _told(message: Suspects) -> Iterator[tuple[InodeNumber, Iterator[tuple[int, int]]]]:
    if message.ranges is not None:
        for inode, bounds in message.ranges:
            yield inode, zip_longest(bounds[::2], bounds[1::2], fillvalue=-1)
        return
    for inode, regions in message.marks:
        yield inode, ((each, each + 1) if each >= 0 else (-1 - each, REGIONS_END) for each in regions)
