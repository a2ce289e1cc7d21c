"""Pieces: whatever is made of what users made is cut by bytes.

Users decide how many names, attributes and rows there are, and how long each is; a record, a message and an
answer have bounds (`limits.py`). So nothing is built of users' items by their count alone: it goes in pieces.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def pieces(
    items: Iterable[T], size_of: Callable[[T], int], bytes_max: int, count_max: int = sys.maxsize
) -> Iterator[list[T]]:
    """All items in their order, in lists of `bytes_max` bytes and `count_max` items at most.

    An item that is larger by itself is a piece of its own: whoever made it keeps it within its bound.
    """
    piece: list[T] = []
    size_bytes = 0
    for item in items:
        size = size_of(item)
        if piece and (size_bytes + size > bytes_max or len(piece) >= count_max):
            yield piece
            piece, size_bytes = [], 0
        piece.append(item)
        size_bytes += size
    if piece:
        yield piece


def first_piece(
    items: Iterable[T], size_of: Callable[[T], int], bytes_max: int, count_max: int = sys.maxsize
) -> list[T]:
    """The first of the pieces, without a look at what comes after it; empty where there is no item."""
    return next(pieces(items, size_of, bytes_max, count_max), [])
