"""What a name in a directory stands for."""

import pytest

from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    Entry,
    entry_key,
    pack_entry,
    unpack_entry,
)
from tests.volume.test_catalog import catalog

__all__ = ["catalog"]


@pytest.mark.parametrize("value", [b"", b"short", pack_entry(Entry(InodeNumber(2), 3, 2))])
def test_an_entry_on_the_disk_that_is_none_is_damage(catalog: Catalog, value: bytes) -> None:
    catalog._store.txn.put(entry_key(ROOT_INODE, b"a"), value, db=catalog._store.entries)
    with pytest.raises(VolumeDamaged, match="ENTRIES"):
        catalog.entry(ROOT_INODE, b"a")
    with pytest.raises(ValueError, match="not an entry"):
        unpack_entry(value)
