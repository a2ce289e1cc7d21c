"""fence = "data": the primary changes nothing that it cannot mirror, says why, and serves all the rest."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import Host, TwoHosts, wait_until
from tests.mount.conftest import IO_TIMEOUT_S

FAULTS: dict[str, Callable[[TwoHosts], None]] = {
    "the backup is killed": lambda hosts: hosts.backup.kill(),
    "the backup is unmounted": lambda hosts: hosts.backup.umount(),
    "packets are lost": TwoHosts.drop,
}


@pytest.fixture
def fenced(hosts: TwoHosts) -> TwoHosts:
    """The same two hosts, whose primary does not go on alone."""
    hosts.umount()
    for host in hosts:
        host.configure(fence="data")
        host.expect_warnings("EIO: ")
    hosts.mount()
    return hosts


def _write(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"changed")


def changes(primary: Host) -> dict[str, Callable[[], object]]:
    kept = primary.mountpoint / "kept"
    return {
        "write": lambda: _write(kept),
        "truncate": lambda: os.truncate(kept, 0),
        "create": (primary.mountpoint / "new").touch,
        "rename": lambda: kept.rename(primary.mountpoint / "renamed"),
        "unlink": kept.unlink,
        "chmod": lambda: kept.chmod(0o600),
        "setxattr": lambda: os.setxattr(kept, "user.name", b"value"),
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_the_primary_refuses_changes_and_serves_reads_while(fenced: TwoHosts, fault: str) -> None:
    primary = fenced.primary
    kept = primary.mountpoint / "kept"
    kept.write_bytes(b"before")
    with kept.open("rb") as held:
        FAULTS[fault](fenced)
        # Until the loss is noticed, changes are made and sent, and may get there.
        wait_until(lambda: primary.status()["state"] == "alone", IO_TIMEOUT_S, "a fence")
        for name, change in changes(primary).items():
            with pytest.raises(OSError, match="Input/output error") as raised:
                change()
            assert raised.value.errno == errno.EIO, name
        os.fsync(held.fileno())
        assert held.read() == b"before"
    assert os.listdir(primary.mountpoint) == ["kept"]
    status = primary.status()
    assert status["settings"]["fence"] == status["effective"]["fence"] == "data"
    assert status["mirror_state"] == "degraded"
    assert "changes are refused" in status["reason"]
    assert "Bring the backup back" in status["reason"]
    assert "EIO: " in primary.log()

    fenced.converge()
    # What was refused did not happen later, and changes are made again.
    for host in fenced:
        assert os.listdir(host.mountpoint) == ["kept"]
        assert (host.mountpoint / "kept").read_bytes() == b"before"
    kept.write_bytes(b"after")
    assert (fenced.backup.mountpoint / "kept").read_bytes() == b"after"
    assert primary.status()["reason"] is None


def test_without_a_change_made_alone_no_new_generation_begins(fenced: TwoHosts) -> None:
    before = fenced.primary.status()["generation"]
    fenced.backup.kill()
    with pytest.raises(OSError, match="Input/output error"):
        (fenced.primary.mountpoint / "new").touch()
    fenced.converge()
    assert fenced.primary.status()["generation"] == before


def test_a_change_under_way_when_the_backup_is_lost_is_in_doubt_and_then_the_same_on_both(
    fenced: TwoHosts,
) -> None:
    """The primary had it already: its program hears that it may or may not have taken effect."""
    file = fenced.primary.mountpoint / "file"
    file.write_bytes(b"before")
    with file.open("r+b", buffering=0) as held:
        fenced.drop()
        with pytest.raises(OSError, match="Input/output error"):
            held.write(b"after!")
    assert file.read_bytes() in (b"before", b"after!")
    fenced.converge()
    assert "may or may not have taken effect" in fenced.primary.log()
    assert (fenced.backup.mountpoint / "file").read_bytes() == file.read_bytes()


def test_a_short_loss_of_the_backup_is_only_a_pause(fenced: TwoHosts) -> None:
    fenced.backup.stop()
    fenced.backup.resume()
    (fenced.primary.mountpoint / "new").write_text("made")
    assert (fenced.backup.mountpoint / "new").read_text() == "made"
