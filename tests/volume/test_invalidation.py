"""Whatever changes a volume is told to its watcher, when the volume already holds it."""

from collections.abc import Collection, Iterable

import pytest

from fusemirror.change import Row
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, InodeNumber, RequestId
from fusemirror.volume.entries import inode_key
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, directory, put_inode, rows_of, volume, writer

__all__ = ["directory", "volume", "writer"]

REQUEST = RequestId(b"the other host's")


class Listener:
    """Notes what it hears, and the size that the inode then has."""

    def __init__(self, volume: Volume) -> None:
        self.heard: list[object] = []
        self._volume = volume

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        found = self._volume.catalog.inode(inode)
        self.heard.append((inode, own, found and found.size))

    def rows_changed(self, rows: Iterable[Row], *, own: bool) -> None:
        self.heard.append({key: self._volume.catalog.inode(ROOT_INODE) is not None for _, key, _ in rows})

    def image_suspect(self, inode: InodeNumber) -> None:
        pytest.fail("nothing was suspect")

    def has_let_go(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        return inodes

    def lease_over(self) -> None:
        raise AssertionError("no primary ever goes alone here")

    def catalog_replaced(self) -> None:
        self.heard.append(("replaced", self._volume.catalog.copying))


@pytest.fixture
def file(writer: Writer) -> InodeNumber:
    return writer.create(b"file")


@pytest.fixture
def listener(volume: Volume, file: InodeNumber) -> Listener:
    volume.invalidator = listener = Listener(volume)
    return listener


def test_rows_are_told_when_they_are_there(writer: Writer, file: InodeNumber, listener: Listener) -> None:
    writer.chmod(file, 0o600)
    assert listener.heard == [{inode_key(file): True}]


@pytest.mark.parametrize(("request_id", "own"), [(NO_REQUEST, True), (REQUEST, False)])
def test_a_change_of_data_says_whose_it_is(
    writer: Writer, file: InodeNumber, listener: Listener, request_id: RequestId, own: bool
) -> None:
    writer.write(file, 0, b"abc", request_id)
    writer.truncate(file, 2, request_id)
    assert listener.heard == [(file, own, 3), (file, own, 2)]


def test_what_resync_brings_is_told(writer: Writer, file: InodeNumber, listener: Listener) -> None:
    writer.volume.copy_rows([put_inode(writer.inode(file))])
    writer.volume.copy_size(file, 9)
    assert listener.heard == [{inode_key(file): True}, (file, False, 9)]


def test_a_new_catalog_is_told_as_a_whole(volume: Volume, listener: Listener) -> None:
    rows = [(table, key, value) for (table, key), value in rows_of(volume).items()]
    number, journal_number = volume.number, volume.journal.last_number
    volume.begin_catalog_copy()
    volume.copy_rows(rows)
    listener.heard.clear()
    volume.finish_catalog_copy(number, journal_number)
    assert listener.heard == [("replaced", False)]
