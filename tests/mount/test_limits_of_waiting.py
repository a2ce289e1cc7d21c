"""G8: a mount ends in bounded time with nothing mounted, whatever its peer does; nobody waits for ever."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.hosts import Host, TwoHosts, wait_until

IO_TIMEOUT_S = 3.0
PEER_TIMEOUT_S = 1.0
PATIENCE_S = 45.0  # many times what the settings allow, for a machine that has much else to do


@pytest.fixture
def impatient(hosts: TwoHosts) -> TwoHosts:
    """The same two hosts, whose programs wait for three seconds."""
    hosts.umount()
    for host in hosts:
        host.configure(io_timeout=IO_TIMEOUT_S)
        host.expect_warnings("EIO: |stopped before everything was drained|the last checkpoint failed")
    hosts.mount()
    return hosts


def other(hosts: TwoHosts, host: Host) -> Host:
    return hosts.backup if host is hosts.primary else hosts.primary


FAULTS: dict[str, Callable[[TwoHosts, Host], None]] = {
    "stalls": lambda hosts, peer: peer.stop(),
    "is silent": lambda hosts, peer: hosts.drop(),
}


@pytest.fixture
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that were left waiting; none outlives the test."""
    programs: list[subprocess.Popen[bytes]] = []
    yield programs
    for program in programs:
        program.wait(PATIENCE_S)


def start_writing(host: Host) -> subprocess.Popen[bytes]:
    """A program that writes until an error."""
    source = "import sys\nwith open(sys.argv[1], 'wb', buffering=0) as file:\n  while file.write(b'x'): pass"
    return host.start(sys.executable, "-c", source, host.mountpoint / "written", stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["primary", "backup"])
def test_a_mount_under_load_ends_when_told_so_while_its_peer(
    impatient: TwoHosts, busy: list[subprocess.Popen[bytes]], place: str, fault: str
) -> None:
    host: Host = getattr(impatient, place)
    busy.append(start_writing(host))
    wait_until((host.mountpoint / "written").exists, PATIENCE_S, "a program at work")
    FAULTS[fault](impatient, other(impatient, host))
    host.kill(signal.SIGTERM, timeout_s=PATIENCE_S)
    assert not host.is_mounted
    assert busy[0].wait(PATIENCE_S) != 0, "the program met the end of the mount"


def test_umount_returns_while_the_peer_is_silent(impatient: TwoHosts) -> None:
    (impatient.backup.mountpoint / "file").write_text("kept")
    impatient.drop()
    for host in impatient:
        host.umount(timeout_s=PATIENCE_S)
        assert not host.is_mounted


def test_stale_reads_are_served_alone_when_they_are_allowed(hosts: TwoHosts) -> None:
    primary, backup = hosts.hosts
    backup.umount()
    backup.configure(io_timeout=IO_TIMEOUT_S, stale_reads=True)
    backup.expect_warnings("EIO: ")
    backup.mount()
    (primary.mountpoint / "file").write_text("what it was")
    backup.wait_for("normal")
    hosts.drop()
    wait_until(lambda: not backup.status()["peer"]["connected"], PATIENCE_S, "a lost link")
    assert (backup.mountpoint / "file").read_text() == "what it was"
    assert os.listdir(backup.mountpoint) == ["file"]
    with pytest.raises(OSError, match="Input/output error") as raised:
        (backup.mountpoint / "file").write_text("changes wait, and fail")
    assert raised.value.errno == errno.EIO
    primary_knows = (primary.mountpoint / "file").read_text()
    hosts.converge()
    assert (backup.mountpoint / "file").read_text() == primary_knows == "what it was"


def test_a_copy_that_is_half_made_is_not_read_alone_whatever_is_allowed(hosts: TwoHosts) -> None:
    primary, backup = hosts.hosts
    backup.umount()
    backup.configure(io_timeout=IO_TIMEOUT_S, stale_reads=True)
    backup.expect_warnings("EIO: ")
    (primary.mountpoint / "file").write_text("not copied")
    primary.fusemirror("resync", "shared", "--pause")
    backup.mount()
    wait_until(lambda: backup.status()["resync"] is not None, PATIENCE_S, "a resync")
    assert (backup.mountpoint / "file").read_text() == "not copied"  # read at the primary
    hosts.drop()
    wait_until(lambda: not backup.status()["peer"]["connected"], PATIENCE_S, "a lost link")
    with pytest.raises(OSError, match="Input/output error"):
        (backup.mountpoint / "file").read_text()
    hosts.heal()
    primary.fusemirror("resync", "shared", "--resume")
