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

import struct
from collections.abc import Iterable
from pathlib import Path

import lmdb

from fusemirror.change import Row, Table
from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import CATALOG_BYTES_PER_CHANGE, NAME_BYTES_MAX
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.derived_tables import DerivedTables
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.entries import Entry, inode_key, key_inode, unpack_entry
from fusemirror.volume.inode import DIRECTORY_SIZE, ROW_BYTES_MIN, Inode
from fusemirror.volume.inode_cache import InodeCache
from fusemirror.volume.meta import Checkpoints, Meta, Place
from fusemirror.volume.rows import inode_fault
from fusemirror.volume.tables import Tables
from fusemirror.volume.xattr_rows import XattrRows

_NUMBER = struct.Struct(">Q")
_BEFORE_FIRST = ChangeNumber(0)


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


class Catalog:
    """One LMDB environment. Every method belongs to one thread. DiskFailed where LMDB cannot go on."""

    number: ChangeNumber  # all four as of the last commit
    journal_number: ChangeNumber
    time_ns: int
    checkpoints: Checkpoints
    changes_since_commit: int

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        """Open the catalog in `directory`, or make one there that has no rows, not even a root.

        VolumeDamaged for one that cannot be opened.
        """
        self.copying = False
        """Rows come from the peer's catalog, into one that is to take the place of the one that was here."""
        self._store = CatalogStore(directory, create=create)
        self.cache = InodeCache(self._store)
        self._cached = self.cache.cached
        self.derived = DerivedTables(self._store, self.cache)
        self.xattrs = XattrRows(self._store, self.cache)
        self.meta = Meta(self._store)
        self.reservations = self.meta.reservations
        self.tables = Tables(self._store, self.cache)
        self._load_opened()

    def open(self, directory: Path, *, create: bool = False) -> None:
        """Be the catalog in `directory` from now on, in the place of one that was closed. VolumeDamaged."""
        self._store.open(directory, create=create)
        self.cache.rollback()
        self._load_opened()

    def _load_opened(self) -> None:
        try:
            self._load()
        except lmdb.Error as error:
            self.close()
            raise self._store.unreadable(error) from error
        except VolumeDamaged:
            self.close()
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
        return InodeNumber(self.meta.next_inode)

    def inode(self, number: InodeNumber) -> Inode | None:
        """The inode, or None. Do not keep it over an await: the cache may make another object of it.

        VolumeDamaged for a row that no change can have put there.
        """
        inode = self._cached.get(number)
        if inode is not None:
            return inode
        key = _NUMBER.pack(number)
        row = self._store.get(key, self._store.inodes)
        if row is None:
            return None
        fault = inode_fault(key, row)
        if fault is not None:
            raise self._store.damaged(Table.INODES, key, fault)
        return self.cache.keep(Inode.unpack(number, row))

    def stored_inode(self, number: InodeNumber) -> Inode | None:
        """The inode as its row has it, right or wrong, for who repairs or rescues; or None.

        VolumeDamaged for a row that is too short to be an inode.
        """
        inode = self._cached.get(number)
        key = _NUMBER.pack(number)
        if inode is not None or (row := self._store.get(key, self._store.inodes)) is None:
            return inode
        if len(row) < ROW_BYTES_MIN:
            raise self._store.damaged(Table.INODES, key)
        return Inode.unpack(number, row)

    def sound_inode(self, number: InodeNumber) -> Inode | None:
        """The inode; None, too, for a row that no change can have put there: what takes its place is new."""
        inode = self._cached.get(number)
        if inode is not None:
            return inode
        inode = self.stored_inode(number)
        if inode is None or inode_fault(_NUMBER.pack(number), inode.pack()) is not None:
            return None
        return self.cache.keep(inode)

    def size(self, number: InodeNumber) -> int:
        """How long the file is, as its row has it; 0 where there is no such inode. VolumeDamaged."""
        inode = self.stored_inode(number)
        return 0 if inode is None else inode.size

    def entry(self, parent: InodeNumber, name: bytes) -> Entry | None:
        """What `name` in directory `parent` stands for, or None. VolumeDamaged."""
        key = _NUMBER.pack(parent) + name
        if len(name) > NAME_BYTES_MAX or not name:
            return None
        value = self._store.get(key, self._store.entries)
        return None if value is None else self._unpack_entry(key, value)

    def listing(self, parent: InodeNumber, after_cookie: int, limit: int) -> list[tuple[int, bytes, Entry]]:
        """At most `limit` entries of a directory with cookies above `after_cookie`, in their order."""
        found: list[tuple[int, bytes, Entry]] = []
        for cookie, name in self.derived.listed(parent, after_cookie):
            if len(found) >= limit:
                break
            entry = self.entry(parent, name)
            if entry is None or entry.cookie != cookie:
                raise self._store.contradicts(f"listing of directory {parent}: {name!r}")
            found.append((cookie, name, entry))
        return found

    def is_empty(self, parent: InodeNumber) -> bool:
        """Whether no name stands in a directory. DiskFailed."""
        return not self._store.has_prefix(self._store.entries, _NUMBER.pack(parent))

    def orphans(self) -> list[InodeNumber]:
        """The inodes that have no name any more and wait to be purged, in order."""
        return sorted(self.derived.orphans)

    def contradicts(self, what: str) -> VolumeDamaged:
        """The error for what its rows say, and cannot be."""
        return self._store.contradicts(f"catalog: {what}")

    # --- changing ------------------------------------------------------------------------------------

    def touch(self, inode: Inode) -> None:
        """The attributes of an inode differ from its row now; the row follows by the next commit."""
        if self.cache.touch(inode):
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
                        removed.append(number_removed := key_inode(key))
                        self._store.txn.delete(key, db=self._store.inodes)
                        self.cache.forget(number_removed)
                        if number_removed in self.derived.orphans:
                            self.derived.drop_orphan(number_removed, key)
                    else:
                        self._put_inode(key, value, number)
                elif table == Table.ENTRIES:
                    self._put_entry(key, value)
                elif table == Table.META:
                    self.meta.put(key, value)
                else:
                    self.xattrs.put(key, value)
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        finally:
            self.changes_since_commit += 1 + size_bytes // CATALOG_BYTES_PER_CHANGE
        return removed

    def commit(self, number: ChangeNumber, journal_number: ChangeNumber, time_ns: int) -> None:
        """On return all rows are durable, as of change `number` and record `journal_number`.

        DiskFailed: nothing since the last commit is in the catalog; see `rollback`.
        """
        assert number >= journal_number, "a record is of a change that was applied"
        self.cache.flush()
        try:
            self.meta.put_place(Place(number, journal_number, time_ns, self.checkpoints))
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        self._store.commit()
        self.cache.committed()
        self.number, self.journal_number, self.time_ns = number, journal_number, time_ns
        self.changes_since_commit = 0

    def commit_unfinished(self) -> None:
        """Commit a copy under way: its place is not written, so it does not count as a catalog yet."""
        self.cache.flush()
        self._store.commit()
        self.cache.committed()
        self.changes_since_commit = 0

    def rollback(self) -> list[Inode]:
        """Go back to the last commit; the inodes whose newest attributes were in memory only.

        The caller applies the journal again, and then touches those that are there. DiskFailed: there is
        nothing to go back to, and memory has all that it had, for another try.
        """
        self._store.rollback()
        unsaved = self.cache.rollback()
        try:
            self._load()
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        return unsaved

    def check_usable(self) -> None:
        """DiskFailed where LMDB takes no change and shows none."""
        self._store.check_usable()

    def note_checkpoints(self, begun: int, ended: int) -> None:
        """These are the last checkpoints, as the next commit says."""
        self.checkpoints = Checkpoints(begun, ended)
        self.changes_since_commit += 1

    # --- checking and repairing (`check`) ----------------------------------------------------------------

    def discard(self, table: Table, key: bytes) -> None:
        """Remove a row whatever it holds, and leave the derived tables as they are. DiskFailed."""
        if table == Table.INODES and len(key) == 8:
            self.cache.forget(key_inode(key))
        try:
            self._store.txn.delete(key, db=self._store.tables[table])
        except lmdb.Error as error:
            raise self._store.failure(error) from error
        if table == Table.META:
            self.meta.load_reservations()
        self.changes_since_commit += 1

    def rebuild_derived(self) -> None:
        """On return the derived tables agree with the others. DiskFailed."""
        self.derived.rebuild()
        self.changes_since_commit += 1

    def reserve_inodes(self, last: InodeNumber) -> None:
        """Inode numbers up to `last` are not given again."""
        self.meta.reserve_inodes(last)
        self.changes_since_commit += 1

    def close(self) -> None:
        """Release everything; what was not committed is gone."""
        self._store.close()

    # --- inside --------------------------------------------------------------------------------------

    def _load(self) -> None:
        """What is kept in memory of the committed state."""
        self.changes_since_commit = 0
        self.derived.load()
        self.number, self.journal_number, self.time_ns, self.checkpoints = self.meta.load()

    def _put_inode(self, key: bytes, row: bytes, number: ChangeNumber) -> None:
        inode_number = key_inode(key)
        self._store.txn.put(key, row, db=self._store.inodes)
        inode = self._cached.get(inode_number)
        if inode is None:
            inode = self.cache.keep(Inode.unpack(inode_number, row))
        else:
            inode.load(row)
            self.cache.touched.pop(inode_number, None)
        inode.changed = number
        self.meta.next_inode = max(self.meta.next_inode, inode_number + 1)
        if inode.nlink == 0:
            self.derived.add_orphan(inode_number, key)
        elif inode_number in self.derived.orphans:
            self.derived.drop_orphan(inode_number, key)

    def _put_entry(self, key: bytes, value: bytes | None) -> None:
        old = self._store.txn.get(key, db=self._store.entries)
        if old is not None:
            self.derived.drop_name(key, self._unpack_entry(key, old).cookie)
        if value is None:
            self._store.txn.delete(key, db=self._store.entries)
        else:
            cookie = self._unpack_entry(key, value).cookie
            self._store.txn.put(key, value, db=self._store.entries)
            self.derived.list_name(key, cookie)

    def _unpack_entry(self, key: bytes, value: bytes) -> Entry:
        try:
            return unpack_entry(value)
        except ValueError as error:
            raise self._store.damaged(Table.ENTRIES, key) from error
