"""Rows: what may stand in a row of the catalog, by itself. `catalog.py` is the reference for their form.

Pure, and the one place that says so: rows that a peer sends are checked here where they arrive, and those
of every change before it is applied. What rows must be to each other is `Catalog.contradiction`.
"""

import stat
import struct
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from fusemirror.bounds import AnyChangeNumber, AnyIdentity
from fusemirror.change import Row, Table
from fusemirror.errors import BadRow
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import (
    CHANGE_TIME_NS_MAX,
    CHANGE_TIME_NS_RECEIVED_MAX,
    COUNTER_MAX,
    FILE_BYTES_MAX,
    GENERATIONS_MAX,
    INODE_NUMBER_MAX,
    INODE_NUMBER_RECEIVED_MAX,
    NAME_BYTES_MAX,
    RESERVED_PATH_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from fusemirror.volume.inode import INODE_ROW, ROW_BYTES_MIN, is_device
from fusemirror.volume.reservations import KEY_PREFIX, is_reservation

ENTRY_ROW = struct.Struct("<QBQ")  # inode, type, cookie
FILE_TYPES = frozenset((1, 2, 4, 6, 8, 10, 12))
"""fifo, character, directory, block, regular, symlink, socket: mode >> 12"""
COOKIES = 1 << 62

OWN_META = ("number", "journal_number", "next_inode", "time_ns", "checkpoint_begun", "checkpoint")
"""Rows of META that say where this volume stands: no change has them."""
OWN_META_KEYS = frozenset(name.encode() for name in OWN_META)
INODES_FROM_KEY = b"inodes_from"
"""A row of META: new inodes have this number (u64, big endian) or a higher one."""
SET_BACK_KEY = b"clock_set_back"
"""A row of META: two times (u64, big endian), see `catalog.SetBack`."""
SET_BACK_ROW = struct.Struct(">QQ")
GENERATIONS_KEY = b"generations"
"""A row of META: the lines of changes, the newest first (`mirror/histories.py`)."""
TERM_KEY = b"term"
"""A row of META: the term under which a primary was handed its role."""
_META_BYTES_MAX = RESERVED_PATH_BYTES_MAX + 1024

_directory_type = stat.S_IFDIR >> 12
_symlink_type = stat.S_IFLNK >> 12
_generations = msgspec.msgpack.Decoder(
    Annotated[tuple[tuple[AnyIdentity, AnyChangeNumber], ...], Meta(min_length=1, max_length=GENERATIONS_MAX)]
)
_term = msgspec.msgpack.Decoder(Annotated[int, Meta(ge=0, le=COUNTER_MAX)])


def check_rows(rows: Iterable[Row], *, received: bool = False) -> None:
    """Refuse rows that no catalog can hold, before any of them is applied. BadRow.

    With `received` their numbers leave room, too, for those that this host gives after them.
    """
    inode_max = INODE_NUMBER_RECEIVED_MAX if received else INODE_NUMBER_MAX
    time_max = CHANGE_TIME_NS_RECEIVED_MAX if received else CHANGE_TIME_NS_MAX
    for table, key, value in rows:
        check = _CHECKS.get(table)
        fault = "there is no such table" if check is None else check(key, value, inode_max, time_max)
        if fault is not None:
            raise BadRow(f"table {table}, key {key[:80].hex()}: {fault}")


def name_fault(name: bytes) -> str | None:
    """Why no directory can have such a name, or None."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_BYTES_MAX:
        return "no name that a file can have"
    return None


def inode_fault(
    key: bytes,
    value: bytes | None,
    inode_max: int = INODE_NUMBER_MAX,
    time_max: int = CHANGE_TIME_NS_MAX,
) -> str | None:
    """Why no row of INODES can be so, or None."""
    number = int.from_bytes(key, "big")
    if len(key) != 8 or not 0 < number <= inode_max:
        return "no inode's number"
    if value is None:
        return "the root directory never goes" if number == ROOT_INODE else None
    if len(value) < ROW_BYTES_MIN:
        return "too short for an inode"
    mode, _, _, _, rdev_or_birth, size, _, _, ctime_ns, parent = INODE_ROW.unpack_from(value)
    file_type = mode >> 12
    if file_type not in FILE_TYPES:
        return f"mode {mode:o} is of no type of file"
    if size > FILE_BYTES_MAX or ctime_ns > time_max:
        return "its size, or the time of its last change, is beyond what can be"
    if rdev_or_birth > time_max and not is_device(mode):
        return "it was made later than can be"
    if file_type == _directory_type:
        if not 0 < parent <= inode_max:
            return "a directory without a parent"
    elif parent:
        return "a parent, and no directory"
    if number == ROOT_INODE and not (file_type == _directory_type and parent == ROOT_INODE):
        return "the root is a directory, and its own parent"
    return _target_fault(value[ROW_BYTES_MIN:], is_symlink=file_type == _symlink_type)


def _target_fault(target: bytes, *, is_symlink: bool) -> str | None:
    if is_symlink:
        good = 0 < len(target) <= SYMLINK_BYTES_MAX and b"\0" not in target
        return None if good else "a symbolic link to nothing that can be"
    return "a target, and no symbolic link" if target else None


def _entry_fault(key: bytes, value: bytes | None, inode_max: int, _: int) -> str | None:
    if not 0 < int.from_bytes(key[:8], "big") <= inode_max:
        return "no directory's number"
    fault = name_fault(key[8:])
    if fault is not None or value is None:
        return fault
    if len(value) != ENTRY_ROW.size:
        return "not an entry"
    inode, file_type, cookie = ENTRY_ROW.unpack(value)
    if file_type not in FILE_TYPES or cookie >= COOKIES:
        return "an entry of no type of file, or in no place of a listing"
    return None if ROOT_INODE < inode <= inode_max else "an entry of no inode"


def _xattr_fault(key: bytes, value: bytes | None, inode_max: int, _: int) -> str | None:
    name = key[8:]
    if not 0 < int.from_bytes(key[:8], "big") <= inode_max:
        return "no inode's number"
    if not 0 < len(name) <= XATTR_NAME_BYTES_MAX or b"\0" in name:
        return "no name that an extended attribute can have"
    return "too long a value" if value is not None and len(value) > XATTR_VALUE_BYTES_MAX else None


def _meta_fault(key: bytes, value: bytes | None, inode_max: int, time_max: int) -> str | None:
    if not 0 < len(key) <= NAME_BYTES_MAX or key in OWN_META_KEYS:
        return "no key of a row that both hosts have"
    if key.startswith(KEY_PREFIX):
        return None if is_reservation(key, value) else "not a reservation"
    if value is None:
        return "the generations never go" if key == GENERATIONS_KEY else None
    if len(value) > _META_BYTES_MAX:
        return "too long a value"
    if key == SET_BACK_KEY:
        good = len(value) == SET_BACK_ROW.size and max(SET_BACK_ROW.unpack(value)) <= time_max
        return None if good else "no times of a clock"
    if key == INODES_FROM_KEY:
        return None if len(value) == 8 and int.from_bytes(value, "big") <= inode_max else "no inode's number"
    decoder = {GENERATIONS_KEY: _generations, TERM_KEY: _term}.get(key)
    try:
        if decoder is not None:
            decoder.decode(value)
    except msgspec.DecodeError as error:
        return str(error)
    return None


_CHECKS: dict[int, Callable[[bytes, bytes | None, int, int], str | None]] = {
    Table.META: _meta_fault,
    Table.INODES: inode_fault,
    Table.ENTRIES: _entry_fault,
    Table.XATTRS: _xattr_fault,
}
