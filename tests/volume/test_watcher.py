"""Whatever changes a volume is told to its watcher, when the volume already holds it."""

from collections.abc import Iterable

import pytest

from fusemirror.change import NamespaceChange, Row, Table, TruncateChange, WriteChange
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.volume.catalog import inode_key
from fusemirror.volume.volume import Volume
from tests.volume.conftest import directory, volume

__all__ = ["directory", "volume"]

FILE = InodeNumber(7)
REQUEST = RequestId(b"the other host's")


class Listener:
    def __init__(self, volume: Volume) -> None:
        self.heard: list[object] = []
        self._volume = volume

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        self.heard.append((inode, own, self._size(inode)))

    def rows_changed(self, rows: Iterable[Row]) -> None:
        self.heard.extend((key, self._size(FILE)) for _, key, _ in rows)

    def image_suspect(self, inode: InodeNumber) -> None:
        pytest.fail("nothing was suspect")

    def catalog_replaced(self) -> None:
        self.heard.append(("replaced", self._size(FILE)))

    def _size(self, number: InodeNumber) -> int | None:
        inode = self._volume.catalog.inode(number)
        return None if inode is None else inode.size


@pytest.fixture
def listener(volume: Volume) -> Listener:
    listener = Listener(volume)
    volume.watcher = listener
    return listener


def file_row(volume: Volume) -> Row:
    root = volume.catalog.inode(ROOT_INODE)
    assert root is not None
    packed = root.pack()
    volume_file = type(root).unpack(FILE, packed)
    volume_file.mode, volume_file.size = 0o100644, 0
    return (Table.INODES, inode_key(FILE), volume_file.pack())


def change_of_file(volume: Volume) -> NamespaceChange:
    number = ChangeNumber(volume.number + 1)
    return NamespaceChange(number, NO_REQUEST, volume.time_ns(), FILE, (file_row(volume),))


def test_a_change_is_told_when_it_is_there(volume: Volume, listener: Listener) -> None:
    volume.apply(change_of_file(volume))
    assert listener.heard == [(inode_key(FILE), 0)]


@pytest.mark.parametrize(("request_id", "own"), [(NO_REQUEST, True), (REQUEST, False)])
def test_a_change_of_data_says_whose_it_is(
    volume: Volume, listener: Listener, request_id: RequestId, own: bool
) -> None:
    volume.apply(change_of_file(volume))
    listener.heard.clear()
    number = ChangeNumber(volume.number + 1)
    volume.apply(WriteChange(number, request_id, volume.time_ns(), FILE, 0, 3), b"abc")
    volume.apply(TruncateChange(ChangeNumber(number + 1), request_id, volume.time_ns(), FILE, 2))
    assert listener.heard == [(FILE, own, 3), (FILE, own, 2)]


def test_what_resync_brings_is_told(volume: Volume, listener: Listener) -> None:
    volume.copy_rows([file_row(volume)])
    volume.copy_size(FILE, 9)
    assert listener.heard == [(inode_key(FILE), 0), (FILE, False, 9)]


def test_a_new_catalog_is_told_as_a_whole(volume: Volume, listener: Listener) -> None:
    row = file_row(volume)
    volume.begin_catalog_copy()
    volume.copy_rows([row])
    listener.heard.clear()
    volume.finish_catalog_copy(ChangeNumber(5), ChangeNumber(5))
    assert listener.heard == [("replaced", 0)]
