"""A walk by stored names stays where it began, and what is no file is not opened as one."""

import errno
import os
from pathlib import Path

import pytest

from fusemirror.volume.beneath import Walk, is_name, open_plain, read_plain


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/etc", b"a\0", b"x" * 256])
def test_what_is_no_single_name_is_none(name: bytes) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("name", [b"a", b"...", b"..a", b" ", b"\xff\n", b"x" * 255])
def test_everything_else_is_a_name(name: bytes) -> None:
    assert is_name(name)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.close(open_plain(tmp_path / "file", os.O_RDWR))
    for name in ("link", "directory", "pipe"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with pytest.raises(OSError, match="a link, a device or a pipe") as caught:
                open_plain(tmp_path / name, flags)
            assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "nothing", os.O_RDONLY)


def test_no_more_is_read_than_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_plain(tmp_path / "file", 7) == b"content"
    with pytest.raises(OSError, match="longer than 6 bytes"):
        read_plain(tmp_path / "file", 6)


def test_a_walk_follows_no_link_and_comes_back_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "top" / "inner").mkdir(parents=True)
    (tmp_path / "top" / "link").symlink_to(tmp_path)
    walk = Walk(tmp_path / "top")
    with pytest.raises(NotADirectoryError):
        walk.down(b"link")
    walk.down(b"inner")
    assert os.path.samestat(os.fstat(walk.descriptor), (tmp_path / "top" / "inner").stat())
    walk.up()
    walk.down(b"inner")
    (tmp_path / "top" / "inner").rename(tmp_path / "moved away")
    with pytest.raises(OSError, match="moved") as caught:
        walk.up()
    assert caught.value.errno == errno.EXDEV
    walk.close()
    with pytest.raises(NotADirectoryError):
        Walk(tmp_path / "top" / "link")
