"""What the other host cannot do is told at once: of one image, or of every request (seed [0050], [0057])."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, wait_until
from tests.mount.conftest import IO_TIMEOUT_S, checked

MIB = 1 << 20
LONGEST = 16 * MIB  # that the backup's disk takes: catalog, journal and log are much shorter
TOO_FAR = LONGEST + 7
TOO_LONG = os.strerror(errno.EFBIG)
PATIENCE_S = 45.0


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """A pair for all tests of this module; each takes names of its own."""
    with checked(request) as shared:
        for host in shared:
            host.expect_warnings("EIO: |the image of inode")
        yield shared


def write_at(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
    finally:
        os.close(descriptor)


def test_what_the_backups_disk_does_not_take_of_one_image_is_refused_alone(pair: TwoHosts) -> None:
    backup = pair.backup
    links = [host.log().count("connected to the peer") for host in pair]
    for host in pair:
        (pair.primary.mountpoint / f"long of {host.name}").write_text("before")
    resource.prlimit(backup.pid, resource.RLIMIT_FSIZE, (LONGEST, LONGEST))
    for host in pair:
        with pytest.raises(OSError, match="Input/output error") as refused:
            write_at(host.mountpoint / f"long of {host.name}", TOO_FAR, b"x")
        assert refused.value.errno == errno.EIO
    for host in pair:
        wait_until(lambda h=host: TOO_LONG in (h.status()["reason"] or ""), PATIENCE_S, "the reason")  # type: ignore[misc]
        assert host.status()["mirror_state"] == "resyncing"
        told = re.findall(rf"WARNING.* the image of inode \d+ is not written.*: {TOO_LONG}", host.log())
        assert len(told) == 2, "each image once"
        (host.mountpoint / f"other of {host.name}").write_text("goes on")
        for other in pair:
            assert (other.mountpoint / f"other of {host.name}").read_text() == "goes on"
            assert (other.mountpoint / f"long of {host.name}").stat().st_size == TOO_FAR + 1, "main has it"
    assert [host.log().count("connected to the peer") for host in pair] == links

    backup.umount()  # with the process its limit ends, as where a person sees to the disk
    backup.mount()
    for host in pair:
        host.wait_for("normal", timeout_s=PATIENCE_S)
        assert host.status()["reason"] is None
        write_at(host.mountpoint / f"long of {host.name}", TOO_FAR, b"y")


def test_a_backup_without_its_primary_reports_or_waits_as_it_is_told(pair: TwoHosts) -> None:
    primary, backup = pair
    path = backup.mountpoint / "written"
    path.write_text("before")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        backup.fusemirror("set", FILESYSTEM, "on_degraded=report")
        primary.umount()
        for act in (
            lambda: os.pwrite(descriptor, b"lost", 0),
            path.read_bytes,
            (backup.mountpoint / "new").touch,
        ):
            with pytest.raises(OSError, match="Input/output error") as refused:
                act()
            assert refused.value.errno == errno.EIO
        said = 'EIO: the primary is away, and on_degraded is "report": '
        assert said in backup.log(), "and not that it waited"
        assert said in (backup.status()["reason"] or "")

        backup.fusemirror("set", FILESYSTEM, "on_degraded=wait")
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(os.pwrite, descriptor, b"after ", 0)
            wait_until(lambda: pending(backup) == 1, IO_TIMEOUT_S / 2, "a request that waits")
            assert not waits.done()
            primary.mount()
            assert waits.result(PATIENCE_S) == 6
    finally:
        os.close(descriptor)
    for host in pair:
        host.wait_for("normal", timeout_s=PATIENCE_S)
        assert host.status()["reason"] is None
        assert (host.mountpoint / "written").read_text() == "after "
        assert not (host.mountpoint / "new").exists()


def pending(host: Host) -> int:
    count: int = host.status()["communication"]["pending_requests"]
    return count
