"""A place of its own: what is refused there, and what the mark is for."""

import os
from pathlib import Path

import msgspec
import pytest

from fusemirror.communication.place import MARK, leave_place, take_place
from fusemirror.errors import RefusedForSafety
from tests.volume.conftest import IDENTITY

OTHER = msgspec.structs.replace(IDENTITY, filesystem="ab" * 16, name="other")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir(mode=0o700)
    return directory


def test_an_empty_directory_is_taken_and_taken_again(place: Path) -> None:
    (place / "lost+found").mkdir()
    assert not take_place(place, IDENTITY, was_in_use=False)
    for was_in_use in (True, False):
        assert not take_place(place, IDENTITY, was_in_use=was_in_use)


def test_what_others_could_get_at_is_closed(place: Path) -> None:
    take_place(place, IDENTITY, was_in_use=False)
    (place / "data.mdb").write_bytes(b"requests")
    (place / "data.mdb").chmod(0o644)
    place.chmod(0o755)
    assert take_place(place, IDENTITY, was_in_use=True)
    assert [path.stat().st_mode & 0o777 for path in (place, place / "data.mdb")] == [0o700, 0o600]


def test_no_two_filesystems_share_it(place: Path) -> None:
    take_place(place, IDENTITY, was_in_use=False)
    with pytest.raises(
        RefusedForSafety, match=f"another filesystem or host .{IDENTITY.name}.; choose another"
    ):
        take_place(place, OTHER, was_in_use=False)
    leave_place(place)
    take_place(place, OTHER, was_in_use=False)


def test_nor_do_both_hosts_of_one(place: Path) -> None:
    take_place(place, IDENTITY, was_in_use=False)
    with pytest.raises(RefusedForSafety, match="another filesystem or host"):
        take_place(place, msgspec.structs.replace(IDENTITY, host=IDENTITY.only_peer.host), was_in_use=False)


@pytest.mark.parametrize("was_in_use", [False, True])
def test_one_that_is_not_there_is_refused(place: Path, was_in_use: bool) -> None:
    place.rmdir()
    with pytest.raises(RefusedForSafety, match="mount" if was_in_use else "is not there; make it"):
        take_place(place, IDENTITY, was_in_use=was_in_use)


def test_the_mount_point_of_a_disk_that_is_not_mounted_is_not_taken_for_it(place: Path) -> None:
    with pytest.raises(RefusedForSafety, match=r"may be staged .* its disk is not there"):
        take_place(place, IDENTITY, was_in_use=True)
    assert not list(place.iterdir())


def test_what_is_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (place / "letters").touch()
    with pytest.raises(RefusedForSafety, match="is not empty"):
        take_place(place, IDENTITY, was_in_use=False)
    for path, why in ((tmp_path / "file", "not a directory"), (tmp_path / "link", "symbolic link")):
        path.touch() if path.name == "file" else path.symlink_to(place)
        with pytest.raises(RefusedForSafety, match=why):
            take_place(path, IDENTITY, was_in_use=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_what_belongs_to_somebody_else_is_refused(place: Path) -> None:
    os.chown(place, 1234, 1234)
    with pytest.raises(RefusedForSafety, match="belongs to user 1234"):
        take_place(place, IDENTITY, was_in_use=False)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b"x" * 5000])
def test_a_mark_that_cannot_be_read_is_an_error_with_its_name(place: Path, content: bytes) -> None:
    (place / MARK).write_bytes(content)
    with pytest.raises((RefusedForSafety, OSError), match=MARK):
        take_place(place, IDENTITY, was_in_use=False)
