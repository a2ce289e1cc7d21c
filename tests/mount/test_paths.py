"""Paths by several addresses: two networks between two hosts, of which one fails under load, in every way."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fusemirror.admin.client import ask
from fusemirror.channel.session import LARGE_ONES_LOST
from fusemirror.mirror.states import MIRROR_LOST
from tests.hosts import FILESYSTEM, PORT, Host, TwoHosts, wait_until
from tests.mount.conftest import IO_TIMEOUT_S, checked
from tests.mount.test_failures import Writer

NAME = "alpha.example"
DEVICES = ("veth0", "veth1")
PATHS = ("mirror", "forward")
PEER_TIMEOUT_S = 5.0
RECORDS = 20


class Carrier(Writer):
    """A writer whose one file has the newest number for its name: a rename that comes again fails."""

    what = "name"

    def __init__(self, host: Host, test: str) -> None:
        super().__init__(host)
        self.directory = host.mountpoint / f"{host.name}: {test}"

    def assert_whole(self) -> None:
        """Every change is there, once and in order. (That the other host has the same is seen in the end.)"""
        lines = (self.directory / "log").read_text().splitlines()
        assert [int(line) for line in lines] == list(range(self.acknowledged))
        assert {path.name for path in self.directory.iterdir()} == {"log", f"{self.acknowledged}"}


def prepare(hosts: TwoHosts) -> None:
    """The primary has a list of addresses, and the backup a name that stands for both."""
    primary, backup = hosts
    peers = [f"peer={address}" for address in hosts.both_addresses(backup)], [f"peer={NAME}:{PORT}"]
    for host, peer in zip(hosts, peers, strict=True):
        listen = [f"listen={address}" for address in hosts.both_addresses(host)]
        host.fusemirror("set", FILESYSTEM, *listen, *peer, "path_timeout=1.0")
        host.expect_warnings(r"listening on \[fd77:89::")
    known = f"FUSEMIRROR_TEST_NAME={NAME}={primary.namespace.address},fd77:89::1"
    backup.program = ("env", known, sys.executable, "-m", "tests.mount.naming")


@pytest.fixture(scope="module")
def joined(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """Both networks are there, and each is known to work; the second came after the mounts."""
    with checked(request, peer_timeout_s=PEER_TIMEOUT_S, prepare=prepare) as hosts:
        for host in hosts:
            assert [row["up"] for row in dialed(hosts, host)] == [True, False]
        hosts.join_again()
        wait_whole(hosts)
        yield hosts


def dialed(hosts: TwoHosts, host: Host) -> list[dict[str, Any]]:
    """How each address stands of the path that this host dials; the first network's first."""
    status = ask(host.runtime_directory, FILESYSTEM, "status")
    rows: list[dict[str, Any]] = status["paths"][PATHS[hosts.hosts.index(host)]]["addresses"]
    return rows


def used(hosts: TwoHosts, host: Host) -> int:
    """Which network that path goes by; -1 while it goes by none."""
    return next((at for at, row in enumerate(dialed(hosts, host)) if row["in_use"]), -1)


def wait_whole(hosts: TwoHosts) -> None:
    """Return once each path has one address in use, and one spare."""
    hosts.heal()
    for host in hosts:
        wait_until(lambda h=host: all(r["up"] for r in dialed(hosts, h)), IO_TIMEOUT_S, "a spare")  # type: ignore[misc]


def counted(hosts: TwoHosts) -> list[int]:
    """How often the mirror state changed, and a link was made, at each host: no fault may change that."""
    words = (MIRROR_LOST, " mirror: ", "connected to the peer")
    return [host.log().count(word) for host in hosts for word in words]


def moves(host: Host) -> int:
    """How often the path that this host dials went on by another connection."""
    return host.log().count(" path goes by ")


@pytest.fixture
def load(joined: TwoHosts, request: pytest.FixtureRequest) -> Iterator[list[Carrier]]:
    """Programs on both hosts, which neither end nor lose anything, whatever the test does; nor does the
    mirror state change."""
    before = counted(joined)
    carriers = [Carrier(host, request.node.name) for host in joined]
    with carriers[0], carriers[1]:
        for carrier in carriers:
            carrier.write_more(RECORDS)
        yield carriers
    assert [carrier.error for carrier in carriers] == [0, 0]
    assert counted(joined) == before
    for carrier in carriers:
        carrier.assert_whole()


FAULTS: dict[str, Callable[[TwoHosts, str], None]] = {
    "its cable is cut": TwoHosts.cut,
    "what the primary sends is lost": lambda hosts, device: hosts.drop_from(hosts.primary, device),
    "what the backup sends is lost": lambda hosts, device: hosts.drop_from(hosts.backup, device),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_both_paths_leave_a_network_when(joined: TwoHosts, load: list[Carrier], fault: str) -> None:
    lost = used(joined, joined.primary)
    FAULTS[fault](joined, DEVICES[lost])
    for host in joined:
        wait_until(lambda h=host: used(joined, h) == 1 - lost, IO_TIMEOUT_S, "another path")  # type: ignore[misc]
    for carrier in load:
        carrier.write_more(RECORDS)
    wait_whole(joined)


def test_a_path_that_is_up_in_one_direction_only_moves_alone(joined: TwoHosts, load: list[Carrier]) -> None:
    primary, backup = joined
    lost, stays = used(joined, primary), moves(backup)
    address = (primary.namespace.address, "fd77:89::1")[lost]
    joined.drop_answers_of(backup, address)
    wait_until(lambda: used(joined, primary) == 1 - lost, IO_TIMEOUT_S, "another path")
    for carrier in load:
        carrier.write_more(RECORDS)
    wait_whole(joined)
    assert moves(backup) == stays, "the other path"


def test_a_network_that_loses_large_packets_is_left(joined: TwoHosts, load: list[Carrier]) -> None:
    primary, backup = joined
    lost = used(joined, primary)
    joined.narrow(DEVICES[lost])
    for host in joined:
        large = (f"of={host.mountpoint / f'large of {host.name}'}", "bs=256K", "count=4", "oflag=dsync")
        host.run("dd", "if=/dev/urandom", *large)
    for host in joined:
        wait_until(lambda h=host: used(joined, h) == 1 - lost, IO_TIMEOUT_S, "another path")  # type: ignore[misc]
        wait_until(
            lambda h=host: dialed(joined, h)[lost]["reason"] == LARGE_ONES_LOST,  # type: ignore[misc]
            IO_TIMEOUT_S,
            "the reason",
        )
    for carrier in load:
        carrier.write_more(RECORDS)
    wait_whole(joined)
    for host in joined:
        name = f"large of {host.name}"
        assert (primary.mountpoint / name).read_bytes() == (backup.mountpoint / name).read_bytes()
