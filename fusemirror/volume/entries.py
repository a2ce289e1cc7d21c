"""Entries and keys: how rows of the catalog name inodes, and what a name in a directory stands for."""

import struct
from typing import NamedTuple

from fusemirror.identifiers import InodeNumber
from fusemirror.volume.rows import COOKIES, ENTRY_ROW, FILE_TYPES

_NUMBER = struct.Struct(">Q")

inode_key = _NUMBER.pack


class Entry(NamedTuple):
    """What a name in a directory stands for; `type` is the file type, mode >> 12."""

    inode: InodeNumber
    type: int
    cookie: int


def entry_key(parent: InodeNumber, name: bytes) -> bytes:
    return _NUMBER.pack(parent) + name


xattr_key = entry_key


def pack_entry(entry: Entry) -> bytes:
    return ENTRY_ROW.pack(*entry)


def unpack_entry(row: bytes) -> Entry:
    """The entry of a row; ValueError where it is none."""
    if len(row) != ENTRY_ROW.size or row[8] not in FILE_TYPES:
        raise ValueError("not an entry")
    entry = Entry._make(ENTRY_ROW.unpack(row))
    if entry.cookie >= COOKIES:
        raise ValueError("not a cookie")
    return entry


def key_inode(key: bytes) -> InodeNumber:
    """The inode that a key of INODES, ENTRIES or XATTRS begins with."""
    return InodeNumber(int.from_bytes(key[:8], "big"))
