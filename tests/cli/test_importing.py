"""`fusemirror create --import`: what was in the tree is in the volume, and the tree is as it was."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fusemirror.cli import importing
from fusemirror.volume.check import check
from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES
from tests.hosts import assert_same, snapshot, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root: owners and devices are for root")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of everything that a filesystem can have."""
    monkeypatch.chdir(tmp_path)
    tree = tmp_path / "tree"
    below = tree / "directory" / "below"
    below.mkdir(parents=True)
    (tree / "file").write_bytes(b"content" * 500_000)
    (tree / "empty").touch()
    (below / b"\xff\xfe of bytes".decode(errors="surrogateescape")).write_text("no UTF-8")
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 24)
        file.seek(1 << 23)
        file.write(b"in the middle")
    os.link(tree / "file", below / "another name")
    (tree / "link").symlink_to("/nowhere/" + "x" * 200)
    os.lchown(tree / "link", 5, 6)
    os.mkfifo(tree / "pipe", 0o640)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("tree/socket")
    os.chown(tree / "file", 1000, 1001)
    (tree / "file").chmod(0o4751)
    (tree / "directory").chmod(0o3775)
    os.chown(tree / "directory", 7, 8)
    (below / "of a setgid directory").touch(0o600)
    os.setxattr(tree / "file", "user.note", b"kept")
    os.setxattr(tree / "file", "trusted.note", bytes(30))
    # A file capability: cap_net_raw=ep, revision 2.
    os.setxattr(
        tree / "empty", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    subprocess.run(["setfacl", "-m", "u:1234:rw,d:u:1234:rx", tree / "directory"], check=False)
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 2 * 10**18 + number), follow_symlinks=False)
    os.utime(tree, ns=(1, -5))
    return tree


def test_what_comes_out_is_what_went_in(run: Run, tree: Path, tmp_path: Path) -> None:
    before = snapshot(tree)
    done = run("create", "data", "main", *ADDRESSES, "--import", "tree")
    assert done.exit_code == 0, done.stderr
    assert f"Took in {len(before) - 1} names from tree" in done.stderr
    assert_same(before, snapshot(tree), "the tree before and after")
    assert check(tmp_path / "main", repair=False, report=print).left == 0
    assert run("export", "main", "out").exit_code in (0, 1)  # a socket is made by no export
    assert_same(before, snapshot(tmp_path / "out"), "what went in and what came out")
    assert (tmp_path / "out" / "file").stat().st_ino == (
        tmp_path / "out" / "directory" / "below" / "another name"
    ).stat().st_ino
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 1 << 20
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "main" / "images").rglob("*"))
    assert used < 8 << 20


def test_where_it_stops_nothing_stays_and_the_file_is_named(
    run: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "SYMLINK_BYTES_MAX", 100)
    done = run("create", "data", "main", *ADDRESSES, "--import", "tree")
    assert (done.exit_code, "the import stopped at tree/link: the target" in done.stderr) == (1, True)
    assert done.stderr.count("\n") == 1
    assert not any((tmp_path / name).exists() for name in ("main", "data.join", "etc/data.toml", "etc/data"))


def test_a_tree_that_holds_the_volume_is_refused(run: Run, tree: Path, tmp_path: Path) -> None:
    for volume, source in (("tree/main", "tree"), ("main", "nowhere"), ("main", "tree/file")):
        assert run("create", "data", volume, *ADDRESSES, "--import", source).exit_code == 6
    assert not (tmp_path / "data.join").exists()


def test_a_tree_may_be_deeper_than_python_calls_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    depth = sys.getrecursionlimit() + 100
    (tmp_path / "deep").mkdir()
    here = os.open("deep", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        done = run("create", "data", "main", *ADDRESSES, "--import", "deep")
        assert (done.exit_code, f"Took in {depth} names" in done.stderr) == (0, True), done.stderr
    finally:
        subprocess.run(
            ["rm", "-rf", "deep"], check=True
        )  # what pytest removes its directories by calls itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_it_finds_nothing_made(tmp_path: Path, number: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in range(10_000):
        (source / str(file)).touch()
    places = ["--config-dir", str(tmp_path / "etc"), "--runtime-dir", str(tmp_path / "run")]
    # Both are ignored where the tests have no terminal.
    python = ["env", "--default-signal=INT,HUP", sys.executable]
    command = [*python, "-P", "-m", "fusemirror", *places, "create", "data", "main", *ADDRESSES]
    with subprocess.Popen(
        [*command, "--import", "source"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until((tmp_path / "main" / "lock").exists, 60, "the volume is being made")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (130, "fusemirror: interrupted")
    assert [path.name for path in tmp_path.iterdir() if path != source] == ["etc"]
    assert not list((tmp_path / "etc").iterdir())
