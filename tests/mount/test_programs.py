"""Programs that people run, at work on one host, their results looked at on the other."""

import os
import shutil
import sqlite3
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import lmdb
import pytest

from tests.hosts import CHECKOUT, FILESYSTEM, Host, TwoHosts, assert_same, digest, run, snapshot

_numbers = count()
MIB = 1 << 20

# Short here; a person sets more to see what a long run does.
SECONDS = int(os.environ.get("FUSEMIRROR_PROGRAM_SECONDS", "2"))


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


def test_git_clones_what_the_other_host_committed(pair: TwoHosts, mine: Path, theirs: Path) -> None:
    git = ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    run("git", "init", "--quiet", mine / "origin")
    run("cp", "-r", CHECKOUT / "fusemirror", mine / "origin/tree")
    run(*git, "-C", mine / "origin", "add", "--all")
    run(*git, "-C", mine / "origin", "commit", "--quiet", "-m", "a tree")
    run("git", "clone", "--quiet", "--no-local", theirs / "origin", theirs / "clone")
    run("git", "-C", mine / "clone", "gc", "--quiet", "--aggressive", "--prune=now")
    for copy in (mine / "clone", theirs / "clone"):
        run("git", "-C", copy, "fsck", "--full", "--strict")
        assert run("git", "-C", copy, "status", "--porcelain").stdout == ""
    run("diff", "-r", CHECKOUT / "fusemirror", theirs / "clone/tree")


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


def test_sqlite_with_a_write_ahead_log_goes_from_host_to_host(pair: TwoHosts, name: str) -> None:
    """Its index is a shared memory map; closed at one host, the database is opened at the other."""
    files = [host.mountpoint / f"{name}.db" for host in pair]
    for number in range(6):
        with (
            closing(sqlite3.connect(files[number % 2])) as one,
            closing(sqlite3.connect(files[number % 2])) as two,
        ):
            assert one.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
            with one:
                one.execute("CREATE TABLE IF NOT EXISTS lines (number INTEGER PRIMARY KEY, words TEXT)")
                rows = [(number * 100 + row, "words " * row) for row in range(100)]
                one.executemany("INSERT INTO lines VALUES (?, ?)", rows)
            assert files[number % 2].with_name(f"{name}.db-wal").stat().st_size > 0
            assert two.execute("SELECT count(*) FROM lines").fetchone() == (number * 100 + 100,)
            two.execute("DELETE FROM lines")
            two.rollback()
    for file in files:
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert database.execute("SELECT count(*), max(number) FROM lines").fetchone() == (600, 599)


def test_lmdb_writes_through_a_shared_map(mine: Path, theirs: Path) -> None:
    for turn, directory in enumerate((mine, theirs, mine)):
        with lmdb.open(str(directory), map_size=64 * MIB, writemap=True) as environment:
            with environment.begin(write=True) as transaction:
                for row in range(2000):
                    transaction.put(b"%d %d" % (turn, row), b"value " * (row % 50))
            with environment.begin() as transaction:
                assert transaction.stat()["entries"] == 2000 * (turn + 1)


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


def test_gcc_builds_a_program_that_the_other_host_runs(mine: Path, theirs: Path) -> None:
    names = [f"part{number}" for number in range(8)]
    for name in names:
        body = "".join(f"int {name}_{n}(int x) {{ return x * {n} + 1; }}\n" for n in range(300))
        (mine / f"{name}.c").write_text(f"#include <stdio.h>\n{body}")
        run("gcc", "-O1", "-g", "-c", f"{name}.c", cwd=theirs)
    run("ar", "rcs", "libparts.a", *(f"{name}.o" for name in names), cwd=mine)
    declared = "".join(f"int {name}_7(int);" for name in names)
    total = "+".join(f"{name}_7(1)" for name in names)
    source = f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {total}); }}\n'
    (theirs / "main.c").write_text(source)
    run("gcc", "-o", "program", "main.c", "-L.", "-lparts", cwd=mine)
    assert run(theirs / "program").stdout == "64\n"


def wheel(directory: Path) -> Path:
    """A package for pip, made here: no index is asked."""
    path, info = directory / "greeting-1.0-py3-none-any.whl", "greeting-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greeting.py", "WORDS = 'installed'\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_virtual_environment_is_made_here_and_used_there(pair: TwoHosts, name: str) -> None:
    """At one path on both hosts, as a virtual environment needs it: each runs what lies on its mount."""
    mine, theirs = (host.mountpoint / name for host in pair)
    run(sys.executable, "-m", "venv", *([] if SECONDS > 10 else ["--without-pip"]), mine)
    pip = (sys.executable, "-m", "pip", "--python", theirs / "bin/python")
    run(*pip, "install", "--quiet", "--no-index", wheel(pair.directory))
    program = "import greeting; print(greeting.WORDS)"
    assert run(mine / "bin/python", "-c", program).stdout == "installed\n"
    assert run(theirs / "bin/python", "-c", program).stdout == "installed\n"


def test_qemu_img_makes_converts_and_checks_images(mine: Path, theirs: Path) -> None:
    image = mine / "image.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    written = "write -q -P 7 1M 3M", "write -q -P 9 40M 64k", "discard -q 2M 64k", "flush"
    run("qemu-io", *(f"-c{command}" for command in written), image)
    there = theirs / "image.qcow2"
    run("qemu-img", "check", "-q", there)
    run("qemu-img", "convert", "-t", "none", "-O", "raw", there, theirs / "image.raw")
    run("qemu-img", "compare", "-q", image, mine / "image.raw")
    run("qemu-img", "resize", "-q", there, "128M")
    run("qemu-img", "snapshot", "-c", "first", there)
    run("qemu-img", "check", "-q", image)
    read = run("qemu-io", "-c", "read -P 7 1M 1M", "-c", "read -P 9 40M 64k", "-f", "raw", mine / "image.raw")
    assert "Pattern verification failed" not in read.stdout


def test_dbench_finds_no_error(here: Host, mine: Path) -> None:
    loads = "/usr/share/dbench/client.txt"
    result = here.run("dbench", "-c", loads, "-D", mine, "-t", str(SECONDS), "4", timeout_s=SECONDS + 120)
    assert "Throughput" in result.stdout, result.stdout
    # The first set of semaphores that a machine gives has the number 0, which dbench takes for a failure.
    said = result.stdout.replace("failed to create barrier semaphore", "")
    assert "failed" not in said, said


class Postgres:
    """A PostgreSQL server on a host, its data on the mount, reached by a socket in a directory of its own."""

    def __init__(self, host: Host, data: Path, sockets: Path) -> None:
        self._host = host
        self._data = data
        self._sockets = sockets
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"))

    def run(self, program: str, *arguments: str | Path) -> str:
        as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        command = (*as_postgres, self._programs / program, *arguments)
        return self._host.run(*command, cwd=self._sockets, timeout_s=SECONDS + 300).stdout

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets}"
        log = self._sockets / "log"
        self.run("pg_ctl", "-D", self._data, "-l", log, "-o", options, "-w", "-s", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "-s", "stop")

    def ask(self, query: str) -> str:
        return self.run("psql", "-h", self._sockets, "-d", "postgres", "-Atc", query).strip()

    def bench(self, *options: str) -> str:
        return self.run("pgbench", "-h", self._sockets, *options, "postgres")


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory of the database's user, with a path that is short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="fusemirror-sql-") as directory:
        shutil.chown(directory, "postgres", "postgres")
        yield Path(directory)


def test_postgresql_works_on_one_host_after_the_other(pair: TwoHosts, name: str, sockets: Path) -> None:
    (pair.primary.mountpoint / name).mkdir(mode=0o700)
    shutil.chown(pair.primary.mountpoint / name, "postgres", "postgres")
    for path in (pair.directory, *(host.directory for host in pair)):
        path.chmod(0o755)  # mkdtemp made the way to the mounts root's alone
    servers = [Postgres(host, host.mountpoint / name, sockets) for host in pair]
    servers[0].run("initdb", "--data-checksums", "--auth=trust", "-D", pair.primary.mountpoint / name)
    balances = [
        f"(SELECT sum({column}) FROM pgbench_{table})"
        for column, table in (
            ("abalance", "accounts"),
            ("bbalance", "branches"),
            ("tbalance", "tellers"),
            ("delta", "history"),
        )
    ]
    done = 0
    for server in (servers[0], servers[1], servers[0]):
        server.start()
        try:
            if not done:
                server.bench("--initialize", "--quiet", "--scale=1")
            print(server.bench("--no-vacuum", "--client=4", f"--time={SECONDS}"))
            counted = int(server.ask("SELECT count(*) FROM pgbench_history"))
            assert counted > done, "nothing that one host committed is missing at the other"
            done = counted
            assert len(set(server.ask(f"SELECT {', '.join(balances)}").split("|"))) == 1
        finally:
            server.stop()
    for server, host in zip(servers, pair, strict=True):
        server.run("pg_checksums", "--check", "-D", host.mountpoint / name)
