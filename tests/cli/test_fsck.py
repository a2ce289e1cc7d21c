"""`fusemirror fsck` and `export` over real volumes: exit codes of fsck(8), and plain files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fusemirror.volume import check as volume_check
from fusemirror.volume.identity import Identity, KnownPeer
from fusemirror.volume.volume import Volume
from tests.cli.conftest import Run
from tests.volume.test_salvage import LOST, NAMES, flip, killed_volume, names_in


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    identity = Identity(
        filesystem="01" * 16,
        name="data",
        host="02" * 16,
        host_name="alpha",
        peers=(KnownPeer("03" * 16, "beta"),),
        role="primary",
        complete=True,
        compare_all=False,
    )
    Volume.create(directory, identity)
    return directory


def test_a_new_volume_is_clean(run: Run, volume: Path) -> None:
    assert run("fsck", volume).exit_code == 0


def test_what_is_no_volume_cannot_be_checked(run: Run, tmp_path: Path) -> None:
    done = run("fsck", tmp_path)
    assert done.exit_code == 8
    assert done.stderr.startswith("fusemirror: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("repaired", "left", "code"), [(0, 2, 4), (2, 0, 1), (1, 1, 4)])
def test_problems_are_exit_codes(
    run: Run, volume: Path, monkeypatch: pytest.MonkeyPatch, repaired: int, left: int, code: int
) -> None:
    found = volume_check.CheckResult(problems=repaired + left, repaired=repaired)
    monkeypatch.setattr(volume_check, "check", lambda *_arguments: found)
    assert run("fsck", volume, "--repair").exit_code == code


def test_a_damaged_journal_is_repaired_where_its_disk_is_mounted(
    run: Run, tmp_path: Path, own_disk: Callable[[Path], None]
) -> None:
    directory = tmp_path / "spread"
    place = killed_volume(directory)[LOST]
    own_disk(directory / "journal")
    flip(directory, place + 60)
    done = run("fsck", directory, "--repair")
    assert done.exit_code == 1, done.output
    assert "the old journal is lost-journal" in done.stdout
    assert (directory / "journal").is_mount()
    assert run("fsck", directory).exit_code == 0
    assert names_in(directory) == [name for name in NAMES if name != NAMES[LOST]]


def test_a_file_in_the_place_of_the_catalog_is_moved_away(run: Run, volume: Path) -> None:
    (volume / "catalog" / "data.mdb").unlink()
    (volume / "catalog" / "lock.mdb").unlink(missing_ok=True)
    (volume / "catalog").rmdir()
    (volume / "catalog").write_bytes(b"no catalog")
    done = run("fsck", volume, "--repair")
    assert done.exit_code == 1, done.output
    assert (volume / "lost-catalog").read_bytes() == b"no catalog"
    assert run("fsck", volume).exit_code == 0


@pytest.mark.parametrize("part", ["catalog/data.mdb", "staged/0000000000000001.requests"])
def test_a_repair_that_would_move_what_is_mounted_is_refused_before_anything_is_changed(
    run: Run, volume: Path, own_disk: Callable[[Path], None], part: str
) -> None:
    directory = (volume / part).parent
    directory.mkdir(exist_ok=True)
    (volume / part).write_bytes(b"nonsense" * 1024)
    own_disk(directory)
    before = {path: path.read_bytes() for path in volume.glob("*.json")}
    done = run("fsck", volume, "--repair")
    assert (done.exit_code, "repaired" in done.output) == (8, False), done.output
    assert f"something is mounted on {directory}, so nothing else can take its place;" in done.stderr
    assert {path: path.read_bytes() for path in volume.glob("*.json")} == before
    assert (volume / part).read_bytes() == b"nonsense" * 1024


def test_export_needs_an_empty_target(run: Run, volume: Path, tmp_path: Path) -> None:
    assert run("export", volume, tmp_path / "out").exit_code == 0
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "mine").write_text("mine")
    done = run("export", volume, tmp_path / "out")
    assert done.exit_code == 6
    assert done.stderr.count("\n") == 1
