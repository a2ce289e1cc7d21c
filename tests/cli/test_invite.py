"""`fusemirror invite`: what the mount process is asked, and what the join file holds; the rest is in
tests/control/test_invitation.py and tests/mount/test_tasks.py."""

import stat
from pathlib import Path
from typing import Any

import pytest

from fusemirror import settings
from fusemirror.cli.join_file import read_join_file
from fusemirror.volume.identity import Identity
from tests.admin.answering import answering, failure, result
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES


@pytest.fixture(autouse=True)
def _with_a_filesystem(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("create", "data", "main", *ADDRESSES, "--join-file", "first.join").exit_code == 0


def invite(run: Run, tmp_path: Path, *options: str) -> tuple[Any, list[Any]]:
    requests: list[Any] = []

    def respond(request: Any) -> list[Any]:
        requests.append(request)
        return [result(None)]

    with answering(tmp_path / "run", "data", respond):
        return run("invite", "data", *options), requests


def test_the_mount_and_the_join_file_are_told_the_same_host(run: Run, tmp_path: Path) -> None:
    assert run("set", "data", "witness=http://etcd:2379", "acknowledge=async").exit_code == 0
    done, (asked,) = invite(run, tmp_path, "--peer", "gamma:7001", "--listen", "alpha2:7000")
    assert done.exit_code == 0
    assert "so that it listens on alpha2:7000" in done.stderr
    path = tmp_path / "data.join"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    join, identity = read_join_file(path), Identity.load(tmp_path / "main")
    assert (join.primary.host, join.primary.address) == (identity.host, "alpha2:7000")
    assert asked == {
        "command": "invite",
        "peer": join.backup.host,
        "peer_name": "gamma",
        "certificate": join.backup_keys.certificate,
        "address": "gamma:7001",
        "pairing": 1,
    }
    assert join.backup.host != identity.only_peer.host
    assert (join.pairing, join.witness, join.acknowledge) == (1, "http://etcd:2379", "async")
    chosen = settings.load(tmp_path / "etc" / "data.toml")
    assert (chosen.peer, chosen.listen) == ("gamma:7001", "alpha2:7000")
    (tmp_path / "etc").rename(tmp_path / "etc-alpha")
    assert run("join", "data.join", "sub").exit_code == 0
    joined = settings.load(tmp_path / "etc" / "data.toml")
    assert (joined.witness, joined.peer, joined.listen) == (chosen.witness, "alpha2:7000", "gamma:7001")
    assert Identity.load(tmp_path / "sub").pairing == 1


def test_without_options_the_new_host_is_where_the_lost_one_was(run: Run, tmp_path: Path) -> None:
    done, (asked,) = invite(run, tmp_path, "--host-name", "gamma")
    assert done.exit_code == 0
    assert (asked["peer_name"], asked["address"]) == ("gamma", "beta:7000")


def test_where_the_mount_refuses_no_join_file_stays_and_no_setting_changes(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "etc" / "data.toml").read_text()
    with answering(tmp_path / "run", "data", lambda _: [failure("beta is connected", 6)]):
        done = run("invite", "data", "--peer", "gamma:7000")
    assert (done.exit_code, done.stderr) == (6, "fusemirror: data: beta is connected\n")
    assert not (tmp_path / "data.join").exists()
    assert (tmp_path / "etc" / "data.toml").read_text() == before


def test_a_mount_and_a_free_place_for_the_file_are_needed(run: Run, tmp_path: Path) -> None:
    done = run("invite", "data")
    assert (done.exit_code, "not mounted" in done.stderr) == (3, True)
    assert not (tmp_path / "data.join").exists()
    (tmp_path / "data.join").touch()
    done, asked = invite(run, tmp_path)
    assert (done.exit_code, asked) == (6, [])
    assert run("invite", "data", "--join-file", "x", "--peer", "nowhere").exit_code == 2
