"""The join file: readable by its owner only, and refused whole when anything in it is wrong."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.cli.join_file import JoinFile, Side, read_join_file, write_join_file
from fusemirror.errors import BadJoinFile
from fusemirror.keys import KeyPair
from fusemirror.settings import Access, Acknowledge, Communication

JOIN = JoinFile(
    name="data",
    filesystem="01" * 16,
    primary=Side("02" * 16, "alpha", "alpha:7000"),
    backup=Side("03" * 16, "beta", "beta:7000"),
    access=Access.ROUTED,
    acknowledge=Acknowledge.SYNC,
    communication=Communication.LMDB,
    primary_certificate="a certificate",
    backup_keys=KeyPair("another", "and its key"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.join"


def test_it_is_read_back_as_written_and_for_its_owner_only(path: Path) -> None:
    write_join_file(path, JOIN)
    assert read_join_file(path) == JOIN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_never_replaces_a_file(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_join_file(path, JOIN)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": 1}, "its format is 1, and this program knows 2"),
        ({"protocol": 99}, "its protocol is 99"),
        ({"name": 7}, "Expected `str`"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"primary": {}}, "missing required field"),
        ({"filesystem": "../x"}, "matching regex"),
        ({"access": "both"}, "Invalid enum value"),
    ],
)
def test_what_is_wrong_is_said(path: Path, change: dict[str, Any], what: str) -> None:
    write_join_file(path, JOIN)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadJoinFile, match=what) as caught:
        read_join_file(path)
    assert caught.value.exit_code == 10


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(BadJoinFile, match="No such file"):
        read_join_file(path)


@given(st.binary() | st.sampled_from([b"[]", b"null", b"{}", b'{"format": 2, "protocol": 1}', b'"\xff"']))
def test_no_bytes_raise_anything_but_bad_join_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "data.join"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadJoinFile):
        read_join_file(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"name": "\xff"}', "not UTF-8"),
        (b'{"a":' * 12_000, "nested too deeply"),
        (b" " * (64 * 1024 + 1), "longer than 65536 bytes"),
        (b"", "cut short"),
        (b'{"format": 2, "na', "cut short"),
    ],
)
def test_what_is_no_join_file_is_said_in_one_line(path: Path, content: bytes, what: str) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadJoinFile, match=what) as caught:
        read_join_file(path)
    assert "\n" not in str(caught.value)


def test_one_that_others_may_read_is_refused(path: Path) -> None:
    write_join_file(path, JOIN)
    path.chmod(0o640)
    with pytest.raises(BadJoinFile, match=r"others may read it \(mode 0640\)"):
        read_join_file(path)


@pytest.mark.parametrize("what", ["link", "pipe", "directory"])
def test_what_is_no_file_is_not_opened(path: Path, tmp_path: Path, what: str) -> None:
    write_join_file(tmp_path / "real", JOIN)
    if what == "link":
        path.symlink_to("real")
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir()
    with pytest.raises(BadJoinFile, match="a link, a device or a pipe"):
        read_join_file(path)


def test_a_full_disk_leaves_no_part_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_join_file(path, JOIN)
    assert not path.exists()
