"""Programs that people run, at work on one host, their results looked at on the other."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, FILESYSTEM, Host, TwoHosts, assert_same, digest, run, snapshot

_numbers = count()
MIB = 1 << 20


@pytest.fixture
def name() -> str:
    return f"program{next(_numbers)}"


@pytest.fixture
def mine(here: Host, name: str) -> Path:
    (here.mountpoint / name).mkdir()
    return here.mountpoint / name


@pytest.fixture
def theirs(mine: Path, there: Host, name: str) -> Path:
    return there.mountpoint / name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with something of everything that archivers keep."""
    root = tmp_path / "tree"
    run("cp", "-r", CHECKOUT / "fusemirror", root)
    (root / "sub").mkdir(mode=0o2750)
    (root / "hard").write_text("two names")
    os.link(root / "hard", root / "sub/hard")
    os.symlink("../hard", root / "sub/soft")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o020600, os.makedev(1, 3))
    os.setxattr(root / "hard", "user.kept", b"\0\1\2")
    os.setxattr(root / "sub", "trusted.kept", b"value")
    run("setfacl", "-m", "u:1234:rw", root / "hard")
    run("setfacl", "-d", "-m", "g:1234:rx", root / "sub")
    (root / "odd \n\xff name").write_bytes(os.urandom(300_000))
    (root / "sparse").touch()
    os.truncate(root / "sparse", 5 * MIB)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.lchown(path, number % 5, number % 7)
        os.utime(path, ns=(number, 10**18 + number), follow_symlinks=False)
    os.utime(root, ns=(0, 10**18))
    return root


def test_git_commits_from_both_hosts_in_turn(pair: TwoHosts, name: str) -> None:
    git = ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    repositories = [host.mountpoint / name for host in pair]
    run("git", "init", "--quiet", repositories[0])
    for number in range(10):
        host, repository = pair.hosts[number % 2], repositories[number % 2]
        (repository / f"file{number % 3}").write_bytes(os.urandom(20_000))
        host.run(*git, "-C", repository, "add", "--all")
        host.run(*git, "-C", repository, "commit", "--quiet", "-m", f"commit {number} by {host.name}")
    pair.primary.run(*git, "-C", repositories[0], "gc", "--quiet")
    for host, repository in zip(pair, repositories, strict=True):
        host.run("git", "-C", repository, "fsck", "--full", "--strict")
        history = host.run("git", "-C", repository, "log", "--oneline").stdout.splitlines()
        assert len(history) == 10
        assert host.run("git", "-C", repository, "status", "--porcelain").stdout == ""


def test_sqlite_keeps_its_transactions(pair: TwoHosts, name: str) -> None:
    files = [host.mountpoint / f"{name}.db" for host in pair]
    for number in range(10):
        with closing(sqlite3.connect(files[number % 2])) as database:
            assert database.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS lines (number INTEGER PRIMARY KEY, words TEXT)")
                rows = [(number * 100 + row, "words " * row) for row in range(100)]
                database.executemany("INSERT INTO lines VALUES (?, ?)", rows)
            database.execute("BEGIN")
            database.execute("DELETE FROM lines")
            database.rollback()
    for file in files:
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert database.execute("SELECT count(*), max(number) FROM lines").fetchone() == (1000, 999)
    assert not files[0].with_name(f"{name}.db-journal").exists()


def test_rsync_copies_everything(tree: Path, mine: Path, theirs: Path) -> None:
    run("rsync", "-aHAX", "--sparse", f"{tree}/", mine)
    assert_same(snapshot(tree), snapshot(theirs), "the tree and its copy")
    changes = run("rsync", "-aHAX", "--itemize-changes", "--checksum", f"{tree}/", theirs).stdout
    assert changes == "", "a second rsync finds nothing to do"
    assert (theirs / "hard").stat().st_ino == (theirs / "sub/hard").stat().st_ino


def test_tar_unpacks_and_packs_everything(tree: Path, mine: Path, theirs: Path, tmp_path: Path) -> None:
    options = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")
    run("tar", "-C", tree, *options, "-cf", mine / "archive.tar", ".")
    (mine / "unpacked").mkdir()
    run("tar", "-C", theirs / "unpacked", *options, "-xpf", theirs / "archive.tar")
    run("tar", "-C", mine / "unpacked", *options, "-cf", tmp_path / "again.tar", ".")
    (tmp_path / "again").mkdir()
    run("tar", "-C", tmp_path / "again", *options, "-xpf", tmp_path / "again.tar")
    # tar keeps whole seconds of the times.
    found, expected = (
        {path: facts[:4] + facts[5:] for path, facts in snapshot(root).items()}
        for root in (tmp_path / "again", tree)
    )
    assert found == expected


@pytest.fixture
def loop_directory(tmp_path: Path) -> Iterator[Path]:
    """A mountpoint for an image, free again in the end."""
    directory = tmp_path / "loop"
    directory.mkdir()
    yield directory
    run("umount", directory, expect=None)


def test_an_ext4_image_is_mounted_and_written(mine: Path, theirs: Path, loop_directory: Path) -> None:
    run("truncate", "--size=64M", mine / "image")
    run("mkfs.ext4", "-q", mine / "image")
    run("mount", "-o", "loop", mine / "image", loop_directory)
    run("cp", "-r", CHECKOUT / "fusemirror", loop_directory / "copied")
    (loop_directory / "random").write_bytes(os.urandom(20 * MIB))
    (loop_directory / "random").rename(loop_directory / "renamed")
    written = digest(loop_directory / "renamed")
    run("umount", loop_directory)
    assert digest(theirs / "image") == digest(mine / "image")
    run("e2fsck", "-f", "-n", theirs / "image")
    run("mount", "-o", "loop,ro", theirs / "image", loop_directory)
    assert digest(loop_directory / "renamed") == written
    run("diff", "-r", CHECKOUT / "fusemirror", loop_directory / "copied")
    run("umount", loop_directory)


def test_dd_writes_and_reads_large_blocks(mine: Path, theirs: Path, pair: TwoHosts) -> None:
    run("dd", "if=/dev/urandom", f"of={mine / 'file'}", "bs=3M", "count=7", "conv=fsync")
    run("dd", f"if={theirs / 'file'}", f"of={theirs / 'copy'}", "bs=64k")
    assert digest(mine / "copy") == digest(theirs / "file")
    pair.primary.fusemirror("verify", FILESYSTEM)
