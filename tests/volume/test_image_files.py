"""Where each image stands, and that nothing else is taken for one."""

import os
from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import IMAGES_PER_DIRECTORY
from fusemirror.volume.image_files import ImageFiles, misfits

ONE, FAR = InodeNumber(1), InodeNumber(3 * IMAGES_PER_DIRECTORY + 1)


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    return ImageFiles(tmp_path)


def make(files: ImageFiles, inode: InodeNumber) -> None:
    path = files.path(inode)
    files.make_directory(os.path.dirname(path))
    os.close(files.open(path, os.O_CREAT))


def test_images_are_found_by_their_numbers(files: ImageFiles, tmp_path: Path) -> None:
    make(files, ONE)
    make(files, FAR)
    (tmp_path / "spare").mkdir()
    (tmp_path / "spare" / "7").touch()
    assert set(files.numbers()) == {ONE, FAR}
    assert len(files.directories()) == 2
    os.close(files.open_to_read(ONE))


def test_what_is_no_file_is_no_image(files: ImageFiles, tmp_path: Path) -> None:
    make(files, ONE)
    os.symlink("/etc/passwd", files.path(InodeNumber(2)))
    assert list(misfits(tmp_path)) == [Path(files.path(InodeNumber(2)))]
    with pytest.raises(OSError, match="2"):
        files.open(files.path(InodeNumber(2)))


def test_who_does_not_own_a_file_opens_it_all_the_same(
    files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(files, ONE)
    flags_asked = []

    def refuse_noatime(path: str, flags: int) -> int:
        flags_asked.append(flags)
        if flags & os.O_NOATIME:
            raise PermissionError(1, "not the owner")
        return os.open(path, flags)

    monkeypatch.setattr("fusemirror.volume.image_files.open_plain", refuse_noatime)
    os.close(files.open(files.path(ONE)))
    os.close(files.open(files.path(ONE)))
    assert len(flags_asked) == 3, "it is not tried again"
