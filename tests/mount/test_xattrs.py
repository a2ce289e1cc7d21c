"""Extended attributes by namespace, caller and file type: each errno is that of ext4."""

import errno
import json
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, run

CAPABILITY_NAME = "security.capability"
OWNER, OTHER = 1_000, 65_534
CALLERS = {"root": 0, "the owner": OWNER, "another": OTHER}
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
_NOBODY = 0xFFFFFFFF
# user::rw- user:7:r-- group::r-- mask::r-- other::r--
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, _NOBODY), (2, 4, 7), (4, 4, _NOBODY), (0x10, 4, _NOBODY), (0x20, 4, _NOBODY))
)
SET = {
    "user.new": b"value",
    "trusted.new": b"value",
    "security.new": b"value",
    "security.capability": CAPABILITY,
    "system.posix_acl_access": ACL,
    "system.posix_acl_default": ACL,
    "system.posix_acl_other": ACL,
    "system.new": b"value",
    "other.new": b"value",
    "nothing": b"value",
    "user.": b"value",
    "trusted.": b"value",
    "security.": b"value",
}
PRESENT = ("user.there", "trusted.there", "security.there")
ASKED = (*PRESENT, *SET)


def make(top: Path) -> None:
    """One file of each type, with an attribute of each namespace that it can have."""
    top.chmod(0o755)
    for name, mode in (("file", 0o644), ("private", 0o600), ("shared", 0o666)):
        (top / name).write_bytes(b"")
        (top / name).chmod(mode)
    for name, mode in (("directory", 0o755), ("sticky", 0o1777)):
        (top / name).mkdir()
        (top / name).chmod(mode)
    (top / "link").symlink_to("file")
    os.mknod(top / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in top.iterdir():
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
        for name in PRESENT:
            if not name.startswith("user.") or (path.is_file() and not path.is_symlink()) or path.is_dir():
                os.setxattr(path, name, b"there", follow_symlinks=False)


def outcome(call: Callable[[], object]) -> object:
    try:
        found = call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return found.hex() if isinstance(found, bytes) else found


def tried() -> dict[str, object]:
    """What every call on every file here gives to whoever runs this."""
    found: dict[str, object] = {}
    for path in sorted(Path().iterdir()):
        of = f"{path.name}: "
        listing = outcome(lambda path=path: sorted(os.listxattr(path, follow_symlinks=False)))  # type: ignore[misc]
        found[of + "list"] = listing
        for name in ASKED:
            found[of + "get " + name] = outcome(lambda: os.getxattr(path, name, follow_symlinks=False))  # noqa: B023
        for name, value in SET.items():
            found[of + "set " + name] = outcome(
                lambda: os.setxattr(path, name, value, follow_symlinks=False)  # noqa: B023
            )
        found[of + "mode"] = oct(path.lstat().st_mode)
        for name in ASKED:
            found[of + "remove " + name] = outcome(lambda: os.removexattr(path, name, follow_symlinks=False))  # noqa: B023
    return found


def tried_by(user: int, top: Path) -> dict[str, object]:
    """`tried`, in a process of that user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(top)  # what is above it, the user may not even see
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os.write(writing, json.dumps(tried()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    result: dict[str, object] = json.loads(text)
    return result


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A directory on ext4: of the machine's own disk, or of an image."""
    place = tmp_path / "ext4"
    place.mkdir()
    if run("findmnt", "-n", "-o", "FSTYPE", "-T", place).stdout.strip() == "ext4":
        yield place
        return
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, place)
    yield place
    run("umount", place)


@pytest.mark.parametrize("caller", CALLERS)
def test_each_namespace_is_for_whom_it_is_on_ext4(here: Host, ext4: Path, caller: str) -> None:
    user = CALLERS[caller]
    reference = ext4 / "reference"
    ours = here.mountpoint / f"of {caller}, {here.name}"
    for top in (reference, ours):
        top.mkdir()
        make(top)
    expected, found = tried_by(user, reference), tried_by(user, ours)
    differing = {what: (expected[what], found[what]) for what in expected if found[what] != expected[what]}
    assert not differing


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"evil")


def empty(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def store(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"evil"
        mapped.flush()


@pytest.mark.parametrize("change", [overwrite, empty, store, lambda path: os.truncate(path, 3)])
def test_a_file_capability_ends_with_a_change_of_either_host(
    here: Host, there: Host, change: Callable[[Path], None]
) -> None:
    program, its = (host.mountpoint / f"program of {here.name}" for host in (here, there))
    program.write_bytes(b"#!/bin/true\n")
    os.setxattr(its, CAPABILITY_NAME, CAPABILITY)
    change(program)
    for path in (program, its):
        assert CAPABILITY_NAME not in os.listxattr(path)
