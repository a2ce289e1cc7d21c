"""G3 with disks that are full or broken: real filesystems on loop devices, filled and broken for real."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hosts import Host, TwoHosts, run, wait_until, what_is_missing
from tests.mount.conftest import IO_TIMEOUT_S, PEER_TIMEOUT_S

MIB = 1 << 20
DISK_BYTES = 32 * MIB
INODES = 256
PATIENCE_S = 60.0


def give_disk(host: Host, image: Path, *options: str) -> None:
    """Put the volume of a host that has none yet on a small ext4 of its own."""
    disk = host.directory / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, image)
    run("mount", "-o", "loop", image, disk)
    host.volume = disk / "volume"


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """Mounted hosts, of which those named by the parameter have small disks; checked in the end."""
    if missing := what_is_missing():
        pytest.skip(missing)
    failed_before = request.session.testsfailed
    with TwoHosts() as pair:
        for host in pair:
            if host.name in request.param:
                options = ("-N", str(INODES)) if "inodes" in request.param else ()
                give_disk(host, host.directory / "disk.img", *options)
            host.expect_warnings("is full")  # each host tells of either disk
        try:
            pair.create_and_join(peer_timeout=PEER_TIMEOUT_S, io_timeout=IO_TIMEOUT_S)
            pair.mount()
            yield pair
            if request.session.testsfailed == failed_before:
                pair.converge()
                pair.check()
                assert not pair.unexpected_warnings()
        finally:
            for host in pair:
                print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")


def write(path: Path, content: bytes) -> int:
    """Write and fsync a file; 0, or the errno that it met."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or -1
    return 0


def fill(directory: Path, size: int = 256 * 1024) -> tuple[int, list[Path]]:
    """Write files until that fails: how, and the files that were written whole."""
    directory.mkdir()
    whole: list[Path] = []
    while len(whole) * size <= DISK_BYTES:
        path = directory / f"{len(whole)}"
        if failed := write(path, path.name.encode().ljust(size, b"x")):
            return failed, whole
        whole.append(path)
    return 0, whole


def links(hosts: TwoHosts) -> list[object]:
    return [host.status()["peer"]["since"] for host in hosts]


@pytest.mark.parametrize(
    ("hosts", "place"),
    [("alpha", "backup"), ("beta", "primary"), ("beta", "backup"), ("alpha and beta", "primary")],
    indirect=["hosts"],
)
def test_a_full_disk_meets_the_program_and_not_the_mirror(hosts: TwoHosts, place: str) -> None:
    here: Host = getattr(hosts, place)
    linked = links(hosts)
    with ThreadPoolExecutor(2) as both:  # under load of two programs
        filled = list(both.map(fill, [here.mountpoint / "one", here.mountpoint / "two"]))
    assert [failed for failed, _ in filled] == [errno.ENOSPC, errno.ENOSPC]
    whole = [path for _, paths in filled for path in paths]
    assert sum(path.stat().st_size for path in whole) > DISK_BYTES // 2, "much of the disk was not used"
    assert any(host.status()["disk"]["full"] for host in hosts)
    # What needs no room works, on both hosts; nothing that was written is torn.
    assert write(whole[0], b"overwritten") == 0
    for path in whole[1:]:
        assert path.read_bytes() == path.name.encode().ljust(256 * 1024, b"x")
    os.truncate(whole[1], 5)
    for host in hosts:
        part = [host.mountpoint / path.relative_to(here.mountpoint) for path in whole[2::2]]
        for path in part[hosts.hosts.index(host) :: 2]:
            path.unlink()
    whole[0].rename(here.mountpoint / "renamed")
    wait_until(lambda: write(here.mountpoint / "more", b"y" * MIB) == 0, PATIENCE_S, "room after deleting")
    for host in hosts:
        assert (host.mountpoint / "renamed").read_bytes()[:11] == b"overwritten"
        assert host.status()["mirror_state"] == "normal"
    assert links(hosts) == linked, "the link was lost"


@pytest.mark.parametrize("hosts", ["alpha with few inodes", "beta with few inodes"], indirect=True)
def test_a_full_disk_is_named_on_both_hosts_and_its_host_is_unmounted_checked_and_mounted(
    hosts: TwoHosts, request: pytest.FixtureRequest
) -> None:
    name, few = request.node.callspec.params["hosts"].partition(" ")[0], "inodes" in request.node.name
    full = next(host for host in hosts if host.name == name)
    failed, whole = fill(hosts.primary.mountpoint / "files", 100 if few else 256 * 1024)
    assert failed == errno.ENOSPC
    for host in hosts:
        wait_until(lambda host=host: f"the disk of {name} is full" in host.log(), PATIENCE_S, "the log")  # type: ignore[misc]
    found = os.statvfs(hosts.backup.mountpoint)
    assert (found.f_favail if few else found.f_bavail * found.f_frsize) < MIB
    take_the_rest(full.volume.parent)
    full.umount()
    full.fusemirror("fsck", full.volume)
    full.mount()
    shutil.rmtree(full.volume.parent / "of-others")  # until then it may have missed what it cannot take
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    for path in whole:
        assert (full.mountpoint / path.relative_to(hosts.primary.mountpoint)).stat().st_size > 0
    for path in whole[::2]:
        path.unlink()
    more = hosts.primary.mountpoint / "more"
    wait_until(lambda: write(more, b"y") == 0, PATIENCE_S, "room after deleting")


def take_the_rest(disk: Path) -> None:
    """Others take what is left of it, to the last byte and the last inode."""
    others = disk / "of-others"
    others.mkdir(exist_ok=True)
    with suppress(OSError):
        for size in (MIB, 1024):
            with suppress(OSError), (others / str(size)).open("wb", buffering=0) as file:
                while file.write(b"z" * size) == size:
                    pass
        for number in range(DISK_BYTES):
            (others / f"empty-{number}").touch()


@pytest.mark.parametrize("hosts", ["beta"], indirect=True)
def test_a_backup_whose_disk_others_filled_is_left_behind_and_comes_back(hosts: TwoHosts) -> None:
    (hosts.primary.mountpoint / "before").write_bytes(b"x" * MIB)
    (hosts.backup.volume.parent / "ballast").write_bytes(b"z" * 8 * MIB)
    run("dd", "if=/dev/zero", f"of={hosts.backup.volume.parent / 'more'}", "bs=4k", expect=1)
    # It had been told of more room than there is: the first to notice is the backup.
    path = hosts.primary.mountpoint / "large"
    with path.open("wb", buffering=0) as file:
        for _ in range(4):
            file.write(b"l" * MIB)
    hosts.primary.wait_for("drained")
    status = hosts.primary.status()
    assert status["mirror_state"] == "degraded"
    assert "full" in status["reason"]
    (hosts.backup.volume.parent / "ballast").unlink()
    (hosts.backup.volume.parent / "more").unlink()
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    assert (hosts.backup.mountpoint / "large").read_bytes() == b"l" * 4 * MIB


@pytest.fixture
def breakable(request: pytest.FixtureRequest) -> Iterator[tuple[TwoHosts, Host, Path]]:
    """Mounted hosts; the disk of one lies on a filesystem that is soon full: then it answers with EIO.

    That is a loop device's way to fail; the kernels of virtual machines often have no device mapper.
    """
    if missing := what_is_missing():
        pytest.skip(missing)
    with TwoHosts() as pair:
        broken: Host = getattr(pair, request.param)
        below = broken.directory / "below"
        below.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", below)
        give_disk(broken, below / "disk.img")
        pair.create_and_join(peer_timeout=PEER_TIMEOUT_S, io_timeout=IO_TIMEOUT_S)
        pair.mount()
        try:
            yield pair, broken, below
        finally:
            for host in pair:
                print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")


@pytest.mark.parametrize("breakable", ["primary", "backup"], indirect=True)
def test_a_host_whose_disk_fails_stops_serving_and_the_other_carries_on(
    breakable: tuple[TwoHosts, Host, Path],
) -> None:
    hosts, broken, below = breakable
    other = hosts.backup if broken is hosts.primary else hosts.primary
    assert write(broken.mountpoint / "before", b"b" * MIB) == 0
    run("dd", "if=/dev/zero", f"of={below / 'ballast'}", "bs=64k", expect=1)
    # Blocks that the disk never had before are what it can no longer take.
    answers = [write(broken.mountpoint / f"{number}", b"x" * MIB) for number in range(20)]
    assert answers[-1] == errno.EIO
    wait_until(lambda: "disk failed" in str(broken.status()["reason"]), PATIENCE_S, "the status")
    assert broken.status()["mirror_state"] == "degraded"
    with pytest.raises(OSError, match="Input/output error"):
        (broken.mountpoint / "before").read_bytes()
    assert "the disk failed" in broken.log()
    wait_until(lambda: "disk failed" in str(other.status()["reason"]), PATIENCE_S, "the other's status")
    if other is hosts.primary:
        assert (other.mountpoint / "before").read_bytes() == b"b" * MIB
        for number, answer in enumerate(answers):
            if answer == 0:
                assert (other.mountpoint / f"{number}").read_bytes() == b"x" * MIB
        assert write(other.mountpoint / "alone", b"alone") == 0
