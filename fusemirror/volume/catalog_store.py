"""Catalog store: LMDB under a catalog. One write transaction is always open, and all reads go through it.

LMDB's errors leave as ours: DiskFull and DiskFailed where it cannot go on, VolumeDamaged for what cannot be
read. A row of the wrong form is `damaged`, said by who knows its form.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from fusemirror.change import Table
from fusemirror.errors import DiskFailed, DiskFull, VolumeDamaged
from fusemirror.limits import CATALOG_MAP_BYTES
from fusemirror.volume.probe import is_readable


class CatalogStore:
    """One LMDB environment with the tables of a catalog. It belongs to one thread.

    Who puts rows does so in `txn`, by the handles of the tables, and turns lmdb.Error into `failure`.
    """

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        """Open what is in `directory`, or make an empty one there. VolumeDamaged, OSError."""
        self.open(directory, create=create)

    def open(self, directory: Path, *, create: bool) -> None:
        """Be the one in `directory` from now on, in the place of one that was closed.

        VolumeDamaged, OSError.
        """
        self._directory = directory
        self._lacks: lmdb.Error | None = None  # why no transaction is open, where none could be begun
        self._environment = _open_environment(directory, create=create)
        try:
            self.txn: Any = self._environment.begin(write=True)
            self.tables = [self._open_table(table.name, create=create) for table in Table]
            self.meta, self.inodes, self.entries, self.xattrs = self.tables
            self.listing = self._open_table("LISTING", create=create)
            self.orphans = self._open_table("ORPHANS", create=create)
            self.txn.commit()  # the handles would end with a transaction that is rolled back
            self.begin()
        except lmdb.Error as error:
            self._environment.close()
            raise self.unreadable(error) from error

    def begin(self) -> None:
        """A transaction, after the one before was committed or aborted.

        DiskFailed: there is none, and what reads or puts fails as this did. Where the disk failed in the last
        step of a commit, LMDB begins none any more; else `rollback` may.
        """
        try:
            self.txn = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._lacks = error
            raise self.failure(error) from error
        self._lacks = None

    def check_usable(self) -> None:
        """DiskFailed where no transaction is open."""
        if self._lacks is not None:
            raise self.failure(self._lacks)

    def commit(self) -> None:
        """On return what was put is durable, and another transaction is open. DiskFailed: none is, and it
        may be durable or not; see `rollback`.
        """
        try:
            self.txn.commit()
        except lmdb.Error as error:
            raise self.failure(error) from error
        self.begin()

    def rollback(self) -> None:
        """Go back to the last commit. DiskFailed."""
        self.txn.abort()  # it raises nothing, also of one that is over
        self.begin()

    def close(self) -> None:
        """Release everything; what was not committed is gone."""
        self.txn.abort()
        self._environment.close()

    def get(self, key: bytes, table: Any) -> bytes | None:
        """The value of a row, or None. DiskFailed."""
        try:
            value: bytes | None = self.txn.get(key, db=table)
        except lmdb.Error as error:
            raise self.failure(error) from error
        return value

    def walk(self, table: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `first` on. Nothing may be put while it is walked."""
        try:
            with self.txn.cursor(db=table) as cursor:
                if cursor.set_range(first):
                    yield from cursor
        except lmdb.Error as error:
            raise self.failure(error) from error

    def keys(self, table: Any, first: bytes) -> Iterator[bytes]:
        """All keys from `first` on; the values are not read. Nothing may be put meanwhile.

        DiskFailed.
        """
        try:
            with self.txn.cursor(db=table) as cursor:
                if cursor.set_range(first):
                    yield from cursor.iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise self.failure(error) from error

    def has_prefix(self, table: Any, prefix: bytes) -> bool:
        """Whether any key begins so. DiskFailed."""
        try:
            with self.txn.cursor(db=table) as cursor:
                return bool(cursor.set_range(prefix)) and cursor.key().startswith(prefix)
        except lmdb.Error as error:
            raise self.failure(error) from error

    def damaged(self, table: Table, key: bytes, fault: str = "it cannot be read") -> VolumeDamaged:
        """The error for a row that no change can have put there."""
        return VolumeDamaged(self._directory.parent, f"catalog: {table.name} {key.hex()}: {fault}")

    def contradicts(self, what: str) -> VolumeDamaged:
        """The error for rows that cannot stand beside each other."""
        return VolumeDamaged(self._directory.parent, what)

    def unreadable(self, error: lmdb.Error) -> VolumeDamaged:
        """The error for a catalog that cannot be opened."""
        return VolumeDamaged(self._directory.parent, f"{self._directory.name}: {error}")

    def failure(self, error: lmdb.Error) -> DiskFailed:
        """The error for one of LMDB; without a transaction, for what left it without."""
        error = self._lacks or error
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError):
            return DiskFailed(
                self._directory.parent, f"catalog: {error}; it is damaged, run `fusemirror fsck`"
            )
        # py-lmdb has a class for ENOSPC, and none for EIO.
        kind = DiskFull if isinstance(error, lmdb.DiskError | lmdb.MapFullError) else DiskFailed
        return kind(self._directory.parent, f"catalog: {error}")

    def _open_table(self, name: str, *, create: bool) -> Any:
        return self._environment.open_db(name.encode(), txn=self.txn, create=create)


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
