"""G3, G5, G8 through two kernels: whatever fails, what was acknowledged is there, and both converge."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Self

import pytest

from tests.hosts import Host, TwoHosts, wait_until
from tests.mount.conftest import IO_TIMEOUT_S

PATIENCE_S = 2 * IO_TIMEOUT_S


class Writer:
    """`records.py` at work on a host."""

    what = "files"

    def __init__(self, host: Host) -> None:
        self.directory = host.mountpoint / "records"
        self.error = 0
        self._told = host.directory / "acknowledged"  # a file, because a full pipe would stall the program

    @property
    def acknowledged(self) -> int:
        """How many records the program was told are safe."""
        return self._told.read_bytes().count(b"\n")

    def __enter__(self) -> Self:
        program = Path(__file__).with_name("records.py")
        command = (sys.executable, program, self.directory, self.what)
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told)
        return self

    def __exit__(self, *error: object) -> None:
        """The program has ended: of an error that it met before, or because it was told to."""
        self._process.communicate(timeout=PATIENCE_S)
        self.error = self._process.returncode

    def write_more(self, records: int = 30) -> None:
        """Return once that many further records were acknowledged, or the program has ended."""
        wanted = self.acknowledged + records
        wait_until(
            lambda: self.acknowledged >= wanted or self._process.poll() is not None, PATIENCE_S, "records"
        )

    def assert_kept(self, host: Host) -> None:
        """Every acknowledged record is there, once and in order; at most one stands behind them."""
        directory = host.mountpoint / self.directory.name
        lines = (directory / "log").read_text().splitlines()
        assert [int(line) for line in lines] == list(range(len(lines)))
        names = {path.name for path in directory.iterdir()} - {"log"}
        assert names == {f"{number}" for number in range(len(names))}
        for kept in (len(lines), len(names)):
            assert self.acknowledged <= kept <= self.acknowledged + 1


def kill(*chosen: str) -> Callable[[TwoHosts], None]:
    def fail(hosts: TwoHosts) -> None:
        for host in hosts:
            if host.name in chosen:
                host.kill()

    return fail


def flap(hosts: TwoHosts) -> None:
    for _ in range(5):
        hosts.cut()
        hosts.heal()
        wait_until(lambda: hosts.primary.status()["peer"]["connected"], PATIENCE_S, "a link")


FAULTS: dict[str, Callable[[TwoHosts], None]] = {
    "the primary is killed": kill("alpha"),
    "the backup is killed": kill("beta"),
    "both are killed": kill("alpha", "beta"),
    "the network is cut": TwoHosts.cut,
    "packets are lost": TwoHosts.drop,
    "what the primary sends is lost": lambda hosts: hosts.drop_from(hosts.primary),
    "what the backup sends is lost": lambda hosts: hosts.drop_from(hosts.backup),
    "the network flaps": flap,
    "the primary stalls": lambda hosts: hosts.primary.stop(),
    "the backup stalls": lambda hosts: hosts.backup.stop(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["primary", "backup"])
def test_what_was_acknowledged_is_kept_when(hosts: TwoHosts, fault: str, place: str) -> None:
    host: Host = getattr(hosts, place)
    with Writer(host) as writer:
        writer.write_more()
        FAULTS[fault](hosts)
        mount_died = not host.is_running
        hosts.converge()
        writer.write_more()
    assert writer.error in ((errno.ENOTCONN, errno.ECONNABORTED) if mount_died else (0,))
    for host in hosts:
        writer.assert_kept(host)


@pytest.mark.parametrize("fault", ["the backup is killed", "the network is cut", "the backup stalls"])
def test_the_primary_goes_on_alone_when(hosts: TwoHosts, fault: str) -> None:
    (hosts.primary.mountpoint / "before").touch()
    FAULTS[fault](hosts)
    (hosts.primary.mountpoint / "alone").write_bytes(b"x" * 300_000)
    status = hosts.primary.status()
    assert status["mirror_state"] == "degraded"
    assert status["reason"]
    assert status["out_of_sync"]["images"] >= 1
    hosts.converge()
    assert (hosts.backup.mountpoint / "alone").read_bytes() == b"x" * 300_000
    assert hosts.primary.status()["out_of_sync"] == {"images": 0, "bytes": 0}


def test_the_backup_gives_a_check_report_while_the_primary_is_away(hosts: TwoHosts) -> None:
    hosts.backup.umount()
    hosts.backup.configure(io_timeout=2.0)
    hosts.backup.mount()
    hosts.backup.wait_for("normal")
    hosts.backup.expect_warnings("EIO: ")
    (hosts.backup.mountpoint / "old").write_text("maybe old")
    hosts.primary.kill()
    for act in (
        lambda: (hosts.backup.mountpoint / "new").touch(),
        lambda: (hosts.backup.mountpoint / "old").read_text(),
    ):
        with pytest.raises(OSError, match="Input/output error") as raised:
            act()
        assert raised.value.errno == errno.EIO
    assert hosts.backup.status()["reason"]
    hosts.converge()
    # What was refused did not happen later, behind the program's back.
    assert sorted(os.listdir(hosts.primary.mountpoint)) == ["old"]


def test_a_backup_that_was_away_gets_what_it_missed(hosts: TwoHosts) -> None:
    for number in range(20):
        (hosts.primary.mountpoint / f"{number}").write_bytes(os.urandom(200_000))
    hosts.backup.umount()
    (hosts.primary.mountpoint / "3").write_bytes(b"changed meanwhile")
    (hosts.primary.mountpoint / "4").unlink()
    (hosts.primary.mountpoint / "5").rename(hosts.primary.mountpoint / "moved")
    sent_before = hosts.primary.status()["paths"]["mirror"]["sent_data_bytes"]
    hosts.backup.mount()
    hosts.backup.wait_for("normal")
    assert (hosts.backup.mountpoint / "3").read_bytes() == b"changed meanwhile"
    assert not (hosts.backup.mountpoint / "4").exists()
    assert (hosts.backup.mountpoint / "moved").stat().st_size == 200_000
    sent = hosts.primary.status()["paths"]["mirror"]["sent_data_bytes"] - sent_before
    assert sent < 500_000, "more was copied than had changed"


def test_a_stopped_pair_comes_back_in_any_order(hosts: TwoHosts) -> None:
    (hosts.backup.mountpoint / "kept").write_text("kept")
    hosts.primary.kill(SIGTERM)
    hosts.backup.kill(SIGTERM)
    hosts.backup.mount()
    hosts.primary.mount()
    for host in hosts:
        host.wait_for("normal")
        assert (host.mountpoint / "kept").read_text() == "kept"


def test_an_open_file_without_a_name_outlives_a_time_apart(hosts: TwoHosts) -> None:
    path, alone = hosts.backup.mountpoint / "temporary", hosts.primary.mountpoint / "alone"
    with path.open("w+b", buffering=0) as file:
        file.write(b"fsynced")
        os.fsync(file.fileno())
        path.unlink()
        hosts.cut()
        (hosts.primary.mountpoint / "waits for the lease to end").touch()
        alone.touch()
        alone.unlink()
        wait_until(lambda: _nameless(hosts.primary) == 1, PATIENCE_S, "a purge of what was made alone")
        hosts.converge()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 9, 0) == b"fsynced"
        assert os.pwrite(file.fileno(), b"F", 0) == 1
        os.fsync(file.fileno())
    for host in hosts:
        wait_until(lambda host=host: _nameless(host) == 0, PATIENCE_S, "the purge")  # type: ignore[misc]


def _nameless(host: Host) -> int:
    return int(host.status()["nameless"]["inodes"])
