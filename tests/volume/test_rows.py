"""What may stand in a row of the catalog: each table's limits, and what a peer may not send beyond them."""

from itertools import product

import msgspec
import pytest

from fusemirror.change import Row, Table
from fusemirror.errors import BadRow
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    CHANGE_TIME_NS_MAX,
    CHANGE_TIME_NS_RECEIVED_MAX,
    FILE_BYTES_MAX,
    INODE_NUMBER_MAX,
    INODE_NUMBER_RECEIVED_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from fusemirror.volume.catalog import new_directory
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry, xattr_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.reservations import KEY_PREFIX, Reservation, reservation_row
from fusemirror.volume.rows import check_rows

ROOT, FILE, OTHER = InodeNumber(1), InodeNumber(2), InodeNumber(3)


def inode(number: int = 2, **fields: object) -> Row:
    made = Inode(InodeNumber(number), 0o100644, 1, 0, 0, 0, 0, 0, 0, 0)
    for name, value in fields.items():
        setattr(made, name, value)
    return Table.INODES, number.to_bytes(8, "big"), made.pack()


def entry(name: bytes = b"name", parent: int = 1, inode: int = 2, kind: int = 8, cookie: int = 5) -> Row:
    packed = pack_entry(Entry(InodeNumber(inode), kind, cookie))
    return Table.ENTRIES, entry_key(InodeNumber(parent), name), packed


def xattr(name: bytes = b"user.a", value: bytes | None = b"v", number: int = 2) -> Row:
    return Table.XATTRS, xattr_key(InodeNumber(number), name), value


def meta(key: bytes, value: bytes | None) -> Row:
    return Table.META, key, value


def packed(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


GOOD: list[Row] = [
    inode(),
    inode(mode=0o104755, nlink=0, uid=(1 << 32) - 1, size=FILE_BYTES_MAX, atime_ns=-(1 << 63)),
    inode(mode=0o040755, parent=1),
    inode(mode=0o120777, target=b"x" * 4095),
    inode(mode=0o060644, rdev_or_birth=(1 << 64) - 1),
    inode(rdev_or_birth=CHANGE_TIME_NS_RECEIVED_MAX),
    (Table.INODES, inode_key(ROOT), new_directory(ROOT, ROOT, 0).pack()),
    (Table.INODES, inode_key(FILE), None),
    entry(b"x" * 255, cookie=(1 << 62) - 1),
    entry(b"..."),
    (Table.ENTRIES, entry_key(ROOT, b"gone"), None),
    xattr(b"x" * 255, bytes(XATTR_VALUE_BYTES_MAX)),
    xattr(value=None),
    meta(b"generations", packed([[b"g" * 16, 5]])),
    meta(b"term", packed(7)),
    meta(b"inodes_from", bytes(7) + b"\x09"),
    meta(b"clock_set_back", bytes(16)),
    meta(b"of a newer version", b"anything"),
    reservation_row(FILE, Reservation(b"h" * 16, 5, b"path")),
    reservation_row(FILE, None),
]

BAD: list[Row] = [
    (99, b"key", b"value"),
    (-1, b"key", b"value"),
    (Table.INODES, b"short", inode()[2]),
    (Table.INODES, bytes(8), inode()[2]),
    (Table.INODES, inode_key(FILE), b"short"),
    (Table.INODES, inode_key(ROOT), None),
    (Table.INODES, inode_key(ROOT), inode()[2]),
    (Table.INODES, inode_key(ROOT), new_directory(ROOT, FILE, 0).pack()),
    inode(mode=0),
    inode(mode=0o170644),
    inode(mode=0o1100644),
    inode(size=FILE_BYTES_MAX + 1),
    inode(mode=0o040755),
    inode(parent=1),
    inode(rdev_or_birth=CHANGE_TIME_NS_MAX + 1),
    inode(target=b"of a file"),
    inode(mode=0o120777),
    inode(mode=0o120777, target=b"x" * 4096),
    inode(mode=0o120777, target=b"x\0"),
    *(entry(name) for name in (b"", b".", b"..", b"a/b", b"/", b"a\0b", b"x" * 256)),
    (Table.ENTRIES, entry_key(ROOT, b"a/b"), None),
    (Table.ENTRIES, b"short", None),
    (Table.ENTRIES, entry_key(ROOT, b"name"), b"short"),
    entry(parent=0),
    entry(inode=0),
    entry(inode=1),
    entry(kind=3),
    entry(cookie=1 << 62),
    xattr(b""),
    xattr(b"a\0b"),
    xattr(b"x" * 256),
    xattr(value=bytes(XATTR_VALUE_BYTES_MAX + 1)),
    xattr(number=0),
    meta(b"", b"value"),
    meta(b"number", bytes(8)),
    meta(b"next_inode", bytes(8)),
    meta(b"x" * 256, b""),
    meta(b"x", bytes(1 << 17)),
    meta(b"generations", None),
    meta(b"generations", b"\xc1junk"),
    meta(b"generations", packed([])),
    meta(b"generations", packed([[b"g", -1]])),
    meta(b"generations", packed([[b"g" * 65, 1]])),
    meta(b"generations", packed([[b"g", 1]] * 65)),
    meta(b"term", packed(-1)),
    meta(b"inodes_from", bytes(9)),
    meta(b"clock_set_back", bytes(8)),
    meta(b"clock_set_back", b"\xff" * 16),
    meta(b"inodes_from", b"\xff" * 8),
    meta(KEY_PREFIX, b"x"),
    meta(KEY_PREFIX + bytes(8), b"\xc1"),
]


@pytest.mark.parametrize(("row", "received"), list(product(GOOD, (False, True))))
def test_what_a_catalog_can_hold_is_good(row: Row, received: bool) -> None:
    check_rows([row], received=received)


@pytest.mark.parametrize(("row", "received"), list(product(BAD, (False, True))))
def test_what_no_catalog_can_hold_is_refused(row: Row, received: bool) -> None:
    with pytest.raises(BadRow, match=f"no catalog can hold: table {row[0]:d}, key"):
        check_rows([GOOD[0], row], received=received)


@pytest.mark.parametrize(
    "row",
    [
        inode(INODE_NUMBER_MAX),
        inode(ctime_ns=CHANGE_TIME_NS_RECEIVED_MAX + 1),
        inode(mode=0o040755, parent=INODE_NUMBER_RECEIVED_MAX + 1),
        entry(inode=INODE_NUMBER_RECEIVED_MAX + 1),
        meta(b"inodes_from", (INODE_NUMBER_RECEIVED_MAX + 1).to_bytes(8, "big")),
    ],
)
def test_what_a_peer_sends_leaves_room_for_what_comes_after(row: Row) -> None:
    check_rows([row])
    with pytest.raises(BadRow):
        check_rows([row], received=True)
