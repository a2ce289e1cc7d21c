"""Rows of reservations: what they hold comes back, over a reopening too; what is none is refused."""

from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import FusemirrorError
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.reservations import (
    EVERYTHING,
    KEY_PREFIX,
    Reservation,
    is_reservation,
    parse_reservation,
    reservation_row,
    reserved_inode,
)
from fusemirror.volume.rows import check_rows

HELD = Reservation(b"h" * 16, 1_700_000_000_000_000_000, b"a/b\xff")
FILE = InodeNumber(7)


@pytest.mark.parametrize("inode", [EVERYTHING, FILE, InodeNumber((1 << 64) - 1)])
def test_a_row_gives_back_what_was_put(inode: InodeNumber) -> None:
    table, key, value = reservation_row(inode, HELD)
    assert (table, reserved_inode(key)) == (Table.META, inode)
    assert value is not None
    assert parse_reservation(value) == HELD
    check_rows([(table, key, value), reservation_row(inode, None)])


@pytest.mark.parametrize(
    ("key", "value"), [(KEY_PREFIX, b""), (KEY_PREFIX + b"1234567", None), (KEY_PREFIX + bytes(8), b"\x01")]
)
def test_what_is_no_reservation_is_refused(key: bytes, value: bytes | None) -> None:
    assert not is_reservation(key, value)
    with pytest.raises(FusemirrorError):
        check_rows([(Table.META, key, value)])


def test_a_catalog_knows_its_reservations(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([(Table.META, b"another", b"row"), reservation_row(FILE, HELD)])
    assert catalog.reservations == {FILE: HELD}
    catalog.commit(ChangeNumber(1), ChangeNumber(1), 1)
    catalog.apply_rows([reservation_row(FILE, None), reservation_row(EVERYTHING, HELD)])
    assert catalog.reservations == {EVERYTHING: HELD}
    catalog.rollback()
    assert catalog.reservations == {FILE: HELD}
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.reservations == {FILE: HELD}
    catalog.close()
