"""Reservations as rows of the catalog: which host holds a file, or the whole filesystem.

    table    key                                  value
    META     "reservation " and the inode (8,     `Reservation`, msgpack
             big-endian), 0 for all

They are changed as every row is, by numbered changes, so journal, mirror and both catalogs hold them,
over restarts, a role switch and a takeover.
"""

import msgspec

from fusemirror.change import Row, Table
from fusemirror.identifiers import InodeNumber

EVERYTHING = InodeNumber(0)
"""Stands for the whole filesystem."""

KEY_PREFIX = b"reservation "
_KEY_BYTES = len(KEY_PREFIX) + 8


class Reservation(msgspec.Struct, frozen=True, array_like=True):
    """Who holds it: the identity of a host. `path` is how the file was called when it was reserved."""

    holder: bytes
    since_ns: int
    path: bytes


_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(Reservation)


def reservation_row(inode: InodeNumber, reservation: Reservation | None) -> Row:
    """The row that holds a reservation; with None, that ends it."""
    key = KEY_PREFIX + inode.to_bytes(8, "big")
    return (Table.META, key, None if reservation is None else _encode(reservation))


def reserved_inode(key: bytes) -> InodeNumber:
    """What a key that begins with `KEY_PREFIX` is about; ValueError where it is none."""
    if len(key) != _KEY_BYTES:
        raise ValueError("not the key of a reservation")
    return InodeNumber(int.from_bytes(key[len(KEY_PREFIX) :], "big"))


def parse_reservation(value: bytes) -> Reservation:
    """The reservation of a row; ValueError where it is none."""
    return _decoder.decode(value)  # msgspec.DecodeError is a ValueError


def is_reservation(key: bytes, value: bytes | None) -> bool:
    """Whether a row of META with `KEY_PREFIX` can be read."""
    try:
        reserved_inode(key)
        if value is not None:
            parse_reservation(value)
    except ValueError:
        return False
    return True
