"""Contradictions: whether rows that come from the peer would fit each other, and those that are here.

It looks at what is cheap to look at: a name stands for an inode of its type, in a directory; a directory is
where it says, and not inside itself; no inode becomes one of another type.
"""

import errno
import stat
import struct
from collections.abc import Iterable

from fusemirror.change import AnyChange, CopyChange, DataChange, Row, Table
from fusemirror.errors import BadChange, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import Entry, key_inode, unpack_entry
from fusemirror.volume.inode import ROW_BYTES_MIN

_DIRECTORY = stat.S_IFDIR >> 12
_PLACE = struct.Struct("<I52xQ")  # of an inode's row: its mode and its parent
_Place = tuple[int, InodeNumber]
assert _PLACE.size == ROW_BYTES_MIN


def contradiction_of(
    catalog: Catalog, rows: Iterable[Row], *, partial: bool = False, retyped: bool = False
) -> str | None:
    """Why rows that `check_rows` found good would contradict each other, or the rows that are here; or
    None. With `partial`, what is not here may have yet to come; with `retyped`, types here may be wrong.
    """
    rows = list(rows)
    judge = _Judge(catalog, rows, partial=partial, retyped=retyped)
    for number, place in judge.fresh.items():
        fault = None if place is None else judge.of_inode(number, place)
        if fault is not None:
            return f"inode {number}: {fault}"
    for table, key, value in rows:
        if table == Table.ENTRIES and value is not None:
            fault = judge.of_entry(key_inode(key), unpack_entry(value))
            if fault is not None:
                return f"directory {key_inode(key)}, name {key[8:]!r}: {fault}"
    return None


def check_change(catalog: Catalog, change: AnyChange) -> None:
    """Refuse a change whose rows would contradict the catalog, or each other. BadChange."""
    contradiction = contradiction_of(catalog, change.rows, partial=catalog.copying)
    if contradiction is not None:
        raise BadChange(contradiction)


def check_images(catalog: Catalog, change: DataChange) -> None:
    """What a data change concerns must be files; but a copy of the catalog may have yet to bring them.
    OperationFailed (ESTALE), BadChange.
    """
    for number in (change.inode, change.source) if isinstance(change, CopyChange) else (change.inode,):
        inode = catalog.inode(number)
        if inode is None:
            if not catalog.copying:
                raise OperationFailed(errno.ESTALE)
        elif not inode.is_regular:
            raise BadChange(f"inode {number} is no file")


class _Judge:
    """Looks at a catalog as it would be with some rows."""

    def __init__(self, catalog: Catalog, rows: list[Row], *, partial: bool, retyped: bool) -> None:
        self._catalog = catalog
        self._partial = partial
        self._retyped = retyped
        self.fresh: dict[InodeNumber, _Place | None] = {
            key_inode(key): None if value is None else _PLACE.unpack_from(value)
            for table, key, value in rows
            if table == Table.INODES
        }

    def _place(self, number: InodeNumber) -> _Place | None:
        if number in self.fresh:
            return self.fresh[number]
        inode = self._catalog.sound_inode(number)
        return None if inode is None else (inode.mode, inode.parent)

    def of_inode(self, number: InodeNumber, place: _Place) -> str | None:
        """What is wrong with an inode that is new, or another than before."""
        before = self._catalog.sound_inode(number)
        mode, parent = place
        if not self._retyped and before is not None and before.mode >> 12 != mode >> 12:
            return "it was of another type"
        if mode >> 12 != _DIRECTORY or (before is not None and before.parent == parent):
            return None
        passed = {number}
        # One that is new is in none that was there before, unless that moves too, and is looked at itself.
        while parent != ROOT_INODE and (before is not None or parent in self.fresh):
            if parent in passed:
                return "a directory inside itself"
            passed.add(parent)
            above = self._place(parent)
            if above is None:
                return None  # the entry tells, where there is one
            parent = above[1]
        return None

    def of_entry(self, parent: InodeNumber, entry: Entry) -> str | None:
        """What is wrong with a name."""
        directory, inode = self._place(parent), self._place(entry.inode)
        if directory is None or inode is None:
            return None if self._partial else "it stands in, or for, nothing"
        if directory[0] >> 12 != _DIRECTORY:
            return "it stands in no directory"
        if entry.type != inode[0] >> 12:
            return "of another type than its inode"
        if entry.type == _DIRECTORY and inode[1] != parent:
            return "a second name of a directory"
        return None
