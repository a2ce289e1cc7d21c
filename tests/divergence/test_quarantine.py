"""The quarantine: plain files beside the volume, whole or not at all."""

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from fusemirror.change import Table
from fusemirror.divergence import quarantine
from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import COPY_PIECE_BYTES, MIB
from fusemirror.volume.entries import xattr_key
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, directory, volume, writer

__all__ = ["directory", "volume", "writer"]

Files = dict[InodeNumber, list[list[bytes]]]


def kept(volume: Volume) -> list[tuple[quarantine.Quarantined, Path]]:
    [place] = quarantine.pending(volume)
    return [(quarantine.load(path), quarantine.data_of(path)) for path in quarantine.descriptions(place)]


async def test_files_come_before_directories_and_what_is_deep_before_what_holds_it(
    volume: Volume, writer: Writer
) -> None:
    outer = writer.mkdir(b"outer")
    inner = writer.mkdir(b"inner", outer)
    file = writer.create(b"file", inner)
    link = writer.create(b"link", mode=0o120777, target=b"outer/inner")
    writer.write(file, 0, b"content")
    writer.namespace((Table.XATTRS, xattr_key(file, b"user.label"), b"value"))
    files: Files = {
        outer: [[b"outer"]],
        inner: [[b"outer", b"inner"]],
        file: [[b"outer", b"inner", b"file"], [b"a name"]],
        link: [[b"link"]],
        InodeNumber(999): [[b"gone"]],
    }
    assert await quarantine.quarantine_files(volume, files) == 4
    found = kept(volume)
    assert [each.path[-1] for each, _ in found] == [b"a name", b"link", b"inner", b"outer"]
    first, data = found[0]
    assert first.links == [[b"outer", b"inner", b"file"]]
    assert (first.mode, first.size, first.xattrs) == (0o100644, 7, {b"user.label": b"value"})
    assert first.mtime_ns == writer.inode(file).mtime_ns
    assert data.read_bytes() == b"content"
    assert found[1][0].target == b"outer/inner"
    assert not found[1][1].exists()


async def test_a_large_file_is_copied_in_pieces_and_keeps_its_holes(volume: Volume, writer: Writer) -> None:
    file = writer.create(b"file")
    for offset in (0, COPY_PIECE_BYTES - 3, 2 * COPY_PIECE_BYTES):
        writer.write(file, offset, b"content")
    writer.truncate(file, 5 * COPY_PIECE_BYTES)
    copy_out = mock.Mock(wraps=volume.images.content.copy_out)
    with mock.patch.object(volume.images.content, "copy_out", copy_out):
        await quarantine.quarantine_files(volume, {file: [[b"file"]]})
    [(_, data)] = kept(volume)
    assert data.read_bytes() == volume.read(file, 0, 5 * COPY_PIECE_BYTES)
    assert data.stat().st_blocks * 512 < MIB
    assert copy_out.call_count == 3, "a hole takes no turn"


async def test_a_disk_that_is_full_keeps_nothing_and_the_next_attempt_keeps_all(
    volume: Volume, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = writer.create(b"file")
    writer.write(file, 0, b"content")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(volume.images.content, "copy_out", full)
        with pytest.raises(OSError, match="No space"):
            await quarantine.quarantine_files(volume, {file: [[b"file"]]})
    assert quarantine.pending(volume) == []
    for _ in range(2):  # the second takes the place of the first: this host gave way only once
        assert await quarantine.quarantine_files(volume, {file: [[b"file"]]}) == 1
    assert kept(volume)[0][1].read_bytes() == b"content"


def test_the_name_that_was_chosen_stays(tmp_path: Path) -> None:
    assert quarantine.name_in(tmp_path) is None
    quarantine.choose_name(tmp_path, b"beta-2")
    assert quarantine.name_in(tmp_path) == b"beta-2"
    assert quarantine.descriptions(tmp_path) == []


def test_a_name_that_no_directory_can_have_was_not_chosen(tmp_path: Path) -> None:
    assert quarantine.name_in(tmp_path) is None
    quarantine.choose_name(tmp_path, b"beta-2")
    assert quarantine.name_in(tmp_path) == b"beta-2"
    quarantine.choose_name(tmp_path, b"a/b")  # by a version that took any text for a host's name
    assert quarantine.name_in(tmp_path) is None


def test_a_damaged_description_is_said_to_be_one(tmp_path: Path) -> None:
    description = tmp_path / "aside" / "1" / "0.file"
    description.parent.mkdir(parents=True)
    description.write_bytes(b"\xc1")
    with pytest.raises(VolumeDamaged, match=r"aside/1/0\.file"):
        quarantine.load(description)


async def test_a_description_is_durably_gone_before_its_content_goes(
    volume: Volume, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no description without its content, whatever the disk writes first."""
    writer.write(file := writer.create(b"file"), 0, b"content")
    await quarantine.quarantine_files(volume, {file: [[b"file"]]})
    [place] = quarantine.pending(volume)
    synced: list[list[str]] = []

    def sync_directory(directory: Path) -> None:
        assert directory == place
        synced.append(sorted(path.name for path in place.iterdir()))

    monkeypatch.setattr(quarantine, "sync_directory", sync_directory)
    quarantine.forget(place / "0.file")
    assert synced == [["0.data"]]
    assert not list(place.iterdir())
