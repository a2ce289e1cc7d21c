"""resync: it costs what changed, pauses, and goes on where it was after a restart of either host."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, wait_until

KIB, MIB = 1024, 1024 * 1024
REGION_BYTES = 64 * KIB
IMAGE_BYTES = int(os.environ.get("FUSEMIRROR_RESYNC_MIB", "64")) * MIB
CHANGED_BYTES = max(IMAGE_BYTES // 100 // REGION_BYTES, 1) * REGION_BYTES
RATE_BYTES = 512 * KIB
PATIENCE_S = 60.0


def fill(path: Path, size_bytes: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def change_regions(path: Path, size_bytes: int) -> None:
    """New content in so many bytes, in regions that do not touch."""
    count = size_bytes // REGION_BYTES
    stride = IMAGE_BYTES // count // REGION_BYTES * REGION_BYTES
    with path.open("r+b", buffering=0) as file:
        for number in range(count):
            os.pwrite(file.fileno(), os.urandom(REGION_BYTES), number * stride)
        os.fsync(file.fileno())


def sent(primary: Host) -> int:
    """Bytes that the primary sent over the mirror path, all of them, in this life of its process."""
    count: int = primary.status()["paths"]["mirror"]["sent_bytes"]
    return count


def progress(host: Host) -> dict[str, int]:
    return host.status()["resync"] or {"done_bytes": 0, "sent_bytes": 0}


def resync(host: Host, *options: str) -> str:
    return host.fusemirror("resync", FILESYSTEM, *options).stdout


def test_a_time_apart_costs_what_changed(hosts: TwoHosts) -> None:
    image = hosts.primary.mountpoint / "image"
    fill(image, IMAGE_BYTES)
    hosts.backup.kill()
    change_regions(image, CHANGED_BYTES)
    before = sent(hosts.primary)
    hosts.converge()
    cost = sent(hosts.primary) - before
    print(f"{CHANGED_BYTES} of {IMAGE_BYTES} bytes changed, {cost} sent")
    assert CHANGED_BYTES <= cost < 1.5 * CHANGED_BYTES


def test_a_full_copy_is_slow_on_demand_pauses_and_tells_both_hosts_how_far_it_is(hosts: TwoHosts) -> None:
    hosts.backup.umount()
    file = hosts.primary.mountpoint / "file"
    fill(file, 2 * MIB)
    assert "without a limit" in resync(hosts.primary, "--rate", "0")
    assert "at 512 KiB/s at most" in resync(hosts.primary, "--rate", f"{RATE_BYTES}")
    assert "paused" in resync(hosts.primary, "--pause")
    hosts.backup.mount()
    hosts.backup.wait_for("connected")
    wait_until(lambda: hosts.backup.status()["resync"] is not None, PATIENCE_S, "progress at the backup")
    for host in hosts:
        status = host.status()
        assert status["mirror_state"] == "resyncing"
        assert status["resync"]["paused"]
        assert (status["resync"]["done_bytes"], status["resync"]["sent_bytes"]) == (0, 0)
        assert status["resync"]["rate_limit_bytes"] == RATE_BYTES
        assert "paused" in host.fusemirror("status", FILESYSTEM).stdout
    assert "resume" in hosts.primary.status()["reason"]

    # Both hosts go on writing meanwhile, and see each other's changes and what is not copied yet.
    (hosts.primary.mountpoint / "here").write_text("written here")
    (hosts.backup.mountpoint / "there").write_text("written there")
    assert (hosts.backup.mountpoint / "here").read_text() == "written here"
    assert (hosts.primary.mountpoint / "there").read_text() == "written there"
    with (hosts.backup.mountpoint / "file").open("r+b", buffering=0) as seen:
        assert os.pread(seen.fileno(), 100, MIB) == file.read_bytes()[MIB : MIB + 100]
        os.pwrite(seen.fileno(), b"changed at the backup", MIB)
    assert b"changed at the backup" in file.read_bytes()

    assert "goes on" in resync(hosts.backup, "--resume")  # from the other host
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
        assert host.status()["resync"] is None


def kill(name: str) -> Callable[[TwoHosts], None]:
    def restart(hosts: TwoHosts) -> None:
        host: Host = getattr(hosts, name)
        host.kill()
        host.mount()

    return restart


RESTARTS: dict[str, Callable[[TwoHosts], None]] = {
    "the primary is killed": kill("primary"),
    "the backup is killed": kill("backup"),
}


@pytest.mark.parametrize("restart", RESTARTS)
def test_a_full_copy_goes_on_where_it_was_when(hosts: TwoHosts, restart: str) -> None:
    """A pause outlives the restart, and what was copied before is not copied again."""
    hosts.backup.umount()
    for number in range(32):
        fill(hosts.primary.mountpoint / f"{number}", MIB)
    resync(hosts.primary, "--rate", f"{4 * MIB}")
    hosts.backup.mount()
    wait_until(lambda: progress(hosts.primary)["done_bytes"] >= 8 * MIB, PATIENCE_S, "some of the copy")
    resync(hosts.primary, "--pause")
    before = progress(hosts.primary)
    assert 0 < before["done_bytes"] < 32 * MIB
    assert hosts.backup.status()["mirror_state"] == "resyncing"

    RESTARTS[restart](hosts)
    for host in hosts:
        wait_until(lambda host=host: host.status()["resync"] is not None, PATIENCE_S, "the copy")  # type: ignore[misc]
        assert host.status()["resync"]["paused"]
    sent_before = hosts.primary.status()["paths"]["mirror"]["sent_data_bytes"]
    resync(hosts.primary, "--resume")
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    copied = hosts.primary.status()["paths"]["mirror"]["sent_data_bytes"] - sent_before
    print(f"{restart}: {before['sent_bytes']} bytes copied before, {copied} after, of {32 * MIB}")
    assert copied + before["sent_bytes"] <= 32 * MIB + 10 * MIB  # what was under way is in doubt
