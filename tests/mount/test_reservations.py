"""Reservations as people use them: commands, EBUSY from real calls, over restarts of either host."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts

CALLS: dict[str, Callable[[Path], object]] = {
    "open to truncate": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "append": lambda path: _write(path, os.O_WRONLY | os.O_APPEND),
    "write": lambda path: _write(path, os.O_WRONLY),
    "chmod": lambda path: path.chmod(0o600),
    "utime": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
    "link": lambda path: os.link(path, f"{path}-linked"),
    "rename": lambda path: path.rename(f"{path}-moved"),
    "unlink": lambda path: path.unlink(),
}


def _write(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, b"new")
    finally:
        os.close(descriptor)


def assert_busy(path: Path) -> None:
    """Every way to change the file fails, and reading it does not."""
    before = path.read_bytes()
    for name, call in CALLS.items():
        with pytest.raises(OSError, match="busy") as caught:
            call(path)
        assert caught.value.errno == errno.EBUSY, name
    assert path.read_bytes() == before


def held_by(host: Host) -> list[tuple[str | None, bool]]:
    """What is reserved, and whether by this host."""
    status = host.status()
    return [(held["path"], held["holder"] == status["host"]) for held in status["reservations"]]


def test_the_other_host_gets_busy_until_it_is_released(pair: TwoHosts, here: Host, there: Host) -> None:
    name = f"held-{here.name}"
    own, other = here.mountpoint / name, there.mountpoint / name
    own.write_bytes(b"content")
    peer_name = there.status()["peer"]["name"]
    here.fusemirror("reserve", FILESYSTEM, own)
    assert_busy(other)
    own.write_bytes(b"by its holder")
    refused = there.fusemirror("reserve", FILESYSTEM, other, expect=6)
    assert f"{name} is reserved by {peer_name} since 20" in refused.stderr
    assert (
        f"{name} (inode {own.stat().st_ino}), by {peer_name} since"
        in there.fusemirror("status", FILESYSTEM).stdout
    )
    there.fusemirror("reserve", FILESYSTEM, other, "--preempt")
    assert held_by(here) == [(name, False)]
    assert held_by(there) == [(name, True)]
    assert_busy(own)
    there.fusemirror("release", FILESYSTEM, other)
    for call in CALLS.values():
        if other.exists():
            call(other)


def test_a_reservation_of_everything_survives_every_restart(hosts: TwoHosts) -> None:
    hosts.primary.fusemirror("reserve", FILESYSTEM)
    for restarted in (hosts.backup, hosts.primary):
        restarted.kill()
        restarted.mount()
        hosts.converge()
        assert held_by(hosts.primary) == [(None, True)]
        assert held_by(hosts.backup) == [(None, False)]
        with pytest.raises(OSError, match="busy"):
            (hosts.backup.mountpoint / "new").mkdir()
    hosts.umount()
    hosts.mount()
    assert held_by(hosts.backup) == [(None, False)]
    (hosts.primary.mountpoint / "new").mkdir()
    hosts.primary.fusemirror("release", FILESYSTEM)
    (hosts.backup.mountpoint / "new").rmdir()


def test_what_the_primary_does_alone_the_backup_hears_later(hosts: TwoHosts) -> None:
    file = hosts.primary.mountpoint / "file"
    file.write_bytes(b"content")
    hosts.backup.fusemirror("reserve", FILESYSTEM, hosts.backup.mountpoint / "file")
    hosts.cut()
    assert_busy(file)  # the holder is away, and holds it still
    hosts.primary.fusemirror("reserve", FILESYSTEM, file, "--preempt")
    file.write_bytes(b"taken over")
    hosts.heal()
    hosts.converge()
    assert held_by(hosts.backup) == [("file", False)]
    assert_busy(hosts.backup.mountpoint / "file")
