"""What POSIX and Linux promise of a filesystem, done on either host and looked at on the other."""

import errno
import fcntl
import mmap
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from fusemirror.settings import KernelSession
from tests.hosts import Host, Result, TwoHosts, assert_same, run, snapshot, wait_until
from tests.mount.conftest import checked
from tests.mount.kernel import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    fallocate,
    name_to_handle,
    open_by_handle,
    renameat2,
)
from tests.mount.test_coherence import in_parallel

NOBODY = 65_534
MIB, GIB = 1 << 20, 1 << 30
LEVELS = 200  # each path is looked up from the top: the time grows with the square
LINKS = int(os.environ.get("FUSEMIRROR_LINKS", "500"))  # 65000 is where EMLINK begins; that takes minutes
LINKS_MAX = 65_000
WRITTEN_MIB = int(os.environ.get("FUSEMIRROR_WRITTEN_MIB", "32"))  # 4608: over 4 GiB, on each host
FS_IOC_GETFLAGS = 0x80086601
FICLONE = 0x40049409

_numbers = count()


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """One host is served by our own session, the other by pyfuse3's loop: programs see no difference."""
    with checked(request) as shared:
        for host, session in zip(shared, KernelSession, strict=True):
            host.umount()
            host.mount("-o", f"session={session},dev,suid")
        for host in shared:
            host.wait_for("normal")
        yield shared


@pytest.fixture
def directory(here: Host, there: Host) -> Iterator[str]:
    """The name of a new directory, which both hosts show alike when the test has ended."""
    name = f"posix{next(_numbers)}"
    (here.mountpoint / name).mkdir()
    yield name
    seen, seen_there = (snapshot(host.mountpoint / name) for host in (here, there))
    assert_same(seen, seen_there, "the two mounts")
    for path in seen:
        assert attributes(here.mountpoint / name / path) == attributes(there.mountpoint / name / path)


@pytest.fixture
def mine(here: Host, directory: str) -> Path:
    return here.mountpoint / directory


@pytest.fixture
def theirs(there: Host, directory: str) -> Path:
    return there.mountpoint / directory


def attributes(path: Path) -> tuple[int, ...]:
    """All that stat(2) tells but the device, which differs by host."""
    found = path.lstat()
    names = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks")
    times = ("atime_ns", "mtime_ns", "ctime_ns")
    return tuple(getattr(found, f"st_{name}") for name in names + times)


@contextmanager
def refused(error: int) -> Iterator[None]:
    """The call within fails with this errno."""
    with pytest.raises(OSError, match=r"\[Errno") as raised:
        yield
    assert raised.value.errno == error, f"{raised.value} instead of {errno.errorcode[error]}"


def as_nobody(*command: str | Path) -> Result:
    privileges = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return run(*privileges, *command, expect=None)


# --- types and names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(7, 300)),
    ],
)
def test_a_file_of_any_type_is_made(mine: Path, theirs: Path, kind: int, device: int) -> None:
    os.mknod(mine / "made", kind | 0o640, device)
    found = (theirs / "made").lstat()
    assert (found.st_mode, found.st_rdev, found.st_nlink, found.st_size) == (kind | 0o640, device, 1, 0)
    with refused(errno.EEXIST):
        os.mknod(theirs / "made", kind | 0o640, device)


def test_a_device_file_works(mine: Path, theirs: Path) -> None:
    os.mknod(mine / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with (theirs / "zero").open("rb", buffering=0) as zeros:
        assert zeros.read(3) == b"\0\0\0"


def test_a_fifo_and_a_socket_work_on_their_host(mine: Path) -> None:
    os.mkfifo(mine / "fifo")
    with subprocess.Popen(["cat", mine / "fifo"], stdout=subprocess.PIPE) as cat:
        (mine / "fifo").write_text("through")
        assert cat.communicate()[0] == b"through"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        descriptor = os.open(mine, os.O_RDONLY)  # the path itself would be too long for a socket's name
        name = f"/proc/self/fd/{descriptor}/socket"
        server.bind(name)
        server.listen()
        client.connect(name)
        os.close(descriptor)


def test_directories_count_their_links(mine: Path, theirs: Path) -> None:
    for name in ("a", "b", "a/c"):
        (mine / name).mkdir()
    assert theirs.stat().st_nlink == 4
    os.rename(theirs / "a/c", theirs / "b/c")
    assert [(mine / name).stat().st_nlink for name in ("a", "b", "b/c")] == [2, 3, 2]
    assert (theirs / "b/c/..").stat().st_ino == (mine / "b").stat().st_ino
    (mine / "b/c").rmdir()
    assert (theirs / "b").stat().st_nlink == 2


def test_a_symlink_holds_any_target(mine: Path, theirs: Path) -> None:
    targets = ["missing", "/", "a" * 4095, "é\n "]
    for number, target in enumerate(targets):
        os.symlink(target, mine / f"link{number}")
        assert os.readlink(theirs / f"link{number}") == target
        assert (theirs / f"link{number}").lstat().st_size == len(os.fsencode(target))
    with refused(errno.ENAMETOOLONG):
        os.symlink("a" * 4096, mine / "too-long")


def test_a_name_holds_255_bytes_of_any_kind(mine: Path, theirs: Path) -> None:
    usable = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    names = {usable + b"x", usable[::-1] + b"y", b"-n", b" ", b"\n", b"\xff\xfe", "ü".encode() * 127}
    for name in names:
        os.close(os.open(os.fsencode(mine) + b"/" + name, os.O_CREAT | os.O_EXCL))
    assert set(os.listdir(os.fsencode(theirs))) == names
    with refused(errno.ENAMETOOLONG):
        (theirs / ("n" * 256)).touch()
    with refused(errno.ENAMETOOLONG):
        (theirs / ("n" * 256)).stat()


def test_hard_links_share_everything(mine: Path, theirs: Path) -> None:
    (mine / "one").write_bytes(b"content")
    os.link(mine / "one", mine / "two")
    os.link(theirs / "two", theirs / "three")
    os.chmod(theirs / "three", 0o600)
    assert len({attributes(mine / name) for name in ("one", "two", "three")}) == 1
    assert (mine / "one").stat().st_nlink == 3
    (mine / "one").unlink()
    (theirs / "two").unlink()
    assert (mine / "three").read_bytes() == b"content"
    assert (mine / "three").stat().st_nlink == 1
    with refused(errno.EPERM):
        os.link(mine, mine / "directory")


def test_a_file_has_very_many_names(mine: Path, theirs: Path) -> None:
    """Half of them given on one host and half on the other, at once."""
    (mine / "first").write_text("one file")

    def give(directory: Path, numbers: range) -> Callable[[], None]:
        def run() -> None:
            for number in numbers:
                os.link(directory / "first", directory / f"{number}")

        return run

    in_parallel(give(mine, range(1, LINKS // 2)), give(theirs, range(LINKS // 2, LINKS)))
    for directory in (mine, theirs):
        assert (directory / f"{LINKS - 1}").stat().st_nlink == LINKS
        assert (directory / f"{LINKS // 2}").read_text() == "one file"
        assert len(os.listdir(directory)) == LINKS
        if LINKS == LINKS_MAX:
            with refused(errno.EMLINK):
                os.link(directory / "first", directory / "one-too-many")
    for number in range(1, LINKS):
        os.unlink((mine, theirs)[number % 2] / f"{number}")
    assert (mine / "first").stat().st_nlink == 1


def test_a_tree_is_very_deep(mine: Path, theirs: Path) -> None:
    deepest = Path(*["d"] * LEVELS)
    (mine / deepest).mkdir(parents=True)
    (theirs / deepest / "file").write_text("at the bottom")
    assert (mine / deepest / "file").read_text() == "at the bottom"
    assert os.path.samefile(mine / deepest / Path(*[".."] * LEVELS), mine)
    with refused(errno.EINVAL):
        os.rename(theirs / "d", theirs / deepest / "d")
    os.rename(theirs / "d/d", theirs / "moved")
    assert (mine / "moved" / Path(*deepest.parts[2:]) / "file").read_text() == "at the bottom"
    shutil.rmtree(theirs / "moved")
    assert os.listdir(mine / "d") == []


# --- rename -------------------------------------------------------------------------------------------


def test_rename_replaces_in_one_step(mine: Path, theirs: Path) -> None:
    (mine / "old").write_text("old")
    (mine / "new").write_text("new")
    os.rename(theirs / "new", theirs / "old")
    assert os.listdir(mine) == ["old"]
    assert (mine / "old").read_text() == "new"


def test_rename_noreplace_replaces_nothing(mine: Path, theirs: Path) -> None:
    (mine / "one").write_text("one")
    (mine / "two").write_text("two")
    with refused(errno.EEXIST):
        renameat2(theirs / "one", theirs / "two", RENAME_NOREPLACE)
    renameat2(theirs / "one", theirs / "three", RENAME_NOREPLACE)
    assert sorted(os.listdir(mine)) == ["three", "two"]


def test_rename_exchange_exchanges_a_file_and_a_directory(mine: Path, theirs: Path) -> None:
    (mine / "sub").mkdir()
    (mine / "sub/directory").mkdir()
    (mine / "file").write_text("file")
    before = (mine / "file").stat().st_ino, (mine / "sub/directory").stat().st_ino
    renameat2(theirs / "file", theirs / "sub/directory", RENAME_EXCHANGE)
    assert ((mine / "sub/directory").stat().st_ino, (mine / "file").stat().st_ino) == before
    assert (mine / "file").is_dir()
    assert (mine / "file/..").stat().st_ino == mine.stat().st_ino
    assert [mine.stat().st_nlink, (mine / "sub").stat().st_nlink] == [4, 2]
    with refused(errno.ENOENT):
        renameat2(theirs / "file", theirs / "missing", RENAME_EXCHANGE)


def test_rename_refuses_what_rename_2_says(mine: Path, theirs: Path) -> None:
    (mine / "full/sub").mkdir(parents=True)
    (mine / "empty").mkdir()
    (mine / "file").touch()
    os.link(mine / "file", mine / "same")
    for old, new, error in (
        ("file", "empty", errno.EISDIR),
        ("empty", "file", errno.ENOTDIR),
        ("empty", "full", errno.ENOTEMPTY),
        ("full", "full/sub/inside", errno.EINVAL),
        ("missing", "other", errno.ENOENT),
        ("file", "missing/other", errno.ENOENT),
        ("file", "same/other", errno.ENOTDIR),
    ):
        with refused(error):
            os.rename(theirs / old, theirs / new)
    os.rename(theirs / "file", theirs / "same")  # two names of one file: nothing happens
    assert sorted(os.listdir(mine)) == ["empty", "file", "full", "same"]
    os.rename(theirs / "full", theirs / "empty")
    assert (mine / "empty/sub").is_dir()


# --- attributes ---------------------------------------------------------------------------------------


def test_every_attribute_is_set(mine: Path, theirs: Path) -> None:
    path = mine / "file"
    path.touch()
    for mode in (0o000, 0o7777, 0o4755, 0o2640, 0o1644):
        path.chmod(mode)
        assert stat.S_IMODE((theirs / "file").stat().st_mode) == mode
    os.chown(path, 1234, -1)
    os.chown(path, -1, 4_000_000_000)
    assert ((theirs / "file").stat().st_uid, (theirs / "file").stat().st_gid) == (1234, 4_000_000_000)
    for times in ((1, 2), (1_234_567_890_123_456_789, 987_654_321), (4_102_444_800_000_000_001, 0)):
        os.utime(path, ns=times)
        found = (theirs / "file").stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == times
    os.utime(path, (-(1 << 40), 1 << 40))  # seconds, that are more nanoseconds than 64 bits hold
    found = (theirs / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (-(1 << 63), (1 << 63) - 1)
    os.lchown(path, 0, 0)
    os.utime(path)
    assert (theirs / "file").stat().st_mtime_ns > 1_700_000_000_000_000_000


def test_time_stamps_change_as_inode_7_says(mine: Path, theirs: Path) -> None:
    def times(path: Path) -> tuple[int, int]:
        return path.stat().st_mtime_ns, path.stat().st_ctime_ns

    def moved(path: Path, act: Callable[[], object]) -> tuple[bool, bool]:
        before = times(path)
        act()
        after = times(path)
        return before[0] < after[0], before[1] < after[1]

    file = mine / "file"
    assert moved(theirs, file.touch) == (True, True)
    assert moved(theirs / "file", lambda: file.write_bytes(b"x")) == (True, True)
    assert moved(theirs / "file", lambda: os.truncate(file, 0)) == (True, True)
    assert moved(theirs / "file", lambda: file.chmod(0o600)) == (False, True)
    assert moved(theirs / "file", lambda: os.link(file, mine / "link")) == (False, True)
    assert moved(theirs, lambda: os.rename(file, mine / "moved")) == (True, True)
    assert moved(theirs / "link", lambda: (mine / "moved").unlink()) == (False, True)
    assert moved(theirs / "link", lambda: (mine / "link").read_bytes()) == (False, False)


def test_extended_attributes_follow_their_flags(mine: Path, theirs: Path) -> None:
    path, seen = mine / "file", theirs / "file"
    path.touch()
    for name, value in {"user.empty": b"", "trusted.a": b"\0\xff", "user.big": os.urandom(65_536)}.items():
        os.setxattr(path, name, value, os.XATTR_CREATE)
        assert os.getxattr(seen, name) == value
    assert sorted(os.listxattr(seen)) == ["trusted.a", "user.big", "user.empty"]
    with refused(errno.EEXIST):
        os.setxattr(seen, "user.empty", b"x", os.XATTR_CREATE)
    with refused(errno.ENODATA):
        os.setxattr(seen, "user.missing", b"x", os.XATTR_REPLACE)
    os.setxattr(seen, "user.empty", b"x", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.empty") == b"x"
    with refused(errno.ENODATA):
        os.removexattr(path, "user.missing")
    with refused(errno.ENODATA):
        os.getxattr(path, "user.missing")
    with refused(errno.E2BIG):
        os.setxattr(path, "user.huge", b"x" * 65_537)
    os.removexattr(seen, "user.big")  # ext4 could not hold it, so the export of the oracle would stop


def test_statfs_shows_the_disk(mine: Path, theirs: Path, here: Host) -> None:
    found, disk = os.statvfs(mine), os.statvfs(here.volume)
    assert found.f_namemax == 255
    assert found.f_frsize * found.f_blocks == disk.f_frsize * disk.f_blocks
    assert 0 < found.f_bavail <= found.f_bfree < found.f_blocks
    assert os.statvfs(theirs).f_files > 0


def test_a_file_is_found_by_its_handle_on_both_hosts(
    mine: Path, theirs: Path, here: Host, there: Host
) -> None:
    (mine / "sub").mkdir()
    (mine / "sub/file").write_text("by handle")
    file, directory = name_to_handle(mine / "sub/file"), name_to_handle(mine / "sub")
    os.rename(mine / "sub", mine / "moved")
    for host in (here, there):
        with os.fdopen(open_by_handle(host.mountpoint, file, os.O_RDONLY)) as opened:
            assert opened.read() == "by handle"
        found = open_by_handle(host.mountpoint, directory, os.O_RDONLY | os.O_DIRECTORY)
        assert os.listdir(found) == ["file"]
        os.close(found)
    with (theirs / "moved/file").open("rb"):
        (theirs / "moved/file").unlink()
        os.close(open_by_handle(there.mountpoint, file, os.O_RDONLY))
    Path("/proc/sys/vm/drop_caches").write_text("2")  # else the kernel knows the inode without asking
    for host in (here, there):
        with refused(errno.ESTALE):
            open_by_handle(host.mountpoint, file, os.O_RDONLY)


# --- permissions --------------------------------------------------------------------------------------


def test_the_umask_is_applied(mine: Path, theirs: Path) -> None:
    run("sh", "-c", 'umask 027; touch "$1/file"; mkdir "$1/sub"; mkfifo "$1/fifo"', "sh", mine)
    modes = {name: stat.S_IMODE((theirs / name).stat().st_mode) for name in ("file", "sub", "fifo")}
    assert modes == {"file": 0o640, "sub": 0o750, "fifo": 0o640}


def test_permissions_bind_an_ordinary_user(mine: Path, theirs: Path, hosts_readable: None) -> None:
    (mine / "secret").write_text("secret")
    (mine / "secret").chmod(0o600)
    (mine / "open").mkdir()
    (mine / "open").chmod(0o1777)
    (mine / "open/roots").touch()
    assert "Permission denied" in as_nobody("cat", theirs / "secret").stderr
    assert "Permission denied" in as_nobody("touch", theirs / "new").stderr
    assert as_nobody("touch", theirs / "open/own").returncode == 0
    assert "not permitted" in as_nobody("rm", "-f", theirs / "open/roots").stderr  # sticky
    assert "not permitted" in as_nobody("chmod", "600", theirs / "open/roots").stderr
    assert "not permitted" in as_nobody("chown", "0", theirs / "open/own").stderr
    assert ((mine / "open/own").stat().st_uid, (mine / "open/own").stat().st_gid) == (NOBODY, NOBODY)
    assert as_nobody("rm", "-f", theirs / "open/own").returncode == 0


@pytest.fixture
def hosts_readable(pair: TwoHosts) -> None:
    """The way to the mounts is open to everyone: mkdtemp made it root's alone."""
    for path in (pair.directory, *(host.directory for host in pair)):
        path.chmod(0o755)


def test_a_set_group_id_directory_hands_down_its_group(mine: Path, theirs: Path) -> None:
    os.chown(mine, 0, 1234)
    mine.chmod(0o2775)
    (theirs / "file").touch()
    (theirs / "sub").mkdir()
    (theirs / "sub/below").mkdir()
    os.symlink("file", theirs / "link")
    assert {(mine / name).lstat().st_gid for name in ("file", "sub", "sub/below", "link")} == {1234}
    assert (mine / "sub/below").stat().st_mode & stat.S_ISGID
    assert not (mine / "file").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(
    "change",
    [
        'printf x >> "$1"',
        'printf x > "$1"',
        'truncate -s 1 "$1"',
        'dd if=/dev/zero of="$1" count=1 conv=notrunc',
    ],
)
def test_a_change_by_an_ordinary_user_ends_set_user_id(
    mine: Path, theirs: Path, hosts_readable: None, change: str
) -> None:
    (mine / "program").write_text("program")
    (mine / "program").chmod(0o6777)
    result = as_nobody("sh", "-c", change, "sh", theirs / "program")
    assert result.returncode == 0, result.stderr
    assert stat.S_IMODE((mine / "program").stat().st_mode) == 0o777


def test_set_user_id_stays_for_root_and_goes_with_the_owner(mine: Path, theirs: Path) -> None:
    (mine / "program").write_text("program")
    (mine / "program").chmod(0o6755)
    (theirs / "program").write_text("by root")
    assert stat.S_IMODE((mine / "program").stat().st_mode) == 0o6755
    os.chown(theirs / "program", NOBODY, NOBODY)
    assert stat.S_IMODE((mine / "program").stat().st_mode) == 0o755


# --- access control lists -----------------------------------------------------------------------------


def entries(path: Path) -> list[str]:
    """What getfacl shows, without comments."""
    lines = run("getfacl", "--omit-header", "--numeric", "--absolute-names", path).stdout.split("\n")
    return [line.split("\t")[0] for line in lines if line]


def test_an_access_list_is_kept_and_obeyed(mine: Path, theirs: Path, hosts_readable: None) -> None:
    path, seen = mine / "file", theirs / "file"
    path.write_text("listed")
    path.chmod(0o640)
    assert "denied" in as_nobody("cat", seen).stderr
    run("setfacl", "-m", f"u:{NOBODY}:r,g:1234:rw", path)
    listed = f"user::rw- user:{NOBODY}:r-- group::r-- group:1234:rw- mask::rw- other::---"
    assert entries(seen) == listed.split()
    assert stat.S_IMODE(seen.stat().st_mode) == 0o660  # the mask shows as the group's bits
    assert as_nobody("cat", seen).stdout == "listed"
    seen.chmod(0o600)
    assert "mask::---" in entries(path)
    assert "denied" in as_nobody("cat", path).stderr
    run("setfacl", "-b", seen)
    assert entries(path) == ["user::rw-", "group::---", "other::---"]
    assert os.listxattr(path) == []


@pytest.mark.parametrize(("groups", "left"), [("", 0o777), ("4321,1234", 0o2777)], ids=["outsider", "member"])
def test_an_access_list_by_one_outside_the_group_ends_set_group_id(
    mine: Path, theirs: Path, hosts_readable: None, groups: str, left: int
) -> None:
    (mine / "file").touch()
    os.chown(mine / "file", NOBODY, 1234)
    (mine / "file").chmod(0o2755)
    belonging = f"--groups={groups}" if groups else "--clear-groups"
    command = ("setfacl", "-m", "u::rwx,g::rwx,o::rwx", theirs / "file")
    run("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", belonging, *command)
    assert stat.S_IMODE((mine / "file").stat().st_mode) == left


def test_a_default_list_is_handed_down(mine: Path, theirs: Path) -> None:
    run("setfacl", "-d", "-m", "u:1234:rwx,g::rx,o::-", mine)
    (theirs / "sub").mkdir()
    os.close(os.open(theirs / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    default = "user::rwx user:1234:rwx group::r-x mask::rwx other::---"
    found = [line for line in entries(mine / "sub") if line.startswith("default:")]
    assert found == [f"default:{entry}" for entry in default.split()]
    assert "user:1234:rwx" in entries(mine / "file")
    assert "other::---" in entries(mine / "file")
    # The list stands in for the umask.
    run("sh", "-c", 'umask 777; touch "$1/masked"; mkdir "$1/masked-sub"', "sh", theirs)
    assert stat.S_IMODE((mine / "masked").stat().st_mode) == 0o660
    assert stat.S_IMODE((mine / "masked-sub").stat().st_mode) == 0o770
    run("setfacl", "-k", theirs)
    run("sh", "-c", 'umask 027; touch "$1/plain"', "sh", theirs)
    assert stat.S_IMODE((mine / "plain").stat().st_mode) == 0o640
    assert "system.posix_acl_default" not in os.listxattr(mine)


# --- content ------------------------------------------------------------------------------------------


def test_a_file_is_sparse_past_4_gib(mine: Path, theirs: Path, here: Host, there: Host) -> None:
    offsets = (0, 4 * GIB - 3, 5 * GIB + 1, 1 << 40)
    descriptor = os.open(mine / "big", os.O_CREAT | os.O_RDWR)
    for offset in offsets:
        os.pwrite(descriptor, b"here %d" % offset, offset)
    with (theirs / "big").open("rb", buffering=0) as seen:
        for offset in offsets:
            assert os.pread(seen.fileno(), 4, offset) == b"here"
        assert os.pread(seen.fileno(), 4096, 2 * GIB) == bytes(4096)
        assert os.pread(seen.fileno(), 100, (1 << 40) + 2) == b"re %d" % (1 << 40)
    for host in (here, there):
        assert space_used(host) < 512 << 20, f"{host.name}: the image is not sparse"
    os.ftruncate(descriptor, 10)  # else each look at the tree reads a tebibyte
    os.close(descriptor)
    assert (theirs / "big").read_bytes() == b"here 0".ljust(10, b"\0")


def test_what_was_written_over_4_gib_is_read_on_the_other_host(mine: Path, theirs: Path) -> None:
    """In one file of a tebibyte, on both sides of the offset of 4 GiB."""
    begin = 4 * GIB - WRITTEN_MIB // 2 * MIB
    with (mine / "big").open("xb", buffering=0) as file:
        file.truncate(1 << 40)
        for number in range(WRITTEN_MIB):
            assert os.pwrite(file.fileno(), _mebibyte(number), begin + number * MIB) == MIB
    with (theirs / "big").open("r+b", buffering=0) as seen:
        for number in range(WRITTEN_MIB):
            assert os.pread(seen.fileno(), MIB, begin + number * MIB) == _mebibyte(number), f"MiB {number}"
        assert os.fstat(seen.fileno()).st_size == 1 << 40
        seen.truncate(MIB)  # else each look at the tree reads a tebibyte
    assert (mine / "big").stat().st_size == MIB


def _mebibyte(number: int) -> bytes:
    return number.to_bytes(8) * (MIB // 8)


def test_a_file_is_cut_and_extended(mine: Path, theirs: Path) -> None:
    path, seen = mine / "file", theirs / "file"
    path.write_bytes(b"abcdef")
    os.truncate(path, 3)
    os.truncate(seen, 100_000)
    assert path.read_bytes() == b"abc".ljust(100_000, b"\0")
    with seen.open("r+b") as file:
        file.truncate(2)
    assert path.read_bytes() == b"ab"
    os.close(os.open(seen, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    with refused(errno.EISDIR):
        os.truncate(mine, 0)


def test_a_file_larger_than_the_limit_is_refused(mine: Path) -> None:
    (mine / "file").touch()
    with refused(errno.EFBIG):
        os.truncate(mine / "file", (1 << 63) - 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    program = "import os, sys; os.truncate(sys.argv[1], 2000)"
    result = run("python3", "-c", program, mine / "file", expect=None, preexec_fn=limited)
    assert "File too large" in result.stderr
    assert (mine / "file").stat().st_size == 0


def test_an_open_file_lives_on_without_a_name_and_its_space_is_given_back(pair: TwoHosts) -> None:
    paths = [host.mountpoint / "open-file" for host in pair]
    paths[0].write_bytes(b"x" * (8 << 20))
    one, other = (os.open(path, os.O_RDWR) for path in paths)
    used = [space_used(host) for host in pair]
    paths[1].rename(paths[1].with_name("moved"))
    paths[0].with_name("moved").unlink()
    os.pwrite(one, b"without a name", 0)
    assert os.pread(other, 14, 0) == b"without a name"
    os.ftruncate(other, 4 << 20)
    assert os.fstat(one).st_size == 4 << 20
    assert os.fstat(one).st_nlink == os.fstat(other).st_nlink == 0
    os.fsync(one)
    os.close(one)
    os.pwrite(other, b"still there", 0)
    assert os.pread(other, 14, 0) == b"still thereame"
    os.close(other)
    wait_until(
        lambda: all(space_used(host) <= before - (7 << 20) for host, before in zip(pair, used, strict=True)),
        60.0,
        "the space of the image on both hosts",
    )


def space_used(host: Host) -> int:
    """Bytes that the image files of the host's volume take on its disk."""
    return int(run("du", "--summarize", "--block-size=1", host.volume / "images").stdout.split()[0])


def test_fsync_works_on_files_and_directories(mine: Path, theirs: Path) -> None:
    (theirs / "file").write_bytes(b"durable")
    for path, call in ((mine / "file", os.fsync), (mine / "file", os.fdatasync), (mine, os.fsync)):
        descriptor = os.open(path, os.O_RDONLY)
        call(descriptor)
        os.close(descriptor)


def test_writes_of_any_size_and_place_are_read_alike(mine: Path, theirs: Path) -> None:
    expected = bytearray()
    with (mine / "file").open("wb", buffering=0) as file:
        for size in (1, 511, 4096, 131_071, 1 << 20, 3_333_333):
            piece = os.urandom(size)
            expected += piece
            file.write(piece)
    with (theirs / "file").open("r+b", buffering=0) as file:
        for offset in (0, 4095, 65_535, 1_000_000):
            piece = os.urandom(70_000)
            os.pwrite(file.fileno(), piece, offset)
            expected[offset : offset + len(piece)] = piece
    assert (mine / "file").read_bytes() == expected
    shutil.copyfile(theirs / "file", theirs / "copy")
    assert (mine / "copy").read_bytes() == expected


def test_direct_io_reads_and_writes_past_the_caches(mine: Path, theirs: Path) -> None:
    with mmap.mmap(-1, 3 * 4096) as aligned:  # memory that begins at a page, as O_DIRECT asks
        aligned[:] = content = os.urandom(3 * 4096)
        for host, flags in ((mine, os.O_RDWR | os.O_CREAT), (theirs, os.O_WRONLY)):
            descriptor = os.open(host / "file", flags | os.O_DIRECT, 0o644)
            assert os.pwritev(descriptor, [aligned], 4096) == 3 * 4096
            os.close(descriptor)
        assert (theirs / "file").read_bytes() == bytes(4096) + content
        descriptor = os.open(theirs / "file", os.O_RDONLY | os.O_DIRECT)
        aligned[:] = bytes(3 * 4096)
        assert os.preadv(descriptor, [aligned], 4096) == 3 * 4096
        assert aligned[:] == content
        os.close(descriptor)


def test_an_open_file_that_grows_on_one_host_is_read_to_its_end_on_the_other(
    mine: Path, theirs: Path
) -> None:
    with (mine / "log").open("wb", buffering=0) as log, (theirs / "log").open("rb", buffering=0) as tail:
        for number in range(100):
            log.write(b"%7d\n" % number)
            assert tail.read(100) == b"%7d\n" % number


# --- what FUSE or pyfuse3 keep from us: each ends in the ordinary error, as fusemirror(7) says ----------


def test_an_unnamed_file_gets_a_name_on_both_hosts_unless_it_may_not(
    mine: Path, theirs: Path, here: Host, pair: TwoHosts
) -> None:
    if here is not pair.primary:  # pyfuse3's session
        with refused(errno.EOPNOTSUPP):
            os.open(mine, os.O_TMPFILE | os.O_RDWR, 0o600)
        return
    for flags in (0, os.O_EXCL):
        descriptor = os.open(mine, os.O_TMPFILE | os.O_RDWR | flags, 0o640)
        os.write(descriptor, b"content")
        assert os.listdir(theirs) == ([] if not flags else ["name"])
        opened = f"/proc/self/fd/{descriptor}"
        if flags:
            with refused(errno.ENOENT):
                os.link(opened, mine / "other", src_dir_fd=descriptor)  # by linkat(2), which follows it
        else:
            os.link(opened, mine / "name", src_dir_fd=descriptor)
            assert (theirs / "name").read_bytes() == b"content"
            assert (theirs / "name").stat().st_mode == stat.S_IFREG | 0o640
        os.close(descriptor)
    os.unlink(theirs / "name")


def test_a_file_that_one_host_removed_lives_while_the_kernel_of_the_other_holds_it(
    mine: Path, theirs: Path, here: Host, pair: TwoHosts
) -> None:
    """By an O_PATH descriptor, as by a bind mount: neither is an open that a host hears of."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if here is not pair.primary or release < (6, 18):
        pytest.skip("pyfuse3's session, or a kernel that cannot be told to let go of what nobody holds")
    for name in ("held", "other"):
        (theirs / name).write_text("content")
        (mine / name).stat()
    held = os.open(mine / "held", os.O_PATH)
    for name in ("held", "other"):
        (theirs / name).unlink()
    wait_until(lambda: nameless(here) == 1, 20.0, "the end of what nobody holds")
    with open(f"/proc/self/fd/{held}") as file:
        assert file.read() == "content"
    os.close(held)
    wait_until(lambda: nameless(here) == 0, 20.0, "the end of all")


def test_a_directory_that_one_host_removed_lives_while_a_program_of_the_other_stands_in_it(
    mine: Path, theirs: Path, here: Host, pair: TwoHosts
) -> None:
    """And no longer, whatever was looked for in it."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if here is not pair.primary or release < (6, 18):
        pytest.skip("pyfuse3's session, or a kernel that cannot be told to let go of what nobody holds")
    for name in ("held", "used again", "other"):
        (theirs / name).mkdir()
        assert not (mine / name / "missing").exists()
    held = [os.open(mine / name, os.O_PATH) for name in ("held", "used again")]
    for name in ("held", "used again", "other"):
        (theirs / name).rmdir()
    (theirs / "used again").mkdir()
    assert (mine / "used again").stat().st_nlink == 2
    wait_until(lambda: nameless(here) == 2, 20.0, "the end of what nobody holds")
    for descriptor in held:
        inside = Path(f"/proc/self/fd/{descriptor}")
        assert os.stat(descriptor).st_nlink == 0
        assert os.listdir(inside) == []
        for missing in ("one", "another"):
            assert not (inside / missing).exists()
        with refused(errno.ENOENT):
            (inside / "new").mkdir()
        os.close(descriptor)
    wait_until(lambda: nameless(here) == 0, 20.0, "the end of all")


def nameless(host: Host) -> int:
    found: int = host.status()["nameless"]["inodes"]
    return found


def test_room_is_reserved_and_given_back_on_both_hosts(
    mine: Path, theirs: Path, here: Host, pair: TwoHosts
) -> None:
    with (mine / "file").open("w+b", buffering=0) as file:
        file.write(b"kept")
        os.posix_fallocate(file.fileno(), 0, 100_000)  # glibc writes, where fallocate(2) is refused
        assert (theirs / "file").read_bytes() == b"kept".ljust(100_000, b"\0")
        if here is not pair.primary:  # pyfuse3's session
            for mode in (0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
                with refused(errno.EOPNOTSUPP):
                    fallocate(file.fileno(), mode, 0, 100_000)
            return
        fallocate(file.fileno(), FALLOC_FL_KEEP_SIZE, 0, 2 * MIB)
        seen = (theirs / "file").stat()
        assert seen.st_size == 100_000
        assert 2 * MIB <= seen.st_blocks * 512 < 3 * MIB
        os.pwrite(file.fileno(), b"x" * 2 * MIB, 0)
        assert (theirs / "file").read_bytes() == b"x" * 2 * MIB
        fallocate(file.fileno(), FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 4096, 2 * MIB)
        for path in (mine, theirs):
            assert (path / "file").read_bytes() == (b"x" * 4096).ljust(2 * MIB, b"\0")
            assert (path / "file").stat().st_blocks * 512 < MIB


def test_holes_are_found_where_the_session_is_ours(
    mine: Path, theirs: Path, there: Host, pair: TwoHosts
) -> None:
    """And cp(1) keeps them, of which a kernel that does not ask us says that there are none."""
    with (mine / "file").open("wb") as file:
        file.write(b"x" * 4096)
        file.seek(4 * MIB)
        file.write(b"y" * 4096)
    assert (theirs / "file").stat().st_blocks * 512 < MIB
    ours = there is pair.primary
    with (theirs / "file").open("rb") as file:
        assert os.lseek(file.fileno(), 4096, os.SEEK_DATA) == (4 * MIB if ours else 4096)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == (4096 if ours else 4 * MIB + 4096)
    if ours:
        run("cp", theirs / "file", theirs / "copy")
        assert (mine / "copy").read_bytes() == (mine / "file").read_bytes()
        assert (mine / "copy").stat().st_blocks * 512 < MIB


def test_who_seeks_behind_the_end_finds_nothing(mine: Path, theirs: Path) -> None:
    (mine / "file").touch()
    os.truncate(mine / "file", 1_000_000)
    with (theirs / "file").open("rb") as file, refused(errno.ENXIO):
        os.lseek(file.fileno(), 1_000_000, os.SEEK_DATA)


def test_a_range_is_copied_by_each_host_where_the_session_is_ours(
    mine: Path, theirs: Path, there: Host, pair: TwoHosts
) -> None:
    """And by the kernel of the one that asks with pyfuse3's."""
    content = os.urandom(MIB // 2) * 17
    (mine / "source").write_bytes(content)
    held = (mine / "copy").open("w+b")  # a host that has it open, and pages of it
    held.write(b"x" * MIB)
    held.flush()
    with held, mmap.mmap(held.fileno(), 0) as mapped:
        assert mapped[:] == b"x" * MIB
        before = sent_bytes(pair)
        with (theirs / "source").open("rb") as source, (theirs / "copy").open("r+b") as copy:
            done = 0
            while moved := os.copy_file_range(source.fileno(), copy.fileno(), len(content), done, done):
                done += moved
        sent = sent_bytes(pair) - before
        if there is pair.primary:  # with our session
            assert sent < 64 * 1024
        assert (mine / "copy").read_bytes() == (theirs / "copy").read_bytes() == content
        wait_until(lambda: mapped[:] == content[:MIB], 30.0, "pages that show the copy")


def sent_bytes(pair: TwoHosts) -> int:
    """Over both paths, by both hosts."""
    told = [path for host in (pair.primary, pair.backup) for path in host.status()["paths"].values()]
    return sum(path["sent_bytes"] for path in told)


def test_flags_are_told_where_the_session_is_ours_and_clones_are_refused(
    mine: Path, here: Host, pair: TwoHosts
) -> None:
    with (mine / "file").open("w+b") as file, (mine / "copy").open("wb") as copy:
        if here is pair.primary:
            assert not any(fcntl.ioctl(file.fileno(), FS_IOC_GETFLAGS, bytes(8)))
        else:
            with refused(errno.ENOTTY):
                fcntl.ioctl(file.fileno(), FS_IOC_GETFLAGS, b"\0" * 8)
        with refused(errno.EOPNOTSUPP):
            fcntl.ioctl(copy.fileno(), FICLONE, file.fileno())


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf], ids=["flock", "fcntl"])
def test_locks_are_refused_with_a_peer_whose_session_leaves_them_to_its_kernel(
    pair: TwoHosts, here: Host, mine: Path, lock: Callable[[int, int], None]
) -> None:
    call = f"fcntl.{lock.__name__}(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    program = f"import fcntl, sys; {call}"
    with (mine / "file").open("wb") as file:
        if here is pair.primary:  # with our session
            with refused(errno.ENOLCK):
                lock(file.fileno(), fcntl.LOCK_EX)
            return
        lock(file.fileno(), fcntl.LOCK_EX)
        assert "BlockingIOError" in run("python3", "-c", program, mine / "file", expect=None).stderr
    run("python3", "-c", program, mine / "file")


# --- memory maps --------------------------------------------------------------------------------------


def test_a_private_map_shows_the_file(mine: Path, theirs: Path) -> None:
    (mine / "file").write_bytes(b"first" * 5000)
    for content in (b"first", b"other"):
        with (theirs / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
            assert mapped[:] == content * 5000
        (mine / "file").write_bytes(b"other" * 5000)


def test_a_program_runs_from_the_mount_and_can_be_replaced(mine: Path, theirs: Path) -> None:
    for program, word in (("/bin/echo", "said"), ("/usr/bin/basename", "said")):
        shutil.copy(program, mine / "new")
        os.rename(mine / "new", mine / "program")
        assert run(theirs / "program", word).stdout == "said\n"


def test_what_is_written_to_a_shared_map_is_seen_by_the_other_host_once_it_is_synced(
    mine: Path, theirs: Path
) -> None:
    (mine / "file").write_bytes(b"x" * 4096)
    with (mine / "file").open("r+b") as file, mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED) as mapped:
        mapped[:5] = b"first"
        mapped.flush()
        assert (theirs / "file").read_bytes()[:6] == b"firstx"
        with (theirs / "file").open("r+b", buffering=0) as other:
            other.write(b"SECOND")
        wait_until(lambda: mapped[:6] == b"SECOND", 30.0, "the map shows what the other host wrote")
        assert os.pread(file.fileno(), 6, 0) == b"SECOND"
