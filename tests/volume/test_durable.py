import errno
import os
from pathlib import Path

import pytest

from fusemirror.volume.durable import (
    append_behind,
    append_whole,
    replace_file,
    sync_directory,
    sync_filesystem,
)
from tests.volume.conftest import broken_file


def test_a_replaced_file_holds_the_new_content_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_replaced_only_once_its_content_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def failing_fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, "failed")

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(OSError, match="failed"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_short_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda _descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="space"):
        append_whole(-1, b"data")


def test_nothing_is_appended_behind_a_part_that_could_not_be_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    append_behind(descriptor, b"whole", 0)
    broken_file(monkeypatch)
    with pytest.raises(OSError, match="space"):
        append_behind(descriptor, b"half a record", 5)
    assert path.read_bytes() != b"whole"
    with pytest.raises(OSError, match="broken"):
        append_behind(descriptor, b"behind", 5)
    monkeypatch.undo()
    append_behind(descriptor, b" and more", 5)
    os.close(descriptor)
    assert path.read_bytes() == b"whole and more"


def test_syncing_needs_a_directory(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    sync_filesystem(tmp_path)
    for sync in (sync_directory, sync_filesystem):
        with pytest.raises(FileNotFoundError):
            sync(tmp_path / "none")
