"""Pieces: nothing is lost or reordered, and no piece is larger than it may be."""

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fusemirror.pieces import first_piece, pieces

ITEMS = st.lists(st.binary(max_size=40))


@given(items=ITEMS, bytes_max=st.integers(1, 60), count_max=st.integers(1, 7))
def test_pieces_hold_all_items_within_the_bounds(items: list[bytes], bytes_max: int, count_max: int) -> None:
    found = list(pieces(items, len, bytes_max, count_max))
    assert [item for piece in found for item in piece] == items
    for piece in found:
        assert 0 < len(piece) <= count_max
        assert len(piece) == 1 or sum(map(len, piece)) <= bytes_max


@given(items=ITEMS, bytes_max=st.integers(1, 60), count_max=st.integers(1, 7))
def test_no_two_pieces_would_have_been_one(items: list[bytes], bytes_max: int, count_max: int) -> None:
    found = list(pieces(items, len, bytes_max, count_max))
    for piece, after in pairwise(found):
        assert len(piece) == count_max or sum(map(len, piece)) + len(after[0]) > bytes_max


@given(items=ITEMS, bytes_max=st.integers(1, 60))
def test_the_first_piece_is_the_first_of_the_pieces(items: list[bytes], bytes_max: int) -> None:
    assert first_piece(items, len, bytes_max) == next(pieces(items, len, bytes_max), [])


def test_the_first_piece_looks_at_one_item_more_at_most() -> None:
    seen: list[bytes] = []

    def endless() -> Iterator[bytes]:
        while True:
            seen.append(b"1234")
            yield seen[-1]

    assert first_piece(endless(), len, 12) == [b"1234"] * 3
    assert len(seen) == 4
