"""A guarded mountpoint: nobody can write into it while nothing is mounted."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusemirror import settings
from fusemirror.cli import guarding
from fusemirror.cli.guarding import guard
from fusemirror.errors import RefusedForSafety
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root: only root may guard a directory")


@pytest.fixture
def undoing() -> Iterator[ExitStack]:
    """Takes back what was guarded; else nobody could remove it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def mountpoint(tmp_path: Path, undoing: ExitStack) -> Path:
    """A directory that can be guarded, and is not when the test is over."""
    path = tmp_path / "mnt"
    path.mkdir()
    try:
        with ExitStack() as trying:
            guard(path, trying)
    except RefusedForSafety as error:
        pytest.skip(str(error))
    undoing.callback(guarding._set_immutable, path, False)
    return path


def test_create_guards_the_mountpoint_and_keeps_it_in_the_settings(
    run: Run, tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("create", "data", "main", *ADDRESSES, "--guard", mountpoint).exit_code == 0
    with pytest.raises(PermissionError):
        (mountpoint / "file").touch()
    assert settings.load(tmp_path / "etc" / "data.toml").mountpoint == str(mountpoint)
    assert run("create", "other", "main2", *ADDRESSES, "--guard", mountpoint).exit_code == 0  # again


def test_a_create_that_fails_leaves_no_guard(
    run: Run, tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (mountpoint, tmp_path / "made"):
        failed = run("create", "data", "main", *ADDRESSES, "--guard", place, "--join-file", "no/where")
        assert failed.exit_code == 1
    (mountpoint / "file").touch()
    assert not (tmp_path / "made").exists()


def test_a_directory_in_use_is_not_guarded(mountpoint: Path, undoing: ExitStack) -> None:
    with pytest.raises(RefusedForSafety, match="something is mounted on /proc"):
        guard(Path("/proc"), undoing)
    (mountpoint / "file").touch()
    with pytest.raises(RefusedForSafety, match="is not an empty directory"):
        guard(mountpoint, undoing)


def test_a_filesystem_without_the_attribute_is_said_so(
    mountpoint: Path, undoing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(RefusedForSafety, match="has no attribute against changes; leave --guard out"):
        guard(mountpoint, undoing)


@pytest.mark.usefixtures("mountpoint")  # it says whether the disk has guards
def test_everybody_gets_to_what_is_made_and_a_failure_takes_all_of_it_away(tmp_path: Path) -> None:
    before = os.umask(0o077)  # as the commands have it
    try:
        with ExitStack() as undoing:
            guard(tmp_path / "a" / "b" / "c", undoing)
            made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
            assert [path.stat().st_mode & 0o777 for path in made] == [0o755] * 3
    finally:
        os.umask(before)
    assert not (tmp_path / "a").exists()
