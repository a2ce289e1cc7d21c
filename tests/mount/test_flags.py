"""Flags of chattr(1) bind both hosts, call by call as ext4's bind its own."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from fusemirror.flags import Flag
from tests.hosts import Host, TwoHosts, run
from tests.mount.kernel import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    RENAME_EXCHANGE,
    fallocate,
    renameat2,
)

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FIGETBSZ, FS_IOC_FIEMAP, FITRIM = 2, 0xC020660B, 0xC0185879
FSXATTR = struct.Struct("=IIIII8x")
OF_EXT4 = 0x80000  # EXT4_EXTENTS_FL, which is shown and says nothing here
_numbers = count()


def flags_of(path: Path) -> int:
    with opened(path, os.O_RDONLY) as descriptor:
        return int.from_bytes(fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))[:4], "little") & ~OF_EXT4


def set_flags(path: Path, flags: int) -> None:
    with opened(path, os.O_RDONLY) as descriptor:
        there = int.from_bytes(fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))[:4], "little") & OF_EXT4
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, (flags | there).to_bytes(8, "little"))


class opened:
    """A descriptor for as long as this lasts."""

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor = os.open(path, flags)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def opening(flags: int) -> Callable[[Path, int], None]:
    def call(path: Path, _: int) -> None:
        os.close(os.open(path, flags))

    return call


def appending(path: Path, _: int) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"more")


def allocating(mode: int) -> Callable[[Path, int], None]:
    def call(path: Path, _: int) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
            fallocate(descriptor, mode, 0, 9000)

    return call


def adding(flags: int) -> Callable[[Path, int], None]:
    def call(path: Path, _: int) -> None:
        set_flags(path, flags_of(path) | flags)

    return call


class Call(NamedTuple):
    """What a program does to a path, or by a descriptor that was open before there were flags."""

    what: str
    do: Callable[[Path, int], object]


OF_FILES = (
    Call("open to read", opening(os.O_RDONLY)),
    Call("open to write", opening(os.O_WRONLY)),
    Call("open to read and write", opening(os.O_RDWR)),
    Call("open to append", opening(os.O_WRONLY | os.O_APPEND)),
    Call("open to cut", opening(os.O_RDONLY | os.O_TRUNC)),
    Call("open to append and cut", opening(os.O_WRONLY | os.O_APPEND | os.O_TRUNC)),
    Call("open what O_CREAT finds", opening(os.O_RDONLY | os.O_CREAT)),
    Call("append", appending),
    Call("read", lambda path, _: path.read_bytes()),
    Call("truncate", lambda path, _: os.truncate(path, 3)),
    Call("ftruncate", lambda _, descriptor: os.ftruncate(descriptor, 3)),
    Call("reserve room", allocating(0)),
    Call("reserve room behind the end", allocating(FALLOC_FL_KEEP_SIZE)),
    Call("punch", allocating(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)),
    Call("chmod", lambda path, _: path.chmod(0o600)),
    Call("fchmod", lambda _, descriptor: os.fchmod(descriptor, 0o600)),
    Call("chown", lambda path, _: os.chown(path, 7, -1)),
    Call("chgrp", lambda path, _: os.chown(path, -1, 7)),
    Call("touch", lambda path, _: os.utime(path)),
    Call("set times", lambda path, _: os.utime(path, (1, 2))),
    Call("set an attribute", lambda path, _: os.setxattr(path, "user.new", b"v")),
    Call("remove an attribute", lambda path, _: os.removexattr(path, "user.old")),
    Call("remove none", lambda path, _: os.removexattr(path, "user.none")),
    Call("link", lambda path, _: os.link(path, path.parent / "link")),
    Call("unlink", lambda path, _: path.unlink()),
    Call("rename", lambda path, _: path.rename(path.parent / "other name")),
    Call("replace", lambda path, _: (path.parent / "beside").rename(path)),
    Call("be moved over", lambda path, _: path.rename(path.parent / "beside")),
    Call("exchange", lambda path, _: renameat2(path, path.parent / "beside", RENAME_EXCHANGE)),
    Call("rename to itself", lambda path, _: path.rename(path)),
    Call("set another flag", adding(Flag.NODUMP)),
    Call("set the flags that it has", adding(0)),
    Call("take its flags", lambda path, _: set_flags(path, 0)),
    Call("take its flags for another", lambda path, _: set_flags(path, Flag.NODUMP)),
)
OF_DIRECTORIES = (
    Call("list", lambda path, _: os.listdir(path)),
    Call("make a file", opening(os.O_RDONLY)),
    Call("create", lambda path, _: (path / "new").touch()),
    Call("create what is there", lambda path, _: os.close(os.open(path / "inside", os.O_CREAT | os.O_RDWR))),
    Call("create only", lambda path, _: os.close(os.open(path / "inside", os.O_CREAT | os.O_EXCL))),
    Call("make a directory", lambda path, _: (path / "new").mkdir()),
    Call("make one that is there", lambda path, _: (path / "inside").mkdir()),
    Call("make a link", lambda path, _: (path / "new").symlink_to("x")),
    Call("make a node", lambda path, _: os.mkfifo(path / "new")),
    Call("make one without a name", lambda path, _: os.close(os.open(path, os.O_TMPFILE | os.O_RDWR))),
    Call("link into", lambda path, _: os.link(path.parent / "beside", path / "new")),
    Call("unlink in", lambda path, _: (path / "inside").unlink()),
    Call("unlink nothing in", lambda path, _: (path / "nothing").unlink()),
    Call("rmdir in", lambda path, _: (path / "sub").rmdir()),
    Call("rename in", lambda path, _: (path / "inside").rename(path / "new")),
    Call("move out", lambda path, _: (path / "inside").rename(path.parent / "new")),
    Call("move in", lambda path, _: (path.parent / "beside").rename(path / "new")),
    Call("move over", lambda path, _: (path.parent / "beside").rename(path / "inside")),
    Call("write to a file in", lambda path, _: (path / "inside").write_bytes(b"x")),
    Call("rename the directory", lambda path, _: path.rename(path.parent / "new")),
    Call("rmdir", lambda path, _: path.rmdir()),
    Call("chmod", lambda path, _: path.chmod(0o700)),
    Call("touch", lambda path, _: os.utime(path)),
    Call("set times", lambda path, _: os.utime(path, (1, 2))),
    Call("set an attribute", lambda path, _: os.setxattr(path, "user.new", b"v")),
    Call("set another flag", adding(Flag.NODUMP)),
)


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("ext4")
    image, mounted = directory / "image", directory / "mounted"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    mounted.mkdir()
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, mounted)
    yield mounted
    run("umount", mounted)


def outcome(by: Path, seen: Path, kind: str, flags: int, call: Call) -> str:
    """What a call answers where `seen` shows what is made and flagged at `by`."""
    name = f"{kind}{next(_numbers)}"
    (by / name).mkdir()
    (by / name / "beside").write_bytes(b"beside")
    target = by / name / "target"
    if kind == "file":
        target.write_bytes(b"content")
        os.setxattr(target, "user.old", b"v")
    else:
        (target / "sub").mkdir(parents=True)
        (target / "inside").write_bytes(b"inside")
    descriptor = os.open(seen / name / "target", os.O_RDWR if kind == "file" else os.O_RDONLY)
    try:
        set_flags(target, flags)
        call.do(seen / name / "target", descriptor)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    else:
        return "done"
    finally:
        os.close(descriptor)
        for path in (by / name).iterdir():
            if path.is_file() or path.is_dir():
                set_flags(path, 0)
        run("rm", "-r", by / name)


@pytest.mark.parametrize(
    "flags",
    [Flag.IMMUTABLE, Flag.APPEND, Flag.NODUMP | Flag.NOATIME],
    ids=["immutable", "append-only", "nodump and noatime"],
)
@pytest.mark.parametrize(
    ("kind", "calls"), [("file", OF_FILES), ("directory", OF_DIRECTORIES)], ids=["file", "directory"]
)
def test_each_call_is_answered_as_on_ext4(
    pair: TwoHosts, ext4: Path, flags: int, kind: str, calls: tuple[Call, ...]
) -> None:
    places = {
        "ext4": (ext4, ext4),
        "where they are set": (pair.primary.mountpoint,) * 2,
        "at the other host": (pair.primary.mountpoint, pair.backup.mountpoint),
        "at the primary": (pair.backup.mountpoint, pair.primary.mountpoint),
    }
    told = {
        place: {call.what: outcome(by, seen, kind, flags, call) for call in calls}
        for place, (by, seen) in places.items()
    }
    expected = told.pop("ext4")
    assert told == dict.fromkeys(told, expected)
    assert ("EPERM" in expected.values()) is bool(flags & (Flag.IMMUTABLE | Flag.APPEND))


def test_the_commands_show_and_set_them_on_both_hosts(here: Host, there: Host) -> None:
    directory = here.mountpoint / f"commands{next(_numbers)}"
    theirs = there.mountpoint / directory.name
    directory.mkdir()
    (directory / "file").write_bytes(b"content")
    run("chattr", "+aAd", directory / "file")
    assert run("lsattr", theirs / "file").stdout.split()[0].strip("-") == "adA"
    with opened(theirs / "file", os.O_RDONLY) as descriptor:
        extended = fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))
    assert FSXATTR.unpack(extended)[0] == 0x10 | 0x40 | 0x80
    run("chattr", "=", theirs / "file")
    assert flags_of(directory / "file") == 0
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, FSXATTR.pack(0x08, 0, 0, 0, 0))
    assert flags_of(theirs / "file") == Flag.IMMUTABLE
    without = ("setpriv", "--bounding-set=-linux_immutable", "chattr")
    for change in ("-i", "+a", "=i"):
        told = run(*without, change, theirs / "file", expect=None)
        assert ("Operation not permitted" in told.stderr) is (change != "=i")
    run("chattr", "-i", theirs / "file")
    run("chattr", "+d", theirs)  # inherited, as on ext4
    (directory / "made").touch()
    assert flags_of(theirs / "made") == Flag.NODUMP
    for letter, path in [*((letter, theirs / "file") for letter in "cjCtuSE"), ("D", theirs), ("T", theirs)]:
        assert run("chattr", f"+{letter}", path, expect=None).returncode, letter
    with opened(directory / "file", os.O_RDONLY) as descriptor:
        for other in (FITRIM, FS_IOC_FIEMAP, 0x5401):
            with pytest.raises(OSError, match=r"\[Errno") as raised:
                fcntl.ioctl(descriptor, other, bytes(64))
            assert raised.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
