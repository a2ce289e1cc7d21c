"""A directory of very many names: copied to a new backup, listed on both hosts, and changed while listed."""

import os
import stat
import time

import pytest

from fusemirror.identifiers import ROOT_INODE, ChangeNumber
from fusemirror.operations import Create
from fusemirror.operations.draft import Draft
from fusemirror.volume.volume import Volume
from tests.hosts import FILESYSTEM, Host, TwoHosts, what_is_missing

NAMES = int(os.environ.get("FUSEMIRROR_NAMES", "100000"))  # 1000000 takes three minutes
PATIENCE_S = 120.0 + NAMES / 2000


def fill(host: Host) -> None:
    """Make the files in an unmounted volume: through the mount it would take a minute."""
    volume = Volume.open(host.volume)
    for index in range(NAMES):
        number, time_ns = ChangeNumber(volume.number + 1), volume.clock.next_ns()
        create = Create(ROOT_INODE, f"name{index}".encode(), stat.S_IFREG | 0o644, 0, 0)
        change = create.decide(Draft(volume.catalog, number, time_ns)).change
        assert change is not None
        volume.apply(change)
    volume.close()


def listed(host: Host) -> list[str]:
    begun = time.monotonic()  # noqa: TID251 - printed for people, asserted by nobody
    names = os.listdir(host.mountpoint)
    print(f"{host.name}: {len(names)} names in {time.monotonic() - begun:.1f} s")  # noqa: TID251
    return names


def test_very_many_names_are_listed_on_both_hosts() -> None:
    if missing := what_is_missing():
        pytest.skip(missing)
    with TwoHosts() as hosts:
        try:
            _fill_list_and_verify(hosts)
        finally:
            for host in hosts:
                print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")


def _fill_list_and_verify(hosts: TwoHosts) -> None:
    hosts.create_and_join()
    fill(hosts.primary)
    for host in hosts:
        host.mount(timeout_s=PATIENCE_S)
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    expected = [f"name{index}" for index in range(NAMES)]
    for host in hosts:
        assert listed(host) == expected
    _rename_while_listing(hosts)
    # The oracle without its walk through both mounts, which would take minutes.
    hosts.primary.fusemirror("verify", FILESYSTEM, timeout_s=PATIENCE_S)
    hosts.umount()
    for host in hosts:
        host.fusemirror("fsck", host.volume, timeout_s=PATIENCE_S)
    assert hosts.unexpected_warnings() == []


def _rename_while_listing(hosts: TwoHosts) -> None:
    """Names put after a listing began are not in it, so it ends; each of the others comes once."""
    seen = []
    with os.scandir(hosts.backup.mountpoint) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 500 == 0:
                path = hosts.primary.mountpoint / entry.name
                path.rename(path.with_suffix(".moved"))
    assert len(seen) == len(set(seen)) == NAMES
