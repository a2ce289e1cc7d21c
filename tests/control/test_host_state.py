"""What a host has whichever role it has."""

import pytest
from trio.testing import MockClock

from fusemirror.control.host_state import HostState
from fusemirror.errors import DiskStopped, HostReplaced
from fusemirror.identifiers import NO_CHANGE, ChangeNumber, InodeNumber
from fusemirror.settings import Access
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.control.conftest import make_links
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]


async def test_a_link_that_ends_takes_the_leases_with_it(volume: Volume, autojump_clock: MockClock) -> None:
    host, (link, other) = HostState(volume, b"instance"), await make_links()
    host.links.begin(link)
    host.leases.exclusive.add(InodeNumber(7))
    host.end_link(other)
    assert host.leases.exclusive, "it is not the link that lives"
    host.end_link(link)
    assert not host.leases.exclusive
    assert host.links.link is None


async def test_the_reason_why_nothing_is_served_is_told(volume: Volume, autojump_clock: MockClock) -> None:
    host = HostState(volume, b"instance")
    host.check_disk()
    volume.health.fail("it burns")
    with pytest.raises(DiskStopped, match="it burns"):
        host.check_disk()


async def test_a_host_that_was_replaced_says_so(volume: Volume, autojump_clock: MockClock) -> None:
    host = HostState(volume, b"instance")
    volume.health.replace("beta")
    with pytest.raises(HostReplaced, match="beta"):
        host.check_disk()


async def test_another_peer_is_another_host_that_was_never_met(
    volume: Volume, autojump_clock: MockClock
) -> None:
    host, (link, _) = HostState(volume, b"instance"), await make_links()
    host.links.met, host.peer_durable = link.peer, ChangeNumber(3)
    host.forget_peer()
    assert host.peer_durable == NO_CHANGE
    assert host.links.met is None


async def test_a_change_of_the_role_keeps_all_of_it(pair: Pair, autojump_clock: MockClock) -> None:
    before = pair.primary.unit.host
    await pair.primary.succession.switch()
    assert pair.primary.unit.host is before
    assert pair.primary.roles.host is before


def test_the_access_that_is_set_is_in_effect_until_the_other_host_is_met(volume: Volume) -> None:
    assert HostState(volume, b"instance").access.in_effect is Access.ROUTED
    assert HostState(volume, b"instance", access=Access.EXCLUSIVE).access.in_effect is Access.EXCLUSIVE
