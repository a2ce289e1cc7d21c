"""`fusemirror delete`: what goes, and what stays."""

import shutil
from pathlib import Path

import pytest

from fusemirror.communication.place import take_place
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


def test_with_its_volume_nothing_is_left_and_it_can_be_made_anew(run: Run, tmp_path: Path) -> None:
    assert run("delete", "data", "--volume").exit_code == 0
    assert not (tmp_path / "main").exists()
    (tmp_path / "data.join").unlink()
    assert run("create", "data", "main", *ADDRESSES).exit_code == 0


def test_with_its_volume_go_the_requests_that_were_staged_elsewhere(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    volume = Volume.open(tmp_path / "main")
    take_place(place, volume.identity, was_in_use=False)
    volume.update_identity(communication_directory=str(place))
    volume.close()
    (place / "data.mdb").touch()
    assert run("delete", "data", "--volume").exit_code == 0
    assert list(place.iterdir()) == []


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
