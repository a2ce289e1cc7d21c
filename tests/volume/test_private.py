"""What belongs to a filesystem is closed to others, or refused where that is not enough."""

import os
import stat
from pathlib import Path

import pytest

from fusemirror.errors import RefusedForSafety, VolumeDamaged
from fusemirror.volume.private import (
    check_plain_volume,
    keep_from_writers,
    make_private,
    make_volume_private,
)
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners are for root")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_others_could_get_at_is_closed_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o664)
    assert make_private(path)
    assert mode(path) == 0o600
    assert not make_private(path)


@needs_root
def test_a_link_and_what_belongs_to_somebody_else_are_refused_by_name(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir()
    os.chown(theirs, 1000, 1000)
    link.symlink_to(tmp_path)
    for close in (make_private, keep_from_writers):
        with pytest.raises(RefusedForSafety, match="theirs belongs to user 1000"):
            close(theirs)
        with pytest.raises(RefusedForSafety, match="link is a symbolic link"):
            close(link)


def test_others_may_look_into_a_shared_directory_and_not_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert keep_from_writers(tmp_path)
    assert mode(tmp_path) == 0o755
    assert not keep_from_writers(tmp_path)
    tmp_path.chmod(0o1777)
    with pytest.raises(RefusedForSafety, match="for everybody"):
        keep_from_writers(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_a_volume_is_made_and_stays_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "volume").mkdir()
        Volume.create(tmp_path / "volume", IDENTITY)
        Volume.open(tmp_path / "volume").close()
    finally:
        os.umask(before)
    assert mode(tmp_path / "volume") == 0o700
    assert make_volume_private(tmp_path / "volume") == []
    loose = [
        tmp_path / "volume",
        tmp_path / "volume" / "identity.json",
        tmp_path / "volume" / "catalog" / "data.mdb",
    ]
    for path in loose:
        path.chmod(0o777)
    assert set(make_volume_private(tmp_path / "volume")) == set(loose)
    assert {mode(path) & 0o077 for path in loose} == {0}


@pytest.mark.parametrize(
    "name",
    ["identity.json", "state.json", "lock", "catalog", "catalog/data.mdb", "journal", "images", "images/0"],
)
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_part_of_a_volume_that_is_a_link_is_not_opened(tmp_path: Path, name: str, what: str) -> None:
    directory = tmp_path / "volume"
    Volume.create(directory, IDENTITY)
    Volume.open(directory).close()
    (directory / "images" / "0").mkdir()
    moved = tmp_path / "elsewhere"
    (directory / name).rename(moved)
    if what == "link":
        (directory / name).symlink_to(moved)
    elif name == "images/0":
        pytest.skip("what is no directory there has no images")
    else:
        os.mkfifo(directory / name)
    with pytest.raises(VolumeDamaged, match=f"{name} is a link"):
        check_plain_volume(directory)
