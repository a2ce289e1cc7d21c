import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import VolumeDamaged, VolumeError, VolumeFormat, VolumeInUse, VolumeMissing
from fusemirror.volume.identity import FORMAT_VERSION, Identity, Shutdown, VolumeLock, boot_id
from tests.volume.conftest import IDENTITY


def test_an_identity_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    IDENTITY.store(tmp_path)
    assert Identity.load(tmp_path) == IDENTITY
    assert os.listdir(tmp_path) == ["identity.json"]


def test_a_directory_without_an_identity_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing, match=r"identity\.json"):
        Identity.load(tmp_path)


def test_a_later_format_is_refused_even_with_fields_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps({"format": FORMAT_VERSION + 1, "other": []}))
    with pytest.raises(VolumeFormat, match=str(FORMAT_VERSION + 1)):
        Identity.load(tmp_path)


@given(content=st.binary() | st.text().map(str.encode) | st.sampled_from([b"{}", b"[1]", b'{"format": 1}']))
def test_what_is_no_identity_is_damage(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("identity")
    (directory / "identity.json").write_bytes(content)
    with pytest.raises(VolumeError):
        Identity.load(directory)


def test_an_unknown_role_is_damage(tmp_path: Path) -> None:
    IDENTITY.store(tmp_path)
    path = tmp_path / "identity.json"
    path.write_text(path.read_text().replace("primary", "both"))
    with pytest.raises(VolumeDamaged, match="role"):
        Identity.load(tmp_path)


def test_a_state_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    state = Shutdown(clean=True, boot_id=boot_id())
    state.store(tmp_path)
    assert Shutdown.load(tmp_path) == state


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b'{"clean": 1}'])
def test_a_state_that_cannot_be_read_counts_as_a_power_cut(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    state = Shutdown.load(tmp_path)
    assert not state.clean
    assert state.boot_id != boot_id()


def test_a_second_lock_names_the_process_that_holds_the_first(tmp_path: Path) -> None:
    lock = VolumeLock(tmp_path)
    with pytest.raises(VolumeInUse, match=str(os.getpid())):
        VolumeLock(tmp_path)
    lock.release()
    VolumeLock(tmp_path).release()


def test_a_lock_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing):
        VolumeLock(tmp_path / "none")


@pytest.mark.parametrize("clean", [True, False])
def test_on_a_disk_without_an_inode_left_the_state_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    Shutdown(clean=not clean, boot_id=boot_id()).store(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fusemirror.volume.identity.replace_file", full)
    Shutdown(clean=clean, boot_id=boot_id()).store(tmp_path)
    assert Shutdown.load(tmp_path) == Shutdown(clean=clean, boot_id=boot_id())
