"""A host is lost for good, and another one takes its place: three hosts, real disks, a network in memory."""

import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from fusemirror import settings
from fusemirror.admin.requests import Invite
from fusemirror.admin.snapshot import Mounted, snapshot
from fusemirror.channel.tls import Credentials, TlsNetwork
from fusemirror.channel.transport import Network
from fusemirror.control.management import reservations
from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import BadKeys, HostReplaced, RefusedForSafety
from fusemirror.identifiers import NO_CHANGE, ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.keys import make_key_pair
from fusemirror.operations import Create, Write
from fusemirror.settings import Acknowledge, Address
from fusemirror.volume.identity import Identity, KnownPeer
from fusemirror.volume.volume import Volume
from fusemirror.witness.interface import Witness
from tests.admin.conftest import network
from tests.channel.conftest import write_keys
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import IDENTITY, counting_seams

__all__ = ["network"]

PATIENCE_S = 30
REPLACED = "replaced: alpha has invited another host"


class Site:
    """Hosts by their names: their volumes, their keys, and their mount processes, which come and go."""

    def __init__(self, directory: Path, memory: MemoryNetwork, *, tls: bool) -> None:
        self.directory = directory
        self.memory = memory
        self.tls = tls
        self.keys = {name: make_key_pair(name) for name in ("alpha", "beta", "gamma", "delta")}
        for name, peer, role in (("alpha", "beta", "primary"), ("beta", "alpha", "backup")):
            self.make(name, peer, role=role)

    def make(self, name: str, peer_name: str, *, role: str, **other: Any) -> None:
        """As `create` and `join` do."""
        hosts = {"host": _identity(name), "peers": (KnownPeer(_identity(peer_name), peer_name),)}
        identity = msgspec.structs.replace(
            IDENTITY, role=role, host_name=name, complete=role == "primary", **hosts, **other
        )
        Volume.create(self.directory / name, identity)
        (self.directory / f"keys-{name}").mkdir()
        write_keys(self.directory / f"keys-{name}", self.keys[name], self.keys[peer_name].certificate)

    @asynccontextmanager
    async def mounted(
        self, name: str, peer: str, asks: Witness | None = None, **other: Any
    ) -> AsyncIterator[Host]:
        """Ends as a killed process does, but for the volume, which is closed in good order."""
        made = settings.make(
            name="shared",
            volume=str(self.directory / name),
            listen=f"{name}:7000",
            peer=f"{peer}:7000",
            tls=self.tls,
            **{"peer_timeout": 0.5, "io_timeout": 2.0, **other},
        )
        keys, net = self.directory / f"keys-{name}", self.memory.host(name)
        network: Network = TlsNetwork(net, Credentials(keys)) if self.tls else net
        async with AsyncExitStack() as stack:
            witness_of = None if asks is None else lambda _: asks
            host = Host(made, network, counting_seams(), witness_of, keys=keys)
            await host.open(stack)
            yield host

    async def invite(self, host: Host, name: str) -> None:
        """At `host`, for a new one, which joins."""
        before = Identity.load(Path(host.settings.volume))
        await self.invite_only(host, name)
        self.make(name, before.host_name, role="backup", pairing=before.pairing + 1)

    async def invite_only(self, host: Host, name: str) -> None:
        pairing = Identity.load(Path(host.settings.volume)).pairing + 1
        pem = self.keys[name].certificate
        await host.invite(Invite(_identity(name), name, pem, f"{name}:7000", pairing))


def _identity(name: str) -> str:
    return name.encode().ljust(16, b".").hex()


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def site(tmp_path: Path, network: MemoryNetwork, request: pytest.FixtureRequest) -> Site:
    return Site(tmp_path, network, tls=request.param)


async def normal(*hosts: Host) -> None:
    with trio.fail_after(PATIENCE_S):
        for host in hosts:
            await host.roles.wait_normal()


async def put(host: Host, name: bytes) -> InodeNumber:
    inode = await host.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    assert inode is not None
    await host.roles.perform(Write(inode.number, 0), name)
    return inode.number


async def assert_has(host: Host, *names: bytes) -> None:
    found = {name: entry.inode for _, name, entry in await host.roles.listing(ROOT_INODE, 0, 100)}
    assert set(found) == set(names)
    for name, inode in found.items():
        assert await host.roles.read(inode, 0, 100) == name


async def alone(host: Host) -> None:
    def may_invite() -> bool:
        try:
            host.succession.check_may_invite()
        except RefusedForSafety:
            return False
        return True

    await until(may_invite)


def status(host: Host) -> dict[str, Any]:
    mounted = Mounted(host.settings, "/mnt", 4711, "1.2.3", dict)
    return snapshot(mounted, host.unit, host.linker, host.seams.now_ns)


async def assert_replaced(host: Host, by: str) -> None:
    """It says so, in its status and to its programs, and changes nothing."""
    await until(lambda: host.roles.volume.identity.only_peer.has_replaced_us)
    told = status(host)
    assert (told["mirror_state"], told["replaced"]) == ("degraded", True)
    assert told["reason"].startswith(f"replaced: {by} has invited another host in this one's place")
    assert told["disk"]["failure"] is None
    before = host.roles.volume.number
    for acknowledge in Acknowledge:
        host.change_settings({"acknowledge": acknowledge})
        with pytest.raises(HostReplaced, match="fusemirror export"):
            await put(host, b"late")
        with pytest.raises(HostReplaced):
            await host.roles.perform(Write(InodeNumber(2), 0), b"late")
    with pytest.raises(HostReplaced):
        await host.succession.takeover(force=True)
    with pytest.raises(HostReplaced):
        host.succession.check_may_invite()
    assert host.roles.volume.number == before
    assert len(host._communication) == 0


@pytest.mark.expects_warnings
async def test_a_lost_backup_is_replaced_and_told_so_when_it_comes_back(site: Site) -> None:
    async with site.mounted("alpha", "beta") as alpha:
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            await put(alpha, b"both")
        await alone(alpha)
        await put(alpha, b"alone")
        alpha.roles.host.peer_durable = ChangeNumber(1)  # as a role before this one heard of beta
        await site.invite(alpha, "gamma")
        assert alpha.roles.host.peer_durable == NO_CHANGE
        assert isinstance(alpha.unit, PrimaryUnit)
        known = alpha.unit.replica.known
        assert (known.host, known.name) == (_identity("gamma"), "gamma"), "in the place of beta"
        async with site.mounted("beta", "alpha") as beta:
            await assert_replaced(beta, "alpha")
        async with site.mounted("gamma", "alpha") as gamma:
            await normal(alpha, gamma)
            async with site.mounted("beta", "alpha") as beta:  # it remembers
                await assert_replaced(beta, "alpha")
                await put(gamma, b"new")
            assert status(alpha)["peer"]["connected"]
            assert alpha.settings.peer == "gamma:7000"
            await alpha.succession.switch()
            await normal(alpha, gamma)
            for host in (alpha, gamma):
                await assert_has(host, b"both", b"alone", b"new")


@pytest.mark.expects_warnings
@pytest.mark.parametrize("site", [True], indirect=True)
@pytest.mark.parametrize("certificate", ["nonsense", "\ud800", ""])
async def test_who_has_no_certificate_is_not_invited_and_the_peer_stays(site: Site, certificate: str) -> None:
    keyring = site.directory / "keys-alpha" / "peer.pem"
    before = keyring.read_bytes()
    async with site.mounted("alpha", "beta") as alpha:
        await alone(alpha)
        with pytest.raises(BadKeys):
            await alpha.invite(Invite(_identity("gamma"), "gamma", certificate, "gamma:7000", 1))
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
    assert keyring.read_bytes() == before, "or the next mount would be refused"


@pytest.mark.expects_warnings
@pytest.mark.parametrize("site", [True], indirect=True)
async def test_a_keyring_that_cannot_be_changed_is_no_failure_of_the_volume(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a disk of its own; and what is no text in it is no bug."""
    replaced = site.directory / "keys-alpha" / "replaced.pem"
    async with site.mounted("alpha", "beta") as alpha:
        await alone(alpha)
        replaced.write_bytes(b"\xff")
        with pytest.raises(BadKeys, match="keys-alpha"):
            await site.invite_only(alpha, "gamma")
        replaced.unlink()
        replaced.mkdir()
        with pytest.raises(BadKeys, match="keys-alpha"):
            await site.invite_only(alpha, "gamma")
        monkeypatch.setattr("fusemirror.channel.renewal.prepare_next", _fail)
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            with pytest.raises(BadKeys, match="keys-alpha"):
                await alpha.renew_keys()


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.expects_warnings
async def test_a_lost_primary_is_replaced_after_a_takeover_and_what_it_did_alone_is_not_merged(
    site: Site,
) -> None:
    async with site.mounted("beta", "alpha") as beta:
        async with site.mounted("alpha", "beta") as alpha:
            await normal(alpha, beta)
            await put(alpha, b"both")
        with pytest.raises(RefusedForSafety, match="fusemirror takeover"):
            await site.invite_only(beta, "gamma")
        await beta.unit.host.links.ended.wait()
        await beta.succession.takeover(force=False)
        site.memory.cut("alpha", "beta")
        async with site.mounted("alpha", "beta") as alpha:
            await alone(alpha)
            await put(alpha, b"apart")
        await alone(beta)
        await put(beta, b"after")
        await site.invite(beta, "gamma")
        site.memory.heal("alpha", "beta")
        async with site.mounted("gamma", "beta") as gamma, site.mounted("alpha", "beta") as alpha:
            await normal(beta, gamma)
            await assert_replaced(alpha, "beta")
            for host in (beta, gamma):
                await assert_has(host, b"both", b"after")


async def test_nobody_is_invited_while_the_peer_may_be_at_work(site: Site) -> None:
    async with site.mounted("alpha", "beta") as alpha:
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            with pytest.raises(RefusedForSafety, match="beta is connected"):
                await site.invite_only(alpha, "gamma")
            with pytest.raises(RefusedForSafety, match="this host is the backup"):
                await site.invite_only(beta, "gamma")
            alpha.roles.unit.link.close("cut")  # type: ignore[union-attr]
            with pytest.raises(RefusedForSafety, match=r"beta is connected|not go on alone yet"):
                await site.invite_only(alpha, "gamma")
            await normal(alpha, beta)
            await put(beta, b"still a pair")
        assert alpha.roles.volume.identity.pairing == 0


@pytest.mark.expects_warnings
async def test_a_newer_invitation_voids_the_last(site: Site) -> None:
    async with site.mounted("alpha", "beta") as alpha:
        await alone(alpha)
        await site.invite(alpha, "gamma")
        await site.invite(alpha, "delta")
        async with site.mounted("gamma", "alpha") as gamma, site.mounted("delta", "alpha") as delta:
            await normal(alpha, delta)
            await until(lambda: gamma.roles.volume.identity.only_peer.has_replaced_us)
            assert not gamma.roles.volume.identity.complete
            await put(delta, b"new")
            await assert_has(alpha, b"new")


@pytest.mark.expects_warnings
async def test_two_that_invited_others_do_not_believe_each_other(site: Site) -> None:
    """Each was made to go on, and to give the other up, while they were apart: neither may end the other."""
    async with site.mounted("alpha", "beta") as alpha, site.mounted("beta", "alpha") as beta:
        await normal(alpha, beta)
        site.memory.cut("alpha", "beta")
        await beta.unit.host.links.ended.wait()
        await beta.succession.takeover(force=False)
        for host in (alpha, beta):
            await alone(host)
        await site.invite_only(alpha, "gamma")
        await site.invite_only(beta, "delta")
        for host, peer in ((alpha, "beta"), (beta, "alpha")):
            host.linker.dialing.meet_at((Address(peer, 7000),))
            host.linker.absence.over()
        site.memory.heal("alpha", "beta")
        for host in (alpha, beta):
            await until(lambda host=host: "refused" in str(host.linker.last_error))  # type: ignore[misc]
            assert not host.roles.volume.identity.only_peer.has_replaced_us
            await put(host, b"goes on")


@pytest.mark.expects_warnings
async def test_what_the_lost_host_had_reserved_is_free_for_the_pair_that_follows(site: Site) -> None:
    async with site.mounted("alpha", "beta") as alpha:
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            file = await put(alpha, b"file")
            await beta.management.reserve(file, b"file", preempt=False)
        await alone(alpha)
        await site.invite(alpha, "gamma")
        async with site.mounted("gamma", "alpha") as gamma:
            await normal(alpha, gamma)
            await until(lambda: not reservations(alpha.roles.host))
            await gamma.roles.perform(Write(file, 0), b"file")
            await alpha.roles.perform(Write(file, 0), b"file")
