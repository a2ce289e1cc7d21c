"""The join file: readable by its owner only, and refused whole when anything in it is wrong."""

import json
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
    with pytest.raises(BadJoinFile):
        read_join_file(path)
