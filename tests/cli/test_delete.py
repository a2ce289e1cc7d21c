"""`fusemirror delete`: what goes, and what stays."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusemirror.cli.defining import alone_in
from fusemirror.communication.place import take_place
from fusemirror.errors import VolumeMissing
from fusemirror.volume.volume import Volume
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES


@pytest.fixture(autouse=True)
def _with_a_filesystem(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("create", "data", "main", *ADDRESSES).exit_code == 0


def test_settings_and_keys_go_and_the_copy_stays(run: Run, tmp_path: Path) -> None:
    done = run("delete", "data")
    assert done.exit_code == 0
    assert f"its copy of the files stays in {tmp_path}/main" in done.stderr
    assert list((tmp_path / "etc").iterdir()) == []
    Volume.open(tmp_path / "main").close()
    assert run("delete", "data").exit_code == 10


def test_what_a_killed_command_has_left_is_forgotten_and_the_name_can_be_had_again(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "etc" / "data.toml").unlink()  # it is written last
    refused = run("create", "data", "again", *ADDRESSES, "--join-file", "again.join")
    assert (refused.exit_code, "`fusemirror delete data`" in refused.stderr) == (6, True)
    with alone_in(tmp_path / "etc" / "data"):  # as long as the command lives
        assert run("delete", "data").exit_code == 6
    assert run("delete", "data").exit_code == 0
    assert list((tmp_path / "etc").iterdir()) == []
    assert run("create", "data", "again", *ADDRESSES, "--join-file", "again.join").exit_code == 0


def test_with_its_volume_nothing_is_left_and_it_can_be_made_anew(run: Run, tmp_path: Path) -> None:
    assert run("delete", "data", "--volume").exit_code == 0
    assert not (tmp_path / "main").exists()
    (tmp_path / "data.join").unlink()
    assert run("create", "data", "main", *ADDRESSES).exit_code == 0


def staged_elsewhere(tmp_path: Path) -> Path:
    """The directory of its own that the volume stages requests in from now on."""
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    volume = Volume.open(tmp_path / "main")
    take_place(place, volume.identity, was_in_use=False)
    volume.update_identity(communication_directory=str(place))
    volume.close()
    return place


def test_with_its_volume_go_the_requests_that_were_staged_elsewhere(run: Run, tmp_path: Path) -> None:
    place = staged_elsewhere(tmp_path)
    (place / "data.mdb").touch()
    assert run("delete", "data", "--volume").exit_code == 0
    assert list(place.iterdir()) == []


def test_the_disk_of_a_journal_is_emptied_and_what_is_to_be_unmounted_is_told(
    run: Run, tmp_path: Path, own_disk: Callable[[Path], None]
) -> None:
    journal = tmp_path / "main" / "journal"
    own_disk(journal)
    (journal / "lost+found").mkdir(mode=0o700)
    done = run("delete", "data", "--volume")
    assert done.exit_code == 0, done.stderr
    assert f"Forgot data; empty, and left for you to unmount and remove: {journal}\n" in done.stderr
    assert [path.name for path in (tmp_path / "main").iterdir()] == ["journal"]
    assert [path.name for path in journal.iterdir()] == ["lost+found"]
    assert list((tmp_path / "etc").iterdir()) == []


def test_what_is_called_as_the_directory_of_a_disk_goes_where_no_disk_is_mounted(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "main" / "journal" / "lost+found").mkdir(mode=0o700)
    assert run("delete", "data", "--volume").exit_code == 0
    assert not (tmp_path / "main").exists()


def _failing(path: Path, *_others: object, **_more: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


def test_a_removal_that_was_cut_short_can_be_given_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("rmdir", "unlink"):  # at the first directory that is removed, and at the first file
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, _failing)
            done = run("delete", "data", "--volume")
        assert (done.exit_code, "Input/output error" in done.stderr) == (1, True), done.stderr
        assert (tmp_path / "etc" / "data.toml").exists()
        with pytest.raises(VolumeMissing):
            Volume.open(tmp_path / "main")
    assert run("delete", "data", "--volume").exit_code == 0
    assert not (tmp_path / "main").exists()
    assert list((tmp_path / "etc").iterdir()) == []


def test_no_removal_goes_on_in_what_is_a_volume_or_of_another_name(run: Run, tmp_path: Path) -> None:
    identity, removed = tmp_path / "main" / "identity.json", tmp_path / "main" / "identity.removed"
    removed.write_text(identity.read_text())
    identity.write_text(identity.read_text().replace("data", "other"))
    assert "belongs to `other`" in run("delete", "data", "--volume").stderr
    identity.rename(removed)
    assert "belongs to `other`" in run("delete", "data", "--volume").stderr
    assert (tmp_path / "main" / "catalog" / "data.mdb").exists()


def test_a_removal_that_goes_on_leaves_alone_what_is_not_its_own_any_more(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = staged_elsewhere(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rmdir", _failing)
        assert run("delete", "data", "--volume").exit_code == 1
    assert list(place.iterdir()) == []
    (place / "data.mdb").touch()  # of another filesystem, which has been given the directory since
    assert run("delete", "data", "--volume").exit_code == 0
    assert [path.name for path in place.iterdir()] == ["data.mdb"]
    assert not (tmp_path / "main").exists()


def test_an_immutable_mount_point_stays_where_its_disk_is_not_mounted(run: Run, tmp_path: Path) -> None:
    journal = tmp_path / "main" / "journal"
    for path in journal.iterdir():
        path.unlink()
    if subprocess.run(["chattr", "+i", journal], check=False, capture_output=True).returncode != 0:
        pytest.skip("the filesystem of the tests has no immutable directories")
    try:
        done = run("delete", "data", "--volume")
    finally:
        subprocess.run(["chattr", "-i", journal], check=True)
    assert done.exit_code == 0, done.stderr
    assert f"left for you to unmount and remove: {journal}" in done.stderr
    assert [path.name for path in (tmp_path / "main").iterdir()] == ["journal"]


@pytest.mark.parametrize("part", ["catalog", "somebody's"])
def test_what_else_is_mounted_in_a_volume_keeps_it_as_it_is(
    run: Run, tmp_path: Path, own_disk: Callable[[Path], None], part: str
) -> None:
    place = tmp_path / "main" / part
    place.mkdir(exist_ok=True)
    (place / "file").touch()
    own_disk(place)
    done = run("delete", "data", "--volume")
    assert (done.exit_code, f"something is mounted on {place}" in done.stderr) == (6, True), done.stderr
    assert (place / "file").exists()
    assert (tmp_path / "etc" / "data" / "key.pem").exists()
    Volume.open(tmp_path / "main").close()


def test_nothing_is_removed_while_it_is_mounted(run: Run, tmp_path: Path) -> None:
    volume = Volume.open(tmp_path / "main")
    done = run("delete", "data", "--volume")
    assert (done.exit_code, "unmount it first" in done.stderr) == (6, True)
    volume.close()
    Volume.open(tmp_path / "main").close()
    assert (tmp_path / "etc" / "data" / "key.pem").exists()


def test_what_is_no_volume_of_it_is_not_removed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "main" / "identity.json").rename(tmp_path / "kept")
    done = run("delete", "data", "--volume")
    assert "is not a fusemirror volume" in done.stderr
    assert (tmp_path / "main" / "catalog").exists()
    (tmp_path / "main" / "identity.json").write_text((tmp_path / "kept").read_text().replace("data", "other"))
    done = run("delete", "data", "--volume")
    assert (done.exit_code, "belongs to `other`" in done.stderr) == (10, True)
    assert (tmp_path / "main" / "catalog").exists()


def test_a_volume_that_is_gone_already_is_no_hindrance(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "main")
    assert run("delete", "data", "--volume").exit_code == 0
    assert list((tmp_path / "etc").iterdir()) == []
