"""What a file holds, by its row and its image, and content that comes from the peer's copy."""

import pytest

from fusemirror.errors import DiskFailed, VolumeDamaged, VolumeError
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB, REGION_BYTES
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer

NOBODY = InodeNumber(99)


@pytest.fixture
def file(writer: Writer) -> InodeNumber:
    return writer.create(b"file")


@pytest.mark.parametrize("error", [DiskFailed, VolumeDamaged])
def test_of_what_the_catalog_does_not_tell_no_end_is_known(
    writer: Writer, volume: Volume, monkeypatch: pytest.MonkeyPatch, error: type[VolumeError]
) -> None:
    """It is asked when a change has been made, which was told to nobody where this failed."""
    file = writer.create(b"file")
    writer.write(file, 0, b"abc")
    assert volume.files.ending(file) == (2, b"c")

    def fails(_: object) -> None:
        raise error("volume", "gone")

    monkeypatch.setattr(volume.catalog, "inode", fails)
    assert volume.files.ending(file) is None
    monkeypatch.undo()


def test_the_last_byte_of_a_file(volume: Volume, writer: Writer, file: InodeNumber) -> None:
    assert volume.files.ending(file) is None
    writer.write(file, 0, b"abc")
    assert volume.files.ending(file) == (2, b"c")
    writer.truncate(file, 10)
    assert volume.files.ending(file) == (9, b"\0")
    assert volume.files.ending(ROOT_INODE) is None
    assert volume.files.ending(NOBODY) is None


def test_holes_are_no_data(volume: Volume, writer: Writer, file: InodeNumber) -> None:
    size = 4 * MIB
    writer.truncate(file, size)
    writer.write(file, MIB, b"x" * REGION_BYTES)
    assert volume.files.next_data(file, 0, size) == MIB
    assert volume.files.next_hole(file, MIB, size) == MIB + REGION_BYTES
    assert volume.files.next_data(file, MIB + REGION_BYTES, size) == size
    length, data_bytes = volume.files.measure(file)
    assert (length, data_bytes < MIB) == (size, True)
    assert volume.files.allocated_bytes(writer.inode(file)) < MIB
    assert volume.files.measure(NOBODY) == (0, 0)
    assert volume.files.allocated_bytes(writer.inode(ROOT_INODE)) == writer.inode(ROOT_INODE).size


def test_content_of_the_peer_is_marked_and_leaves_the_times(
    volume: Volume, writer: Writer, file: InodeNumber
) -> None:
    writer.write(file, 0, b"abcd")
    volume.drop_marks(volume.regions.rotate())
    before = writer.inode(file)
    volume.files.put_data(file, 1, b"xy")
    assert writer.content(file) == b"axyd"
    assert volume.regions.has(file)
    facts = volume.images.facts(file)
    assert facts is not None
    assert (facts.mtime_ns, facts.ctime_ns) == (before.mtime_ns, before.ctime_ns)


def test_a_size_of_the_peer_is_put_into_image_and_row(
    volume: Volume, writer: Writer, file: InodeNumber
) -> None:
    writer.write(file, 0, b"abcd")
    assert volume.files.put_size(file, 2)
    assert not volume.files.put_size(file, 2)
    assert (writer.inode(file).size, volume.images.size(file)) == (2, 2)


def test_a_hole_of_the_peer_keeps_the_size(volume: Volume, writer: Writer, file: InodeNumber) -> None:
    writer.write(file, 0, b"x" * 2 * REGION_BYTES)
    assert volume.files.put_hole(file, 0, 1) == 1
    assert writer.content(file) == bytes(REGION_BYTES) + b"x" * REGION_BYTES


async def test_an_image_is_made_before_it_is_written_to(
    volume: Volume, writer: Writer, file: InodeNumber
) -> None:
    volume.files.prepare(ROOT_INODE)
    volume.files.prepare(file)
    assert volume.images.exists(file)
    assert not volume.images.exists(ROOT_INODE)
    assert list(await volume.files.step_points(file, 0, 10)) == []


def test_the_last_byte_that_the_disk_does_not_give_is_zero(
    volume: Volume, writer: Writer, file: InodeNumber
) -> None:
    """It is asked when a change has been made already, which can fail no more."""
    writer.write(file, 0, b"abc")
    path = volume.images.path(file)
    volume.images.close()
    away = path.rename(f"{path}.away")
    path.symlink_to(away)
    assert volume.files.ending(file) == (2, b"\0")
    away.rename(path)
