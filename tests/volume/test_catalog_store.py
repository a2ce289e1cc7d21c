"""LMDB under a catalog: its errors are errors of the disk, and what cannot be read is damage."""

from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import DiskFailed, VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.catalog import Catalog
from tests.volume.test_catalog import catalog, commit, entry_row, file_inode, inode_row

__all__ = ["catalog"]


def test_a_catalog_whose_transaction_is_gone_says_so_as_an_error_of_the_disk(catalog: Catalog) -> None:
    catalog._store.txn.abort()
    number = InodeNumber(4711)
    for ask in (
        lambda: catalog.inode(number),
        lambda: catalog.entry(number, b"name"),
        lambda: catalog.listing(number, 0, 1),
        lambda: catalog.is_empty(number),
        lambda: catalog.xattrs.value(number, b"user.x"),
        lambda: catalog.xattrs.names(number),
        lambda: catalog.meta.value(b"name"),
        lambda: catalog.tables.rows(Table.INODES, None, 1),
        lambda: catalog.tables.digest(Table.INODES, b"", b"\xff"),
    ):
        with pytest.raises(DiskFailed):
            ask()


@pytest.mark.parametrize("content", [None, b"", b"not LMDB at all" * 1000])
def test_a_directory_that_holds_no_catalog_is_damage(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "catalog").mkdir()
    if content is not None:
        (tmp_path / "catalog" / "data.mdb").write_bytes(content)
    with pytest.raises(VolumeDamaged, match="catalog"):
        Catalog(tmp_path / "catalog")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_catalog_whose_file_was_cut_is_damaged_and_ends_no_process(tmp_path: Path, part: float) -> None:
    """LMDB maps its file: to read beyond the end is SIGBUS."""
    directory = tmp_path / "volume" / "catalog"
    directory.parent.mkdir()
    Catalog.create(directory)
    catalog = Catalog(directory)
    for number in range(2, 300):
        catalog.apply_rows([inode_row(file_inode(number)), entry_row(b"f%d" % number, number, number)])
    commit(catalog, 1)
    catalog.close()
    file = directory / "data.mdb"
    with file.open("r+b") as data:
        data.truncate(int(file.stat().st_size * part) // 4096 * 4096)
    with pytest.raises(VolumeDamaged, match="catalog: its file was cut short"):
        Catalog(directory)
