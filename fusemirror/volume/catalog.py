"""The catalog: names and attributes of a volume, in LMDB. This page is the reference for its rows.

    table    key                              value
    META     a name                           bytes
    INODES   inode, 8 bytes big-endian        `Inode.pack()`
    ENTRIES  parent inode, name               inode (8), type (1: mode >> 12), cookie (8), little-endian
    XATTRS   inode, name                      value

Rows of META are the generations (`mirror/histories.py`) and reservations (`reservations.py`).
A cookie is the place of a name in a listing for as long as there is the name, whatever inode it stands for:
it grows with time, is given by the primary, and is below 2**62. The names `number`, `journal_number`,
`next_inode`, `time_ns`, `checkpoint_begun` and `checkpoint` of META say where this volume stands; they are
the catalog's own, written at each commit and shown to nobody.

Two tables are derived from the others and are not rows of any change:

    LISTING  parent inode, cookie (8, big-endian)   the name
    ORPHANS  inode                                  empty: an inode without names, nlink 0

One write transaction is always open and all reads go through it, so what was put is seen at once;
`commit` makes it durable. What a killed process had not committed is put again from the journal.
Attributes that change with every write (size, times) change in the cached `Inode` and reach their
row at the next commit; until then the image file holds them.
"""

import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import xxhash

from fusemirror.change import Row, Table, row_bytes
from fusemirror.errors import DiskFailed, DiskFull, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import (
    CATALOG_BYTES_PER_CHANGE,
    CATALOG_MAP_BYTES,
    INODES_CACHED_MAX,
    NAME_BYTES_MAX,
)
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.inode import DIRECTORY_SIZE, ROW_BYTES_MIN, Inode
from fusemirror.volume.probe import is_readable
from fusemirror.volume.reservations import (
    KEY_PREFIX,
    Reservation,
    is_reservation,
    parse_reservation,
    reserved_inode,
)
from fusemirror.volume.rows import (
    COOKIES,
    ENTRY_ROW,
    FILE_TYPES,
    INODES_FROM_KEY,
    OWN_META,
    OWN_META_KEYS,
    SET_BACK_KEY,
    SET_BACK_ROW,
    inode_fault,
)
from fusemirror.xattrs import CAPABILITY

_NUMBER = struct.Struct(">Q")
_COOKIE_KEY = struct.Struct(">QQ")
_LENGTHS = struct.Struct("<II")
_BEFORE_FIRST = ChangeNumber(0)

inode_key = _NUMBER.pack

_DIRECTORY = stat.S_IFDIR >> 12
_PLACE = struct.Struct("<I52xQ")  # of an inode's row: its mode and its parent
_Place = tuple[int, InodeNumber]
_Places = dict[InodeNumber, _Place | None]
assert _PLACE.size == ROW_BYTES_MIN


class SetBack(NamedTuple):
    """The clock was set back, the last time at `to_ns`; times up to `from_ns` had been given before.

    Of two times that of the later change is the later one; but for those after `to_ns` that had been given
    before, up to `from_ns`: they are of earlier changes.
    """

    from_ns: int
    to_ns: int


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


def new_directory(number: InodeNumber, parent: InodeNumber, time_ns: int) -> Inode:
    """An empty directory of root's that all may read."""
    return Inode(
        number=number,
        mode=0o040755,
        nlink=2,
        uid=0,
        gid=0,
        rdev=0,
        size=DIRECTORY_SIZE,
        atime_ns=time_ns,
        mtime_ns=time_ns,
        ctime_ns=time_ns,
        parent=parent,
        birth_ns=max(time_ns, 0),  # of a damaged row it may be any
    )


def set_back_row(set_back: SetBack) -> Row:
    return Table.META, SET_BACK_KEY, SET_BACK_ROW.pack(*set_back)


def key_inode(key: bytes) -> InodeNumber:
    """The inode that a key of INODES, ENTRIES or XATTRS begins with."""
    return InodeNumber(int.from_bytes(key[:8], "big"))


class Catalog:
    """One LMDB environment. Every method belongs to one thread. DiskFailed where LMDB cannot go on."""

    number: ChangeNumber  # all three as of the last commit
    journal_number: ChangeNumber
    time_ns: int
    checkpoints: tuple[int, int]  # the last that was begun with the peer, and the last that was ended
    changes_since_commit: int
    reservations: dict[InodeNumber, Reservation]  # as the rows of META have them
    set_back: SetBack  # as the row of META has it
    _next_inode: int

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        """Open the catalog in `directory`, or make one there that has no rows, not even a root.

        VolumeDamaged for one that cannot be opened.
        """
        self._directory = directory
        self._environment = _open_environment(directory, create=create)
        try:
            self._begin()
            self._tables = [self._open_table(table.name, create=create) for table in Table]
            self._meta, self._inodes, self._entries, self._xattrs = self._tables
            self._listing = self._open_table("LISTING", create=create)
            self._orphans_table = self._open_table("ORPHANS", create=create)
            self._txn.commit()  # the handles would end with a transaction that is rolled back
            self._begin()
            self._cached: dict[InodeNumber, Inode] = {}
            self._touched: dict[InodeNumber, Inode] = {}  # newer than their rows
            self._flushed: dict[InodeNumber, Inode] = {}  # as their rows, which are not committed
            self._load()
        except lmdb.Error as error:
            self._environment.close()
            raise VolumeDamaged(directory.parent, f"{directory.name}: {error}") from error
        except VolumeDamaged:
            self._environment.close()
            raise

    @classmethod
    def create(cls, directory: Path) -> None:
        """On return there durably is a catalog with nothing but a root directory. DiskFailed, OSError."""
        catalog = cls(directory, create=True)
        root = new_directory(ROOT_INODE, parent=ROOT_INODE, time_ns=0)
        catalog.apply_rows([(Table.INODES, inode_key(ROOT_INODE), root.pack())])
        catalog.commit(ChangeNumber(0), ChangeNumber(0), 0)
        catalog.close()
        sync_directory(directory)

    # --- reading -------------------------------------------------------------------------------------

    @property
    def next_inode(self) -> InodeNumber:
        """One more than the highest inode number ever put."""
        return InodeNumber(self._next_inode)

    def meta(self, name: bytes) -> bytes | None:
        """The value of a row of META, or None."""
        return self._get(name, self._meta)

    def inode(self, number: InodeNumber) -> Inode | None:
        """The inode, or None. Do not keep it over an await: the cache may make another object of it.

        VolumeDamaged for a row that no change can have put there.
        """
        inode = self._cached.get(number)
        if inode is not None:
            return inode
        key = _NUMBER.pack(number)
        row = self._get(key, self._inodes)
        if row is None:
            return None
        fault = inode_fault(key, row)
        if fault is not None:
            raise self._damaged(Table.INODES, key, fault)
        return self._keep(Inode.unpack(number, row))

    def stored_inode(self, number: InodeNumber) -> Inode | None:
        """The inode as its row has it, right or wrong, for who repairs or rescues; or None.

        VolumeDamaged for a row that is too short to be an inode.
        """
        inode = self._cached.get(number)
        key = _NUMBER.pack(number)
        if inode is not None or (row := self._get(key, self._inodes)) is None:
            return inode
        if len(row) < ROW_BYTES_MIN:
            raise self._damaged(Table.INODES, key)
        return Inode.unpack(number, row)

    def sound_inode(self, number: InodeNumber) -> Inode | None:
        """The inode; None, too, for a row that no change can have put there: what takes its place is new."""
        inode = self._cached.get(number)
        if inode is not None:
            return inode
        inode = self.stored_inode(number)
        if inode is None or inode_fault(_NUMBER.pack(number), inode.pack()) is not None:
            return None
        return self._keep(inode)

    def size(self, number: InodeNumber) -> int:
        """How long the file is, as its row has it; 0 where there is no such inode. VolumeDamaged."""
        inode = self.stored_inode(number)
        return 0 if inode is None else inode.size

    def entry(self, parent: InodeNumber, name: bytes) -> Entry | None:
        """What `name` in directory `parent` stands for, or None. VolumeDamaged."""
        key = _NUMBER.pack(parent) + name
        if len(name) > NAME_BYTES_MAX or not name:
            return None
        value = self._get(key, self._entries)
        return None if value is None else self._unpack_entry(key, value)

    def listing(self, parent: InodeNumber, after_cookie: int, limit: int) -> list[tuple[int, bytes, Entry]]:
        """At most `limit` entries of a directory with cookies above `after_cookie`, in their order."""
        found: list[tuple[int, bytes, Entry]] = []
        for key, name in self._walk(self._listing, _COOKIE_KEY.pack(parent, after_cookie + 1)):
            listed_parent, cookie = _COOKIE_KEY.unpack(key)
            if listed_parent != parent or len(found) >= limit:
                break
            entry = self.entry(parent, name)
            if entry is None or entry.cookie != cookie:
                raise VolumeDamaged(self._directory.parent, f"listing of directory {parent}: {name!r}")
            found.append((cookie, name, entry))
        return found

    def is_empty(self, parent: InodeNumber) -> bool:
        return not self._has_prefix(self._entries, _NUMBER.pack(parent))

    def xattr(self, inode: InodeNumber, name: bytes) -> bytes | None:
        if len(name) > NAME_BYTES_MAX:
            return None
        return self._get(xattr_key(inode, name), self._xattrs)

    def xattrs(self, inode: InodeNumber) -> list[bytes]:
        """The names of the extended attributes, in byte order."""
        return list(self.xattr_names(inode))

    def xattr_names(self, inode: InodeNumber) -> Iterator[bytes]:
        """The same one by one, without their values. Nothing may be put while they are walked."""
        prefix = _NUMBER.pack(inode)
        for key in self.keys_from(Table.XATTRS, prefix):
            if not key.startswith(prefix):
                break
            yield key[8:]

    def has_capability(self, inode: Inode) -> bool:
        """Whether the inode has `security.capability`. The answer is kept: each write asks."""
        if inode.capable is None:
            inode.capable = self.xattr(inode.number, CAPABILITY) is not None
        return inode.capable

    def has_xattrs(self, inode: InodeNumber) -> bool:
        return self._has_prefix(self._xattrs, _NUMBER.pack(inode))

    def orphans(self) -> list[InodeNumber]:
        """The inodes that have no name any more and wait to be purged, in order."""
        return sorted(self._orphans)

    def is_orphan(self, inode: InodeNumber) -> bool:
        return inode in self._orphans

    def inode_count(self) -> int:
        try:
            return int(self._txn.stat(self._inodes)["entries"])
        except lmdb.Error as error:
            raise self._failure(error) from error

    def rows(
        self, table: int, after_key: bytes | None, limit: int, bytes_max: int = sys.maxsize
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` rows of a table with keys above `after_key`, in the order of keys, and no more
        than `bytes_max` of them but one; none only where there is none.
        """
        self.flush_touched()
        first = b"\x00" if after_key is None else after_key + b"\x00"
        found: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for key, value in self._walk(self._tables[table], first):
            if table == Table.META and key in OWN_META_KEYS:
                continue
            size_bytes += row_bytes((table, key, value))
            if len(found) >= limit or (found and size_bytes > bytes_max):
                break
            found.append((key, value))
        return found

    def is_shared(self, table: int, key: bytes) -> bool:
        """Whether both volumes should have the row: the catalog's own say where this one stands."""
        return table != Table.META or key not in OWN_META_KEYS

    def rows_from(self, table: int, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table from key `first` on. Nothing may be put while they are walked."""
        return self._walk(self._tables[table], first)

    def keys_from(self, table: int, first: bytes) -> Iterator[bytes]:
        """All keys of a table from `first` on; the values are not read. Nothing may be put meanwhile."""
        try:
            with self._txn.cursor(db=self._tables[table]) as cursor:
                if cursor.set_range(first):
                    yield from cursor.iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise self._failure(error) from error

    def digest(self, table: int, first: bytes, last: bytes, count_max: int = sys.maxsize) -> tuple[int, int]:
        """How many rows have first <= key <= last, and a checksum of all their keys and values.

        Where there are more than `count_max`, the count is above it and the rest is not looked at.
        """
        self.flush_touched()
        count, digest = 0, xxhash.xxh3_64()
        for key, value in self._walk(self._tables[table], first or b"\x00"):
            if key > last or count > count_max:
                break
            if table == Table.META and key in OWN_META_KEYS:
                continue
            count += 1
            digest.update(_LENGTHS.pack(len(key), len(value)) + key + value)
        return count, digest.intdigest()

    def contradiction(
        self, rows: Iterable[Row], *, partial: bool = False, retyped: bool = False
    ) -> str | None:
        """Why rows that `check_rows` found good would contradict each other, or the rows that are here; or
        None. With `partial`, what is not here may have yet to come; with `retyped`, types here may be wrong.

        Looks at what is cheap to look at: a name stands for an inode of its type, in a directory; a directory
        is where it says, and not inside itself; no inode becomes one of another type.
        """
        rows = list(rows)
        fresh: _Places = {
            key_inode(key): None if value is None else _PLACE.unpack_from(value)
            for table, key, value in rows
            if table == Table.INODES
        }
        for number, place in fresh.items():
            fault = None if place is None else self._inode_contradiction(number, place, fresh, retyped)
            if fault is not None:
                return f"inode {number}: {fault}"
        for table, key, value in rows:
            if table == Table.ENTRIES and value is not None:
                fault = self._entry_contradiction(key_inode(key), unpack_entry(value), fresh, partial=partial)
                if fault is not None:
                    return f"directory {key_inode(key)}, name {key[8:]!r}: {fault}"
        return None

    def _with(self, number: InodeNumber, fresh: "_Places") -> "_Place | None":
        if number in fresh:
            return fresh[number]
        inode = self.sound_inode(number)
        return None if inode is None else (inode.mode, inode.parent)

    def _inode_contradiction(
        self, number: InodeNumber, place: "_Place", fresh: "_Places", retyped: bool
    ) -> str | None:
        before = self.sound_inode(number)
        mode, parent = place
        if not retyped and before is not None and before.mode >> 12 != mode >> 12:
            return "it was of another type"
        if mode >> 12 != _DIRECTORY or (before is not None and before.parent == parent):
            return None
        passed = {number}
        # One that is new is in none that was there before, unless that moves too, and is looked at itself.
        while parent != ROOT_INODE and (before is not None or parent in fresh):
            if parent in passed:
                return "a directory inside itself"
            passed.add(parent)
            above = self._with(parent, fresh)
            if above is None:
                return None  # the entry tells, where there is one
            parent = above[1]
        return None

    def _entry_contradiction(
        self, parent: InodeNumber, entry: Entry, fresh: "_Places", *, partial: bool
    ) -> str | None:
        directory, inode = self._with(parent, fresh), self._with(entry.inode, fresh)
        if directory is None or inode is None:
            return None if partial else "it stands in, or for, nothing"
        if directory[0] >> 12 != _DIRECTORY:
            return "it stands in no directory"
        if entry.type != inode[0] >> 12:
            return "of another type than its inode"
        if entry.type == _DIRECTORY and inode[1] != parent:
            return "a second name of a directory"
        return None

    # --- changing ------------------------------------------------------------------------------------

    def touch(self, inode: Inode) -> None:
        """The attributes of a cached inode differ from its row now; the row follows by the next commit."""
        if inode.number not in self._touched:
            self._touched[inode.number] = inode
            self.changes_since_commit += 1

    def apply_rows(self, rows: Iterable[Row], number: ChangeNumber = _BEFORE_FIRST) -> list[InodeNumber]:
        """Put and remove rows that `check_rows` found good; the inodes that were removed.

        A cached inode changes in place and remembers `number` as its last change. DiskFailed: some
        rows may be applied, and the catalog must be rolled back.
        """
        removed: list[InodeNumber] = []
        size_bytes = 0
        try:
            for table, key, value in rows:
                size_bytes += len(key) + len(value or b"")
                if table == Table.INODES:
                    if value is None:
                        removed.append(self._remove_inode(key))
                    else:
                        self._put_inode(key, value, number)
                elif table == Table.ENTRIES:
                    self._put_entry(key, value)
                elif table == Table.META:
                    self._put_meta(key, value)
                else:
                    self._put_xattr(key, value)
        except lmdb.Error as error:
            raise self._failure(error) from error
        finally:
            self.changes_since_commit += 1 + size_bytes // CATALOG_BYTES_PER_CHANGE
        return removed

    def flush_touched(self) -> None:
        """Put the rows of all touched inodes. DiskFailed."""
        try:
            for number, inode in self._touched.items():
                self._txn.put(_NUMBER.pack(number), inode.pack(), db=self._inodes)
        except lmdb.Error as error:
            raise self._failure(error) from error
        self._flushed.update(self._touched)
        self._touched.clear()

    def commit(self, number: ChangeNumber, journal_number: ChangeNumber, time_ns: int) -> None:
        """On return all rows are durable, as of change `number` and record `journal_number`.

        DiskFailed: nothing since the last commit is in the catalog; see `rollback`.
        """
        self.flush_touched()
        place = (number, journal_number, self._next_inode, time_ns, *self.checkpoints)
        try:
            for name, value in zip(OWN_META, place, strict=True):
                self._txn.put(name.encode(), _NUMBER.pack(value), db=self._meta)
            self._txn.commit()
        except lmdb.Error as error:
            raise self._failure(error) from error
        self._begin()
        self._flushed.clear()
        self.number, self.journal_number, self.time_ns = number, journal_number, time_ns
        self.changes_since_commit = 0

    def commit_unfinished(self) -> None:
        """Commit a copy under way: its place is not written, so it does not count as a catalog yet."""
        self.flush_touched()
        try:
            self._txn.commit()
        except lmdb.Error as error:
            raise self._failure(error) from error
        self._begin()
        self._flushed.clear()
        self.changes_since_commit = 0

    def rollback(self) -> list[Inode]:
        """Go back to the last commit; the inodes whose newest attributes were in memory only.

        The caller applies the journal again, and then `adopt`s those inodes.
        """
        self._txn.abort()
        self._begin()
        unsaved = [*self._flushed.values(), *self._touched.values()]
        self._cached.clear()
        self._touched.clear()
        self._flushed.clear()
        self._load()
        return unsaved

    def adopt(self, inode: Inode) -> None:
        """Take an inode back into the cache, with its attributes, unless it has gone."""
        if self.inode(inode.number) is not None:
            self._cached[inode.number] = inode
            self.touch(inode)

    # --- checking and mending (`check`) ----------------------------------------------------------------

    def discard(self, table: Table, key: bytes) -> None:
        """Remove a row whatever it holds, and leave the derived tables as they are. DiskFailed."""
        if table == Table.INODES and len(key) == 8:
            self._forget_inode(key_inode(key))
        try:
            self._txn.delete(key, db=self._tables[table])
        except lmdb.Error as error:
            raise self._failure(error) from error
        if table == Table.META:
            self._load_reservations()
        self.changes_since_commit += 1

    def reserve_inodes(self, last: InodeNumber) -> None:
        """Inode numbers up to `last` are not given again."""
        self._next_inode = max(self._next_inode, last + 1)
        self.changes_since_commit += 1

    def derived_rows_wrong(self) -> int:
        """How many rows of the derived tables are missing, wrong or too many."""
        listing = dict(self._walk(self._listing, b"\x00"))
        orphans = {key for key, _ in self._walk(self._orphans_table, b"\x00")}
        right_listing, right_orphans = self._derived()
        return len(listing.items() ^ right_listing.items()) + len(orphans ^ right_orphans)

    def rebuild_derived(self) -> None:
        """On return the derived tables agree with the others. DiskFailed."""
        listing, orphans = self._derived()
        try:
            self._txn.drop(self._listing, delete=False)
            self._txn.drop(self._orphans_table, delete=False)
            for key, name in listing.items():
                self._txn.put(key, name, db=self._listing)
            for key in orphans:
                self._txn.put(key, b"", db=self._orphans_table)
        except lmdb.Error as error:
            raise self._failure(error) from error
        self._orphans = {key_inode(key) for key in orphans}
        self.changes_since_commit += 1

    def _derived(self) -> tuple[dict[bytes, bytes], set[bytes]]:
        """What the derived tables should hold, of all rows that can be read."""
        self.flush_touched()
        listing = {
            key[:8] + _NUMBER.pack(unpack_entry(value).cookie): key[8:]
            for key, value in self._walk(self._entries, b"\x00")
            if _is_entry(value)
        }
        orphans = {
            key
            for key, row in self._walk(self._inodes, b"\x00")
            if len(row) >= ROW_BYTES_MIN and Inode.unpack(InodeNumber(0), row).nlink == 0
        }
        return listing, orphans

    @property
    def finished(self) -> bool:
        """Whether the catalog was ever committed with its place: False for a copy that was not ended."""
        return self._own_meta("number") is not None

    def close(self) -> None:
        """Release everything; what was not committed is gone."""
        self._txn.abort()
        self._environment.close()

    # --- inside --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._txn: Any = self._environment.begin(write=True)

    def _open_table(self, name: str, *, create: bool) -> Any:
        return self._environment.open_db(name.encode(), txn=self._txn, create=create)

    def _load(self) -> None:
        """What is kept in memory of the committed state."""
        self.changes_since_commit = 0
        self.number = ChangeNumber(self._own_meta("number") or 0)
        self.journal_number = ChangeNumber(self._own_meta("journal_number") or 0)
        self.time_ns = self._own_meta("time_ns") or 0
        self.checkpoints = (self._own_meta("checkpoint_begun") or 0, self._own_meta("checkpoint") or 0)
        self._next_inode = self._own_meta("next_inode") or 2
        self._orphans = {key_inode(key) for key, _ in self._walk(self._orphans_table, b"\x00")}
        set_back = self._txn.get(SET_BACK_KEY, db=self._meta) or SET_BACK_ROW.pack(0, 0)
        if len(set_back) != SET_BACK_ROW.size:
            raise self._damaged(Table.META, SET_BACK_KEY)
        self.set_back = SetBack._make(SET_BACK_ROW.unpack(set_back))
        self._load_reservations()

    def _load_reservations(self) -> None:
        """Those that can be read; the others are for `check` to find."""
        self.reservations = {}
        for key, value in self._walk(self._meta, KEY_PREFIX):
            if not key.startswith(KEY_PREFIX):
                break
            if is_reservation(key, value):
                self.reservations[reserved_inode(key)] = parse_reservation(value)

    def _own_meta(self, name: str) -> int | None:
        value = self._txn.get(name.encode(), db=self._meta)
        if value is None:
            return None
        if len(value) != 8:
            raise self._damaged(Table.META, name.encode())
        return int.from_bytes(value, "big")

    def _get(self, key: bytes, table: Any) -> bytes | None:
        try:
            value: bytes | None = self._txn.get(key, db=table)
        except lmdb.Error as error:
            raise self._failure(error) from error
        return value

    def _walk(self, table: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `first` on. Nothing may be put while it is walked."""
        try:
            with self._txn.cursor(db=table) as cursor:
                if cursor.set_range(first):
                    yield from cursor
        except lmdb.Error as error:
            raise self._failure(error) from error

    def _has_prefix(self, table: Any, prefix: bytes) -> bool:
        try:
            with self._txn.cursor(db=table) as cursor:
                return bool(cursor.set_range(prefix)) and cursor.key().startswith(prefix)
        except lmdb.Error as error:
            raise self._failure(error) from error

    def _put_inode(self, key: bytes, row: bytes, number: ChangeNumber) -> None:
        inode_number = key_inode(key)
        self._txn.put(key, row, db=self._inodes)
        inode = self._cached.get(inode_number)
        if inode is None:
            inode = self._keep(Inode.unpack(inode_number, row))
        else:
            inode.load(row)
            self._touched.pop(inode_number, None)
        inode.changed = number
        self._next_inode = max(self._next_inode, inode_number + 1)
        if inode.nlink == 0:
            self._orphans.add(inode_number)
            self._txn.put(key, b"", db=self._orphans_table)
        elif inode_number in self._orphans:
            self._drop_orphan(inode_number, key)

    def _put_xattr(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._txn.delete(key, db=self._xattrs)
        else:
            self._txn.put(key, value, db=self._xattrs)
        inode = self._cached.get(key_inode(key))
        if inode is not None:
            inode.capable = None

    def _put_meta(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._txn.delete(key, db=self._meta)
        else:
            self._txn.put(key, value, db=self._meta)
        if key == SET_BACK_KEY and value is not None:
            self.set_back = SetBack._make(SET_BACK_ROW.unpack(value))
        if key == INODES_FROM_KEY and value is not None:
            self._next_inode = max(self._next_inode, int.from_bytes(value, "big"))
        if not key.startswith(KEY_PREFIX):
            return
        if value is None:
            self.reservations.pop(reserved_inode(key), None)
        else:
            self.reservations[reserved_inode(key)] = parse_reservation(value)

    def _remove_inode(self, key: bytes) -> InodeNumber:
        number = key_inode(key)
        self._txn.delete(key, db=self._inodes)
        self._forget_inode(number)
        if number in self._orphans:
            self._drop_orphan(number, key)
        return number

    def _forget_inode(self, number: InodeNumber) -> None:
        self._cached.pop(number, None)
        self._touched.pop(number, None)
        self._flushed.pop(number, None)

    def _drop_orphan(self, number: InodeNumber, key: bytes) -> None:
        self._orphans.discard(number)
        self._txn.delete(key, db=self._orphans_table)

    def _put_entry(self, key: bytes, value: bytes | None) -> None:
        parent = key[:8]
        old = self._txn.get(key, db=self._entries)
        if old is not None:
            cookie = self._unpack_entry(key, old).cookie
            self._txn.delete(parent + _NUMBER.pack(cookie), db=self._listing)
        if value is None:
            self._txn.delete(key, db=self._entries)
        else:
            cookie = self._unpack_entry(key, value).cookie
            self._txn.put(key, value, db=self._entries)
            self._txn.put(parent + _NUMBER.pack(cookie), key[8:], db=self._listing)

    def _unpack_entry(self, key: bytes, value: bytes) -> Entry:
        try:
            return unpack_entry(value)
        except ValueError as error:
            raise self._damaged(Table.ENTRIES, key) from error

    def _keep(self, inode: Inode) -> Inode:
        if len(self._cached) >= INODES_CACHED_MAX:
            self._shrink_cache()
        self._cached[inode.number] = inode
        return inode

    def _shrink_cache(self) -> None:
        """Let a quarter of the cache go: inodes whose rows are committed, the oldest first."""
        clean = [
            number for number in self._cached if number not in self._touched and number not in self._flushed
        ]
        for number in clean[: INODES_CACHED_MAX // 4]:
            del self._cached[number]

    def lacks(self, inode: InodeNumber, what: str) -> VolumeDamaged:
        """The error for `what`, which names an inode that is not there."""
        return VolumeDamaged(self._directory.parent, f"catalog: {what} names inode {inode}, which is missing")

    def _damaged(self, table: Table, key: bytes, fault: str = "it cannot be read") -> VolumeDamaged:
        return VolumeDamaged(self._directory.parent, f"catalog: {table.name} {key.hex()}: {fault}")

    def _failure(self, error: lmdb.Error) -> DiskFailed:
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError):
            return DiskFailed(
                self._directory.parent, f"catalog: {error}; it is damaged, run `fusemirror fsck`"
            )
        # py-lmdb has a class for ENOSPC, and none for EIO.
        kind = DiskFull if isinstance(error, lmdb.DiskError | lmdb.MapFullError) else DiskFailed
        return kind(self._directory.parent, f"catalog: {error}")


def _is_entry(value: bytes) -> bool:
    try:
        unpack_entry(value)
    except ValueError:
        return False
    return True


def _open_environment(directory: Path, *, create: bool) -> Any:
    try:
        if create:
            os.mkdir(directory, 0o700)
        environment = lmdb.open(
            os.fspath(directory),
            map_size=CATALOG_MAP_BYTES,
            max_dbs=len(Table) + 2,
            create=create,
            readahead=False,
            max_spare_txns=1,
            mode=0o600,
        )
        if _is_cut(environment, directory):
            environment.close()
            raise VolumeDamaged(directory.parent, f"{directory.name}: its file was cut short")
        return environment
    except lmdb.Error as error:
        raise VolumeDamaged(directory.parent, f"{directory.name}: {error}") from error


def _is_cut(environment: lmdb.Environment, directory: Path) -> bool:
    """Whether pages with rows are beyond the end of the file: LMDB would read them, and be ended by SIGBUS.

    A file may rightly lack pages at its end that were given out and never used. Then it gets them here.
    OSError.
    """
    file = directory / "data.mdb"
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size >= needed:
        return False
    if not is_readable(directory):
        return True
    os.truncate(file, needed)
    return False
