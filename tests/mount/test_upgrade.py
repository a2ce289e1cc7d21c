"""The manual's way from the release before to this one (fusemirror-tasks.7), carried out on real hosts."""

from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, TwoHosts, what_is_missing
from tests.mount.conftest import IO_TIMEOUT_S
from tests.mount.test_tasks import Site, both_write, commands
from tests.release_before import release_before

OLD = b"of the release before"


def test_one_host_is_upgraded_after_the_other(tmp_path: Path) -> None:
    if missing := what_is_missing():
        pytest.skip(missing)
    before = release_before(tmp_path)
    with TwoHosts() as hosts:
        for host in hosts:
            host.checkout = before
        hosts.create_and_join(io_timeout=IO_TIMEOUT_S)
        hosts.mount()
        (hosts.primary.mountpoint / "old").write_bytes(OLD)
        site = Site(hosts)
        both_write(site, "alpha", "beta")
        mixed = 0
        for name, command in commands("UPGRADE"):
            site.do(site.hosts[name], command)
            checkouts = {host.checkout for host in hosts}
            if all(host.is_running for host in hosts) and checkouts == {CHECKOUT, before}:
                mixed += 1  # before the switch, and after it
                for host in hosts:
                    host.wait_for("normal")
                both_write(site, "alpha", "beta")
                assert (hosts.backup.mountpoint / "old").read_bytes() == OLD
                hosts.backup.fusemirror("verify", "shared")
        assert mixed == 3
        assert {host.checkout for host in hosts} == {CHECKOUT}
        hosts.primary, hosts.backup = hosts.backup, hosts.primary
        both_write(site, "alpha", "beta")
        hosts.check()
