"""`fusemirror list`: what is defined on this host, mounted or not, whole or not."""

import json
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from fusemirror.volume.identity import Identity
from tests.admin.answering import answering, result
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES
from tests.volume.conftest import GAMMA


def define(run: Run, tmp_path: Path, name: str) -> None:
    volume = tmp_path / f"volume-{name}"
    assert run("create", name, volume, *ADDRESSES, "--join-file", tmp_path / f"{name}.join").exit_code == 0


def test_mounted_or_not_each_is_one_line(run: Run, tmp_path: Path) -> None:
    for name in ("data", "other"):
        define(run, tmp_path, name)
    status = {"mirror_state": "normal", "mountpoint": "/mnt"}
    with answering(tmp_path / "run", "data", lambda _: [result(status)]):
        lines = run("list").stdout.splitlines()
        found = json.loads(run("list", "--json").stdout)
    assert lines == [
        f"data: primary, normal, with beta, volume {tmp_path}/volume-data, mounted on /mnt",
        f"other: primary, with beta, volume {tmp_path}/volume-other, not mounted",
    ]
    assert [(each["name"], each["mountpoint"], each["error"]) for each in found] == [
        ("data", "/mnt", None),
        ("other", None, None),
    ]


def test_what_cannot_be_used_is_listed_with_the_reason(run: Run, tmp_path: Path) -> None:
    for name in ("data", "other"):
        define(run, tmp_path, name)
    (tmp_path / "etc" / "data.toml").write_text("colour = 1\n")
    shutil.rmtree(tmp_path / "volume-other")
    done = run("list")
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith(f"data: {tmp_path}/etc/data.toml, line 1: colour: unknown key")
    assert "is not a fusemirror volume" in second


def test_all_peers_of_a_volume_are_named(run: Run, tmp_path: Path) -> None:
    define(run, tmp_path, "data")
    identity = Identity.load(tmp_path / "volume-data")
    msgspec.structs.replace(identity, peers=(*identity.peers, GAMMA)).store(tmp_path / "volume-data")
    assert "with beta and gamma, volume" in run("list").stdout


def test_where_there_is_nothing_it_says_so(run: Run) -> None:
    done = run("list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "nothing is defined" in done.stderr
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: it takes root to be somebody else")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_who_may_not_look_is_told_so(run: Run, tmp_path: Path, mode: int) -> None:
    """Whether the directory itself is closed, or one above it."""
    (tmp_path / "etc").mkdir()
    for command in (["list"], ["fsck", "/"]):  # what they import may be root's alone
        run(*command)
    above = [path for path in tmp_path.parents if len(path.parts) > 2]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (*above, tmp_path)}
    for path in modes:
        path.chmod(0o755)
    (tmp_path / "etc").chmod(0o700)
    tmp_path.chmod(mode)
    os.setresuid(65534, 65534, 0)
    try:
        done = run("list")
        elsewhere = run("fsck", "/")  # it needs no settings
    finally:
        os.setresuid(0, 0, 0)
        for path, before in modes.items():
            path.chmod(before)
    assert (done.exit_code, "Permission denied; run it as root" in done.stderr) == (4, True)
    assert "not a fusemirror volume" in elsewhere.stderr
