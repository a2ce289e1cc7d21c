"""A peer that is away: the primary goes on, the backup says why not, and only changes are copied."""

import errno
import os
from collections.abc import Callable

import pytest

from tests.hosts import Host, TwoHosts

REGION_BYTES = 64 * 1024
REGIONS = 256  # of the image
CHANGED = range(0, REGIONS, 16)
IO_TIMEOUT_S = 3.0


@pytest.fixture
def impatient(hosts: TwoHosts) -> TwoHosts:
    """The same two hosts, but programs wait only a short while for the peer."""
    hosts.umount()
    for host in hosts:
        host.configure(io_timeout=IO_TIMEOUT_S)
    hosts.mount()
    return hosts


FAULTS: dict[str, Callable[[TwoHosts], None]] = {
    "the network is cut": TwoHosts.cut,
    "packets are lost": TwoHosts.drop,
    "the backup is killed": lambda hosts: hosts.backup.kill(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_only_what_changed_is_copied_when(impatient: TwoHosts, fault: str) -> None:
    primary, backup = impatient.hosts
    _prepare(primary)
    backup.expect_warnings("EIO: ")
    FAULTS[fault](impatient)

    _change(primary)
    status = primary.status()
    assert (status["mirror_state"], status["peer"]["connected"]) == ("degraded", False)
    assert status["reason"]
    changed_bytes = len(CHANGED) * REGION_BYTES
    assert changed_bytes <= status["out_of_sync"]["bytes"] <= 1.5 * changed_bytes
    if backup.is_running:
        _gets_check_reports(backup)

    sent_before = primary.status()["paths"]["mirror"]["sent_data_bytes"]
    impatient.converge()
    sent_bytes = primary.status()["paths"]["mirror"]["sent_data_bytes"] - sent_before
    print(f"{fault}: {changed_bytes} bytes changed, {sent_bytes} sent")
    assert changed_bytes <= sent_bytes < 1.5 * changed_bytes
    for host in impatient:
        status = host.status()
        assert (status["mirror_state"], status["reason"], status["resync"]) == ("normal", None, None)
        assert status["out_of_sync"] == {"images": 0, "bytes": 0}
    assert (backup.mountpoint / "new").read_text() == "new"
    assert not (backup.mountpoint / "removed").exists()


def _prepare(primary: Host) -> None:
    for number in range(20):
        (primary.mountpoint / f"untouched{number}").write_bytes(os.urandom(REGION_BYTES))
    (primary.mountpoint / "image").write_bytes(os.urandom(REGIONS * REGION_BYTES))
    (primary.mountpoint / "removed").touch()


def _change(primary: Host) -> None:
    with (primary.mountpoint / "image").open("r+b", buffering=0) as image:
        for region in CHANGED:
            os.pwrite(image.fileno(), os.urandom(REGION_BYTES), region * REGION_BYTES)
        os.fsync(image.fileno())
    (primary.mountpoint / "new").write_text("new")
    (primary.mountpoint / "removed").unlink()


def _gets_check_reports(backup: Host) -> None:
    """Requests of any kind get EIO; status and log say why."""
    for act in (
        lambda: (backup.mountpoint / "made").touch(),
        lambda: (backup.mountpoint / "image").read_bytes(),
        lambda: os.listdir(backup.mountpoint),
    ):
        with pytest.raises(OSError, match="Input/output error") as raised:
            act()
        assert raised.value.errno == errno.EIO
    status = backup.status()
    assert status["mirror_state"] == "degraded"
    assert status["reason"]
    assert not status["peer"]["connected"]
    assert "EIO: " in backup.log()


def test_a_primary_that_is_away_and_back_in_time_costs_no_error(hosts: TwoHosts) -> None:
    """A restart of the primary is only a pause for programs on the backup."""
    (hosts.backup.mountpoint / "file").write_text("before")
    with (hosts.backup.mountpoint / "file").open("r+b", buffering=0) as held:
        hosts.primary.kill()
        hosts.primary.mount()
        os.pwrite(held.fileno(), b"after!", 0)
        assert os.pread(held.fileno(), 6, 0) == b"after!"
    assert (hosts.primary.mountpoint / "file").read_text() == "after!"
