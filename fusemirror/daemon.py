"""The mount process: builds the parts, joins them, and starts and stops them in order.

Each thing built is followed by its undoing, so the end is the beginning read backwards: the kernel's
requests end first, what is under way drains, the peer hears goodbye, the volume closes last.
"""

import logging
import os
import select
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyfuse3
import trio

from fusemirror import __version__, hot
from fusemirror.admin.client import socket_path
from fusemirror.admin.requests import Invite
from fusemirror.admin.server import AdminServer
from fusemirror.admin.snapshot import Mounted, snapshot
from fusemirror.channel.keyring import finish, normal
from fusemirror.channel.link import Encounters, Link, Linker
from fusemirror.channel.renewal import Renewal
from fusemirror.channel.session import Session as PeerSession
from fusemirror.channel.tls import Credentials, TlsNetwork
from fusemirror.channel.transport import Network, TcpNetwork
from fusemirror.communication.opening import open_communication
from fusemirror.control.backup import BackupUnit
from fusemirror.control.failover import Failover
from fusemirror.control.host_state import HostState
from fusemirror.control.management import Management
from fusemirror.control.present_role import PresentRole
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.role import Role
from fusemirror.control.succession import Succession
from fusemirror.control.unit import ControlUnit
from fusemirror.divergence.publishing import Publishing
from fusemirror.errors import (
    BadKeys,
    DiskFailed,
    FusemirrorError,
    MountFailed,
    PeerUnreachable,
    RefusedForSafety,
    TimedOut,
    VolumeDamaged,
)
from fusemirror.filesystem.access_times import AccessTimes
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.server import OperationsServer
from fusemirror.identifiers import ROOT_INODE
from fusemirror.kernel.negotiation import fuse_descriptor, run_negotiation
from fusemirror.kernel.session import FuseSession
from fusemirror.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, REQUESTS_IDLE, REQUESTS_MAX
from fusemirror.mirror.histories import history_of
from fusemirror.mirror.states import MirrorWord
from fusemirror.protocol.connection import shown
from fusemirror.protocol.messages import TAKEN, Hello
from fusemirror.seams import Seams
from fusemirror.settings import (
    FIXED_WHILE_MOUNTED,
    Access,
    KernelSession,
    MountOptions,
    Settings,
    changed_while_mounted,
    is_host_name,
    joined,
    taken_while_mounted,
)
from fusemirror.syncs import begin_sync
from fusemirror.volume.paths import name_of_directory
from fusemirror.volume.volume import Volume
from fusemirror.witness.interface import Witness
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)

_INSTANCE_BYTES = 8


class Host:
    """One host's control unit with its volume and its link to the peer: everything but the kernel.

    A mount and a simulation build the same.
    """

    def __init__(
        self,
        settings: Settings,
        network: Network,
        seams: Seams,
        witness_of: Callable[[str], Witness] | None = None,
        keys: Path | None = None,
        keep: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> None:
        """`witness_of` gives the witness's record of a name; none is asked without it. `keys`: the keyring of
        the network, where it has one. `keep` puts values into the config file: OSError, ValueError."""
        self.settings = settings
        self.instance = seams.random_bytes(_INSTANCE_BYTES)
        self.seams = seams
        self._network = network
        self._witness_of = witness_of
        self._keys = keys if settings.tls else None
        self._keep = keep
        self._setting = trio.Lock()
        self.quorum = QuorumGrant()
        self.takes_locks = True
        """This host's kernel asks for locks (`coherence/locks.py`)."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the volume and begin to meet the peer; the stack undoes it."""
        settings = self.settings
        volume = Volume.open(Path(settings.volume), self.seams)
        stack.callback(volume.close)
        _check_servable(volume)
        if settings.host_name:
            volume.update_identity(host_name=settings.host_name)
        self._communication = open_communication(settings, volume, self.seams)
        stack.callback(self._communication.close)
        self.linker = Linker(
            self._network,
            settings.listen_addresses,
            settings.peer_addresses,
            self.make_hello,
            settings.peer_timeout,
            settings.path_timeout,
            self.seams.random_bytes,
        )
        if self._witness_of is not None:
            identity = volume.identity
            witness = self._witness_of(_record_name(identity.filesystem, identity.pairing))
            self.quorum = QuorumGrant(witness, identity.host, settings.peer_timeout)
        renewal = Renewal(self._keys, volume.identity.host_name, self.seams.run_blocking, self._use_keys)
        state = HostState(volume, self.instance, renewal, self._is_diverged, settings.access)
        present = PresentRole(self._make_role(state))
        self.roles = ControlUnit(present)
        self.management = Management(self.roles)
        publishing = Publishing(self.roles)
        self.succession = Succession(present, self._make_role, self.linker, settings, self.quorum, publishing)
        failover = Failover(self.succession, state, self.quorum, settings.peer_timeout, self.linker.meet_anew)
        if volume.identity.only_peer.has_replaced_us:
            self.be_replaced()
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        send, receive = trio.open_memory_channel[Link](1)
        start = state.background.start
        await nursery.start(start, "staging", self._communication.run)
        await nursery.start(self.succession.run, receive)
        await nursery.start(start, "quarantine", publishing.run)
        await nursery.start(start, "divergent changes", state.exchange.run)
        await nursery.start(start, "witness", failover.run)
        await nursery.start(start, "keys", renewal.run)
        links = partial(self.linker.run, send, state.background, _HostEncounters(self))
        await nursery.start(start, "access", self._follow_access)
        await nursery.start(start, "links", links)
        nursery.start_soon(self._stop_serving_when_the_disk_fails)

    async def _stop_serving_when_the_disk_fails(self) -> None:
        """Then programs get check reports, and the peer carries on, until a person mounts again."""
        health = self.roles.volume.health
        await health.failed.wait()
        failed = DiskFailed(self.settings.volume, health.failure)
        log.error("%s", health.failure if health.replaced else failed)
        self.linker.retire()
        with trio.move_on_after(self.settings.io_timeout):
            await self.unit.host.links.say_goodbye(f"its disk failed: {health.failure}", mounted=True)
        if self.unit.link is not None:
            self.unit.link.close("the disk failed")

    @property
    def unit(self) -> Role:
        """The unit of the present role."""
        return self.roles.unit

    @property
    def renewal(self) -> Renewal:
        """Of this host's keys."""
        return self.roles.host.news.renewal

    def _is_diverged(self) -> bool:
        return self.unit.word is MirrorWord.DIVERGED

    def _make_role(self, host: HostState) -> Role:
        settings = self.settings
        if host.volume.identity.role == "primary":
            return PrimaryUnit(
                host,
                self.seams,
                peer_timeout_s=settings.peer_timeout,
                io_timeout_s=settings.io_timeout,
                fence=settings.fence,
                resync_rate=settings.resync_rate,
                quorum=self.quorum,
                staged=self._communication,
            )
        return BackupUnit(
            host,
            self._communication,
            io_timeout_s=settings.io_timeout,
            stale_reads=settings.stale_reads,
            may_take_over=self.quorum.needed,
        )

    def be_replaced(self) -> None:
        """The peer has another host in this one's place: serve nothing any more, after a restart neither."""
        volume = self.roles.volume
        volume.health.replace(volume.identity.only_peer.name)
        try:
            volume.update_peer(volume.identity.only_peer, has_replaced_us=True)
        except (OSError, FusemirrorError) as error:
            log.error("the disk does not take the record that this host was replaced: %s", error)

    async def invite(self, invitation: Invite) -> None:
        """Let another host, which is yet to join, take the place of the peer, which is refused from now on.

        Durable on return; a crash meanwhile leaves the peer refused, or everything as it was.
        `RefusedForSafety` where the peer may still be at work, `BadKeys` where the keys cannot be so.
        """
        succession, volume = self.succession, self.roles.volume
        await succession.wait_alone()  # for a moment after a takeover, or after the peer was lost
        succession.check_may_invite()
        identity = volume.identity
        if invitation.pairing != identity.pairing + 1:
            raise RefusedForSafety("another invitation was made at the same time; try again")
        self.linker.hold()
        try:
            if self._witness_of is not None:
                record = self._witness_of(_record_name(identity.filesystem, invitation.pairing))
                if not await self.quorum.move(record):
                    raise RefusedForSafety(
                        f"the witness does not let this host go on alone: {self.quorum.reason}; "
                        "`fusemirror takeover NAME --force` goes on all the same"
                    )
            if self._keys is not None:
                await self._replace_peer(self._keys, invitation.certificate)
            succession.check_may_invite()
            succession.take_peer(invitation.peer, invitation.peer_name, invitation.pairing)
        except BaseException:
            self.linker.go_on()
            raise
        self.settings = msgspec.structs.replace(self.settings, peer=invitation.address)
        self.linker.dialing.meet_at(self.settings.peer_addresses)
        self.linker.meet_anew("another host was invited in the place of the peer")
        log.info("%s is refused from now on: %s is invited", identity.only_peer.name, invitation.peer_name)

    async def _replace_peer(self, keys: Path, certificate: str) -> None:
        """In the keyring. BadKeys: and nothing was changed, where it is no certificate."""
        try:
            normal(certificate)  # first: with one that is none this host could not be mounted again
            await self.renewal.replace_peer(certificate)
        except (OSError, ValueError) as error:
            raise BadKeys(keys, str(error)) from error

    def _use_keys(self) -> None:
        """What the keyring holds now is for the connections from now on. BadKeys."""
        if self._keys is not None and isinstance(self._network, TlsNetwork):
            self._network.credentials = Credentials(self._keys)

    def keys_status(self) -> dict[str, Any] | None:
        """The field `keys` of the status; None where there are none."""
        return {"renewing": self.renewal.is_under_way} if self.renewal.is_possible else None

    async def renew_keys(self) -> None:
        """Return when both hosts have new keys, and refuse the old ones. `RefusedForSafety`, and nothing was
        begun, where they cannot get any; `TimedOut`: old and new ones count, and it goes on by itself."""
        if not self.renewal.is_possible:
            raise RefusedForSafety(
                "there are no keys: `tls = false` is set; see KEYS BY HAND in fusemirror-tasks(7)"
            )
        link = self.unit.link
        if link is None or link.closed:
            raise PeerUnreachable(
                joined(self.settings.peer),
                "both hosts get new keys at the same time, so both must be there",
            )
        if not link.peer.takes_keys:
            raise RefusedForSafety(
                f"the other host has version {shown(link.peer.version)}, which takes no new keys; upgrade it "
                "first, or see KEYS BY HAND in fusemirror-tasks(7)"
            )
        with trio.move_on_after(self.settings.io_timeout):
            try:
                await self.renewal.renew()
            except OSError as error:
                raise BadKeys(self._keys, str(error)) from error
            return
        raise TimedOut(
            self.settings.io_timeout,
            "the other host has not confirmed its new keys yet; old and new ones count until it has, and it "
            "needs no other command for that; see `fusemirror status`",
        )

    async def set(self, values: dict[str, Any]) -> None:
        """`change_settings` for a person who set them; on return both hosts go by the access.

        `PeerUnreachable`, `PrimaryUnreachable`: this host is the backup, and the primary decides that.
        """
        async with self._setting:
            access = changed_while_mounted(self.settings, values).access
            if access is not self.unit.access:
                if not self.unit.is_primary and self.unit.link is None:
                    why = "access changes on both hosts, and the primary decides it"
                    raise PeerUnreachable(joined(self.settings.peer), why)
                await self.management.change_access(access)
            self.change_settings(values)

    async def _follow_access(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What a person set on the other host is a setting of this one too, for the next mount as well."""
        task_status.started()
        access = self.roles.host.access
        while True:
            changed = access.changed
            async with self._setting:  # what is set here meanwhile is in the file already
                if self.settings.access is not access.in_effect:
                    await self._keep_access(access.in_effect)
            await changed.wait()

    async def _keep_access(self, access: Access) -> None:
        self.settings = msgspec.structs.replace(self.settings, access=access)
        log.info("access = %s, as the other host has it, is set on this host too", access)
        try:
            await self.seams.run_blocking(self._keep, {"access": str(access)})
        except (OSError, ValueError) as error:  # ValueError: the file is no TOML at the moment
            log.warning(
                "access = %s is in effect, and the settings cannot be written: %s; run `fusemirror set %s "
                "access=%s` here, or the next mount as the primary takes it back",
                access,
                error,
                self.settings.name,
                access,
            )

    def change_settings(self, values: dict[str, Any]) -> None:
        """Take other values from now on; UsageError, and nothing changes, for what only a mount can take.

        The access in effect stays: it is the pair's (`set`).
        """
        self.settings = changed_while_mounted(self.settings, values)
        self.succession.configure(self.settings)
        self.linker.dialing.meet_at(self.settings.peer_addresses)
        if "log_level" in values:
            logging.getLogger().setLevel(self.settings.log_level.upper())
        log.info("settings changed: %s", ", ".join(f"{key} = {value}" for key, value in values.items()))

    def make_hello(self, path: str) -> Hello:
        volume = self.roles.volume
        identity = volume.identity
        exclusive = self.roles.host.access.in_effect is Access.EXCLUSIVE
        taken = TAKEN | {
            "takes_locks": self.takes_locks,
            "takes_keys": self._keys is not None,
            "takes_allocations": volume.images.disk.takes_allocations,
        }
        return Hello(
            protocol=PROTOCOL_VERSION,
            protocol_min=PROTOCOL_VERSION_MIN,
            clock_ns=self.seams.now_ns(),
            path=path,
            filesystem=bytes.fromhex(identity.filesystem),
            host=bytes.fromhex(identity.host),
            peer=identity.only_peer.identity,
            instance=self.instance,
            role=identity.role,
            history=history_of(volume),
            version=__version__,
            peer_timeout_s=self.settings.peer_timeout,
            term=identity.term,
            handed_over=identity.handed_over,
            consistent=identity.consistent,
            keep=bytes.fromhex(identity.keep),
            keep_at=bytes.fromhex(identity.keep_at),
            host_name=identity.host_name,
            file_bytes_max=volume.images.disk.file_bytes_max,
            pairing=identity.pairing,
            witness_identity=self.quorum.identity,
            name=self.settings.name,
            witness=",".join(sorted(self.settings.witness_endpoints)),
            forgot_requests=identity.only_peer.forgot_requests,
            owes_writes=exclusive and self._communication.order.has_told,
            **taken,
        )

    async def drain(self, reason: str) -> None:
        """Let what is under way end, within `io_timeout`, and say goodbye to the peer."""
        with trio.move_on_after(self.settings.io_timeout) as limit:
            await self.management.wait_safe()
            self.linker.retire()
            await self.succession.stop(reason)
        if limit.cancelled_caught:
            log.warning("stopped before everything was drained: the peer did not answer in time")


class _HostEncounters(Encounters):
    """What a host does where it meets the peer and makes no link."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def met_same_role(self, peer: Hello) -> bool:
        return self._host.succession.met_same_role(peer)

    async def talk(self, session: PeerSession) -> None:
        await self._host.roles.host.exchange.run_over(session)

    def was_replaced(self) -> None:
        self._host.be_replaced()


def _record_name(filesystem: str, pairing: int) -> str:
    """Of the witness's record for the two hosts that are a pair. One that was replaced goes by another."""
    return f"{filesystem}/{pairing}" if pairing else filesystem


def _check_servable(volume: Volume) -> None:
    """VolumeDamaged where a volume could be opened, and nothing of it served, or put into quarantine;
    RefusedForSafety where it has more peers than one."""
    if len(volume.identity.peers) > 1:
        names = " and ".join(peer.name for peer in volume.identity.peers)
        raise RefusedForSafety(f"the peers of {volume.directory} are {names}; a mount mirrors to one")
    name = volume.identity.host_name
    if not is_host_name(name):
        raise VolumeDamaged(volume.directory, f"`{name}` is no name for a host")
    root = volume.catalog.inode(ROOT_INODE)
    if volume.identity.complete and (root is None or not root.is_directory):
        raise VolumeDamaged(volume.directory, "the root directory is missing")


def run(
    settings: Settings,
    keys: Path,
    mountpoint: str,
    options: MountOptions,
    runtime_dir: Path,
    ready: Callable[[], None],
    reread: Callable[[], Settings],
    keep: Callable[[dict[str, Any]], object],
) -> int:
    """Mount and serve until unmounted, signalled or told to stop; the exit status.

    `keys` is the directory of the keys. `ready` is called once the mount answers, `reread` reads the settings
    again where SIGHUP asks for it, `keep` puts values into their file. `MountFailed`, `BadKeys`, and the
    errors of the volume and the channel.
    """
    network: Network = TcpNetwork(unacknowledged_s=settings.peer_timeout)
    if settings.tls:
        try:
            finish(keys)
        except (OSError, ValueError) as error:
            raise BadKeys(keys, str(error)) from error
        network = TlsNetwork(network, Credentials(keys))
    try:
        return trio.run(
            _serve, settings, network, keys, mountpoint, options, runtime_dir, ready, reread, keep
        )
    except BaseExceptionGroup as group:
        raise _only_error(group) from group


def _only_error(group: BaseException) -> BaseException:
    """What a nursery packed into groups, if it is one error; else the group, which is a bug's."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group


async def _serve(
    settings: Settings,
    network: Network,
    keys: Path,
    mountpoint: str,
    options: MountOptions,
    runtime_dir: Path,
    ready: Callable[[], None],
    reread: Callable[[], Settings],
    keep: Callable[[dict[str, Any]], object],
) -> int:
    hot.install()
    async with AsyncExitStack() as stack:
        host = Host(settings, network, Seams(begin_sync=begin_sync), _witness_of(settings), keys, keep)
        host.takes_locks = options.session is KernelSession.FUSEMIRROR
        await host.open(stack)
        kernel = Kernel(mountpoint)
        volume = host.roles.volume
        cache = KernelCache(ending=volume.files.ending)
        cache.directories.look = kernel.look
        cache.directories.name_of = partial(name_of_directory, volume)
        volume.invalidator = cache
        names = host.roles.leases

        def kernel_cache() -> dict[str, int]:
            return {**cache.counters(), **names.counters()}

        mounted = Mounted(settings, mountpoint, os.getpid(), __version__, kernel_cache)
        access_times = AccessTimes(host.roles) if options.relatime else None
        on_bug = partial(kernel.stop, "a bug")
        operations = Operations(host.roles, cache, on_bug, access_times)

        def take_snapshot() -> dict[str, Any]:
            now = replace(mounted, settings=host.settings)
            status = snapshot(now, host.unit, host.linker, host.seams.now_ns)
            return {**status, "witness": host.quorum.status(), "keys": host.keys_status()}

        admin = AdminServer(
            host.management,
            take_snapshot,
            kernel.stop,
            host.succession,
            host.set,
            host.invite,
            host.renew_keys,
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        start, socket = host.roles.host.background.start, socket_path(runtime_dir, settings.name)
        await nursery.start(start, "admin socket", partial(admin.run, socket))
        await nursery.start(start, "kernel cache", cache.run)
        if access_times is not None:
            await nursery.start(start, "access times", access_times.run)
        kernel.mount(operations, options)
        stack.callback(kernel.unmount)
        own_session = options.session is KernelSession.FUSEMIRROR
        agreed = await run_negotiation(fuse_descriptor(), pyfuse3.main, own_session=own_session)
        cache.files.negotiated(maps_direct_io=agreed.maps_direct_io)
        waiting = select.poll()
        waiting.register(fuse_descriptor(), select.POLLIN)
        cache.pages.attach(lambda: bool(waiting.poll(0)))  # also once it is closed
        if own_session:
            server = OperationsServer(
                operations,
                host.seams.now_ns,
                on_bug,
                tells_of_privileges=agreed.tells_of_privileges,
            )
            kernel.session = FuseSession(fuse_descriptor(), server)
            if agreed.prunes:
                cache.letting_go.attach(kernel.session.pruning.prune)
        nursery.start_soon(kernel.run_signals)
        nursery.start_soon(_run_rereading, host, reread)
        try:
            await kernel.run(ready)
            log.info("unmounted: %s", kernel.reason)
        finally:  # in order also where the session made a mistake
            kernel.unmount()
            await host.drain(kernel.reason)
    return 0


async def _run_rereading(host: Host, reread: Callable[[], Settings]) -> None:
    """Each SIGHUP reads the settings again, and takes what a running mount can take of them.

    The log needs no more than the line that says so: a log file that was moved away is made anew with it.
    """
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                wanted = await trio.to_thread.run_sync(reread)
                values, fixed = taken_while_mounted(host.settings, wanted)
                if values:
                    await host.set(values)
            except (FusemirrorError, OSError) as error:
                log.error("SIGHUP: the settings stay as they are: %s", error)
                continue
            log.info("SIGHUP: the settings were read again")
            for key in fixed:
                log.warning("SIGHUP: %s is taken by the next mount: %s", key, FIXED_WHILE_MOUNTED[key])


def _witness_of(settings: Settings) -> Callable[[str], Witness] | None:
    """The witness of the settings, or None; `MountFailed` where what it takes is not installed."""
    endpoints = settings.witness_endpoints
    if not endpoints:
        return None
    try:
        from fusemirror.witness.etcd import Etcd  # only here, since few mounts have the library for it
    except ImportError as error:
        raise MountFailed(f"witness: {error}; install the package httpx, or take `witness` out") from error
    timeout_s = settings.peer_timeout / len(endpoints)
    return lambda filesystem: Etcd(endpoints, filesystem, timeout_s)


class Kernel:
    """The FUSE connection: mounted, served, stopped by whoever is first."""

    def __init__(self, mountpoint: str) -> None:
        self.reason = "umount"
        self.session: FuseSession | None = None
        """Our own session; without it pyfuse3's loop serves."""
        self._mountpoint = mountpoint
        self._mounted = False

    def look(self, path: bytes) -> int:
        """Look a path below the mountpoint up, as any program would; the inode number there. OSError."""
        return os.lstat(os.path.join(os.fsencode(self._mountpoint), path)).st_ino

    def mount(self, operations: Operations, options: MountOptions) -> None:
        try:
            pyfuse3.init(operations, self._mountpoint, set(options.fuse))
        except RuntimeError as error:
            raise MountFailed(f"{error} on {self._mountpoint}; see the lines above") from error
        self._mounted = True

    def unmount(self) -> None:
        """The mountpoint is free on return; programs that still have files open get errors."""
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)

    def stop(self, reason: str) -> None:
        """End `run`: requests under way are answered, no more are taken."""
        if self._mounted:
            self.reason = reason
            if self.session is None:
                pyfuse3.terminate()
            else:
                self.session.stop()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve the kernel until unmounted or stopped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_ready, ready)
            if self.session is None:
                await pyfuse3.main(min_tasks=REQUESTS_IDLE, max_tasks=REQUESTS_MAX)
            else:
                await self.session.run()
            nursery.cancel_scope.cancel()

    async def _tell_ready(self, ready: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(os.statvfs, self._mountpoint, abandon_on_cancel=True)
        ready()

    async def run_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                self.stop(signal.Signals(number).name)
