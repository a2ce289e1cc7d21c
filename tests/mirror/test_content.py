"""Content: what the backup says of what it has, and what it takes, when it copies or compares."""

from typing import Any, cast

import pytest

from fusemirror.change import Table
from fusemirror.channel.session import Session
from fusemirror.errors import BadChange, BadRow
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import REGION_BYTES
from fusemirror.mirror.content import Content
from fusemirror.protocol.messages import CatalogRows, Digests, Hole, RegionData, Reply, RowsDigest
from fusemirror.volume.entries import inode_key
from fusemirror.volume.volume import Volume
from tests.mirror.replicas import FakeSession
from tests.volume.conftest import Writer


@pytest.fixture
def file(volume: Volume, writer: Writer) -> InodeNumber:
    """Of two regions."""
    number = writer.create(b"file")
    writer.write(number, 0, b"a" * REGION_BYTES + b"b" * 10)
    return InodeNumber(number)


def answer(volume: Volume, message: Any, data: bytes = b"") -> Any:
    session = FakeSession()
    Content(volume).handlers[type(message)](message, data, cast(Session, session))
    return session.sent[-1][0] if session.sent else None


def digests(volume: Volume, inode: InodeNumber) -> tuple[int, ...]:
    return tuple(volume.images.content.region_digests(inode, 0, 2))


def test_it_names_the_regions_that_differ(volume: Volume, file: InodeNumber) -> None:
    size, same = REGION_BYTES + 10, digests(volume, file)
    assert answer(volume, Digests(1, file, size, 0, same, repair=False)) == Reply(1)
    other = (same[0], same[1] ^ 1)
    assert answer(volume, Digests(1, file, size, 0, other, repair=False)) == Reply(1, values=(1,))
    assert answer(volume, Digests(1, file, size + 1, 0, same, repair=False)) == Reply(1, values=(-1,))
    assert volume.images.size(file) == size, "nothing is mended that was only compared"


def test_an_image_that_is_mended_has_its_length_first(volume: Volume, file: InodeNumber) -> None:
    answer(volume, Digests(1, file, 10, 0, (), repair=True))
    assert volume.images.size(file) == 10


def test_a_hole_that_is_compared_names_the_data_in_it(volume: Volume, file: InodeNumber) -> None:
    size = REGION_BYTES + 10
    assert answer(volume, Hole(1, file, size, 0, 2, repair=False)) == Reply(1, values=(2, 0, 1))
    looked = answer(volume, Hole(1, file, size, 0, 2, repair=True))
    assert looked == Reply(1, values=(2,))
    assert volume.read(file, 0, size) == bytes(size)


def test_data_ends_where_its_file_does(volume: Volume, file: InodeNumber) -> None:
    answer(volume, RegionData(file, REGION_BYTES), b"c" * 20)
    assert volume.read(file, REGION_BYTES, 30) == b"c" * 10


def test_what_is_no_file_has_no_image(volume: Volume, writer: Writer) -> None:
    for message in (
        Digests(1, ROOT_INODE, 0, 0, (), repair=True),
        Hole(1, ROOT_INODE, 0, 0, 1, repair=True),
        RegionData(ROOT_INODE, 0),
    ):
        with pytest.raises(BadChange, match="no file"):
            answer(volume, message)
    with pytest.raises(BadChange, match="no inode"):
        answer(volume, RegionData(InodeNumber(999), 0))


def test_rows_bring_only_attributes_of_files_unless_all_are_copied(volume: Volume, file: InodeNumber) -> None:
    root, own = (volume.catalog.inode(each) for each in (ROOT_INODE, file))
    assert root is not None
    assert own is not None
    answer(volume, CatalogRows(((Table.INODES, inode_key(file), own.pack()),)))
    for row in ((Table.INODES, inode_key(ROOT_INODE), root.pack()), (Table.ENTRIES, b"\0" * 8 + b"x", b"")):
        with pytest.raises(BadRow):
            answer(volume, CatalogRows((row,)))


def test_rows_that_are_the_same_are_not_named(volume: Volume, file: InodeNumber) -> None:
    count, digest = volume.catalog.tables.digest(Table.INODES, b"", b"\xff" * 8)
    assert answer(volume, RowsDigest(1, Table.INODES, b"", b"\xff" * 8, count, digest)) == Reply(1)
    other = RowsDigest(1, Table.INODES, b"", b"\xff" * 8, count, digest ^ 1)
    assert answer(volume, other) == Reply(1, values=(count,))
