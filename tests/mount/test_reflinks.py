"""Copies on disks that can share what they store: what is copied on the mount both disks store once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, TwoHosts, run
from tests.mount.conftest import checked

MIB = 1 << 20
DISK_BYTES = 512 * MIB  # XFS takes no less than 300 MiB; the file below is sparse
CONTENT = os.urandom(MIB) * 20 + b"the last block is not full"  # more than one step of a copy


def put_images_on_xfs(hosts: TwoHosts) -> None:
    for host in hosts:
        disk, images = host.directory / "disk.img", images_of(host)
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.xfs", "-q", "-m", "reflink=1", disk)
        run("mount", "-o", "loop", disk, images)
        images.chmod(0o700)


def images_of(host: Host) -> Path:
    return host.volume / "images"


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs: nothing here shares what it stores")
    with checked(request, prepare=put_images_on_xfs) as hosts:
        yield hosts


def used_bytes(host: Host) -> int:
    run("sync", "--file-system", images_of(host))
    found = os.statvfs(images_of(host))
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def extents(host: Host, file: Path) -> list[str]:
    """Those of the image of a file on the host's disk, as filefrag(8) tells of them."""
    image = next(images_of(host).glob(f"*/{file.stat().st_ino:x}"))
    lines = run("filefrag", "-v", image).stdout.splitlines()
    return [line for line in lines if line.lstrip()[:1].isdigit()]


def test_a_copy_is_stored_once_on_the_disks_of_both_hosts(here: Host, there: Host, pair: TwoHosts) -> None:
    source, copy = f"source of {here.name}", f"copy of {here.name}"
    (there.mountpoint / source).write_bytes(CONTENT)
    used = {host: used_bytes(host) for host in pair}
    run("cp", here.mountpoint / source, here.mountpoint / copy)
    for host in pair:
        assert used_bytes(host) - used[host] < 4 * MIB
        shared = extents(host, host.mountpoint / copy)
        assert shared
        assert all("shared" in extent for extent in shared)
    with (there.mountpoint / copy).open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"only in the copy")
    changed = CONTENT[: 3 * MIB] + b"only in the copy" + CONTENT[3 * MIB + 16 :]
    for host in pair:
        assert (host.mountpoint / source).read_bytes() == CONTENT
        assert (host.mountpoint / copy).read_bytes() == changed
