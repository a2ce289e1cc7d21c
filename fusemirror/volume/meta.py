"""Meta: the table META of a catalog. Where this volume stands, reservations, how its clock was set back.

The names `number`, `journal_number`, `next_inode`, `time_ns`, `checkpoint_begun` and `checkpoint` are the
catalog's own, written at each commit and shown to nobody.
"""

import struct
from typing import NamedTuple

from fusemirror.change import Row, Table
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.volume.catalog_store import CatalogStore
from fusemirror.volume.reservations import (
    KEY_PREFIX,
    Reservation,
    is_reservation,
    parse_reservation,
    reserved_inode,
)
from fusemirror.volume.rows import INODES_FROM_KEY, OWN_META, SET_BACK_KEY, SET_BACK_ROW

_NUMBER = struct.Struct(">Q")


class SetBack(NamedTuple):
    """The clock was set back, the last time at `to_ns`; times up to `from_ns` had been given before.

    Of two times that of the later change is the later one; but for those after `to_ns` that had been given
    before, up to `from_ns`: they are of earlier changes.
    """

    from_ns: int
    to_ns: int


def set_back_row(set_back: SetBack) -> Row:
    """The row by which both hosts know of it."""
    return Table.META, SET_BACK_KEY, SET_BACK_ROW.pack(*set_back)


class Checkpoints(NamedTuple):
    """Of all volumes together: the last that was begun, and the last up to which this one is known to be
    durable. So one that was put back from an older copy can be told from one that is as its peers left it.
    """

    begun: int
    ended: int


class Place(NamedTuple):
    """Where a catalog stands, as of a commit."""

    number: ChangeNumber
    journal_number: ChangeNumber
    time_ns: int
    checkpoints: Checkpoints


class Meta:
    """That of one catalog."""

    def __init__(self, store: CatalogStore) -> None:
        """Use `load` before all else."""
        self._store = store
        self.next_inode = 2
        """One more than the highest inode number ever put."""
        self.set_back = SetBack(0, 0)
        """As the row has it."""
        self.reservations: dict[InodeNumber, Reservation] = {}
        """As the rows have them."""

    def load(self) -> Place:
        """What is kept in memory of the committed state, and where that is. VolumeDamaged, lmdb.Error."""
        self.next_inode = self._own("next_inode") or 2
        set_back = self._store.txn.get(SET_BACK_KEY, db=self._store.meta) or SET_BACK_ROW.pack(0, 0)
        if len(set_back) != SET_BACK_ROW.size:
            raise self._store.damaged(Table.META, SET_BACK_KEY)
        self.set_back = SetBack._make(SET_BACK_ROW.unpack(set_back))
        self.load_reservations()
        checkpoints = Checkpoints(self._own("checkpoint_begun") or 0, self._own("checkpoint") or 0)
        number = ChangeNumber(self._own("number") or 0)
        return Place(
            number, ChangeNumber(self._own("journal_number") or 0), self._own("time_ns") or 0, checkpoints
        )

    @property
    def has_place(self) -> bool:
        """Whether the catalog was ever committed with its place: a copy that was not ended was not.

        DiskFailed.
        """
        return self._own("number") is not None

    def value(self, name: bytes) -> bytes | None:
        """The value of a row, or None. DiskFailed."""
        return self._store.get(name, self._store.meta)

    def load_reservations(self) -> None:
        """Those that can be read; the others are for `check` to find."""
        self.reservations.clear()
        for key, value in self._store.walk(self._store.meta, KEY_PREFIX):
            if not key.startswith(KEY_PREFIX):
                break
            if is_reservation(key, value):
                self.reservations[reserved_inode(key)] = parse_reservation(value)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Put a row, or remove it. lmdb.Error."""
        if value is None:
            self._store.txn.delete(key, db=self._store.meta)
        else:
            self._store.txn.put(key, value, db=self._store.meta)
        if key == SET_BACK_KEY and value is not None:
            self.set_back = SetBack._make(SET_BACK_ROW.unpack(value))
        if key == INODES_FROM_KEY and value is not None:
            self.next_inode = max(self.next_inode, int.from_bytes(value, "big"))
        if not key.startswith(KEY_PREFIX):
            return
        if value is None:
            self.reservations.pop(reserved_inode(key), None)
        else:
            self.reservations[reserved_inode(key)] = parse_reservation(value)

    def put_place(self, place: Place) -> None:
        """What the next commit says of where the catalog stands. lmdb.Error."""
        values = (place.number, place.journal_number, self.next_inode, place.time_ns, *place.checkpoints)
        for name, value in zip(OWN_META, values, strict=True):
            self._store.txn.put(name.encode(), _NUMBER.pack(value), db=self._store.meta)

    def reserve_inodes(self, last: InodeNumber) -> None:
        """Inode numbers up to `last` are not given again."""
        self.next_inode = max(self.next_inode, last + 1)

    def _own(self, name: str) -> int | None:
        value = self._store.txn.get(name.encode(), db=self._store.meta)
        if value is None:
            return None
        if len(value) != 8:
            raise self._store.damaged(Table.META, name.encode())
        return int.from_bytes(value, "big")
