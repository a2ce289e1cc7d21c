"""A third namespace with a real etcd: the backup takes over from a primary that is cut off from both."""

from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from tests.hosts import FILESYSTEM, Host, Namespace, TwoHosts, run, wait_until, what_is_missing
from tests.mount.test_roles import NamedWriter, role
from tests.witness.etcd_process import CLIENT_PORT, etcd, is_there

PEER_TIMEOUT_S = 1.0
IO_TIMEOUTS_S = (4.5, 12.0)  # programs of the primary are to hear soon, those of the backup only wait
PATIENCE_S = 30.0


class Third:
    """The witness's host: a cable of its own to each of the two."""

    def __init__(self, hosts: TwoHosts) -> None:
        self._hosts = hosts
        self.namespace = Namespace(f"{hosts.primary.namespace.name[:-1]}3", "0.0.0.0")
        for number, host in enumerate(hosts):
            theirs = host.namespace
            ends = ("netns", self.namespace.name, "type", "veth", "peer", "witness", "netns", theirs.name)
            run("ip", "link", "add", f"to-{host.name}", *ends)
            self._plug(self.namespace, f"to-{host.name}", f"10.77.9{number}.9/24")
            self._plug(theirs, "witness", f"10.77.9{number}.1/24")
            host.configure(witness=f"http://10.77.9{number}.9:{CLIENT_PORT}")

    @staticmethod
    def _plug(namespace: Namespace, device: str, address: str) -> None:
        namespace.run("ip", "address", "add", address, "dev", device)
        namespace.run("ip", "link", "set", device, "up")

    def cut(self, host: Host) -> None:
        host.namespace.run("ip", "link", "set", "witness", "down")

    def heal(self, host: Host) -> None:
        host.namespace.run("ip", "link", "set", "witness", "up")


@contextmanager
def with_witness() -> Iterator[tuple[TwoHosts, Third]]:
    with TwoHosts() as hosts:
        third = None
        try:
            hosts.create_and_join(peer_timeout=PEER_TIMEOUT_S)
            for host, io_timeout_s in zip(hosts, IO_TIMEOUTS_S, strict=True):
                host.configure(io_timeout=io_timeout_s)
            third = Third(hosts)
            with etcd(hosts.directory / "etcd", enter=third.namespace.enter):
                hosts.mount()
                yield hosts, third
        finally:
            for host in hosts:
                print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")
            if third is not None:
                third.namespace.remove()


def says(host: Host) -> str:
    return str(host.status()["witness"]["state"])


@pytest.mark.skipif(not is_there(), reason="no etcd: install the package etcd-server")
@pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
def test_the_backup_takes_over_from_a_primary_that_is_cut_off_from_it_and_the_witness() -> None:
    with with_witness() as (hosts, third):
        primary, backup = hosts
        for host in hosts:
            host.expect_warnings("EIO: |the witness cannot be asked")
            wait_until(lambda h=host: says(h) == "free", PATIENCE_S, "the witness is looked at")  # type: ignore[misc]
        (primary.mountpoint / "before").write_text("acknowledged")
        with NamedWriter(backup) as writer:
            writer.write_more()
            third.cut(primary)
            hosts.cut()
            wait_until(lambda: role(backup) == "primary", PATIENCE_S, "the backup takes over")
            writer.write_more()
        assert writer.error == 0
        assert says(backup) == "held here"
        assert (backup.mountpoint / "before").read_text() == "acknowledged"
        # Both wait for io_timeout, so both at once.
        look = primary.start("cat", primary.mountpoint / "before", stderr=PIPE)
        told = primary.run("touch", primary.mountpoint / "before", expect=1)
        assert "Input/output error" in told.stderr
        assert b"Input/output error" in look.communicate(timeout=PATIENCE_S)[1]
        assert role(primary) == "primary"
        assert "may not go on without the other" in primary.status()["reason"]
        third.heal(primary)
        hosts.heal()
        for host in hosts:
            host.wait_for("normal", timeout_s=PATIENCE_S)
        assert [role(host) for host in hosts] == ["backup", "primary"]
        writer.assert_kept(primary)
        (primary.mountpoint / "after").write_text("from the old primary")
        assert (backup.mountpoint / "after").read_text() == "from the old primary"
        wait_until(lambda: says(backup) == "free", PATIENCE_S, "the record is given back")
        backup.fusemirror("verify", FILESYSTEM)
        hosts.check()
        assert not hosts.unexpected_warnings()


@pytest.mark.skipif(not is_there(), reason="no etcd: install the package etcd-server")
@pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
def test_a_primary_that_lost_both_its_backup_and_the_witness_goes_on_when_a_person_says_so() -> None:
    with with_witness() as (hosts, third):
        primary, backup = hosts
        primary.expect_warnings("EIO: |the witness cannot be asked")
        # What was granted to the first that was mounted is given back: else it may go on alone.
        wait_until(lambda: says(primary) == "free", PATIENCE_S, "the record is given back")
        third.cut(primary)
        (primary.mountpoint / "file").write_text("without the witness")
        backup.kill()
        told = primary.run("touch", primary.mountpoint / "file", expect=1)
        assert "Input/output error" in told.stderr
        primary.fusemirror("takeover", FILESYSTEM, "--force")
        (primary.mountpoint / "file").write_text("alone")
        assert says(primary) == "unreachable"
        third.heal(primary)
        wait_until(lambda: says(primary) == "held here", PATIENCE_S, "the record names the primary")
        backup.mount()
        backup.wait_for("normal", timeout_s=PATIENCE_S)
        assert (backup.mountpoint / "file").read_text() == "alone"
        hosts.check()
        assert not hosts.unexpected_warnings()
