"""Roles: the control unit that stays, whichever role this host has.

What stands above (the kernel's face, the admin socket, a simulation) asks here, and each request goes to
the unit of the present role. When the role changes, the old unit ends with `RoleChanged` for everyone
who waits in it, a unit of the other role takes its place over the same volume, and the request is made
anew: programs wait, and none of them hears of it. What a program asked as the backup's and has no answer
yet, the new primary carries out itself, once. Source: seed [0082].
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.unit import ControlUnit, RoleChange
from fusemirror.divergence.listing import DivergentChanges, fork_point
from fusemirror.divergence.publishing import Publishing
from fusemirror.divergence.quarantine import quarantine_files
from fusemirror.divergence.report import report
from fusemirror.errors import (
    FusemirrorError,
    HistoriesDiverged,
    OperationFailed,
    RefusedForSafety,
    RoleChanged,
    TimedOut,
    UsageError,
)
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import CUT_SHORT_BYTES
from fusemirror.mirror.histories import Step, claim_of, generations_of, meet, term_row
from fusemirror.operations import AnyOperation, Key
from fusemirror.printable import counted
from fusemirror.promise import Promise, check_task
from fusemirror.protocol.messages import DiskSpace, Hello
from fusemirror.settings import Access, Settings
from fusemirror.volume.health import disk_error
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.witness.permission import Permission

log = logging.getLogger(__name__)


class Meeting(Protocol):
    """What makes the links to the peer: a `Linker`, whose page says what these do."""

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def meet_anew(self, reason: str) -> None: ...


class Roles(ControlUnit):
    """See the module. `unit` is that of the present role.

    `make_unit` builds one for the role that the volume's identity says; `meeting` makes its links.
    """

    def __init__(
        self,
        volume: Volume,
        make_unit: Callable[[], ControlUnit],
        meeting: Meeting,
        settings: Settings,
        permission: Permission | None = None,
        renewal: Renewal | None = None,
    ) -> None:
        super().__init__(volume)
        self.renewal = renewal or Renewal()
        self._make_unit = make_unit
        self._meeting = meeting
        self.publishing = Publishing(self)
        self.exchange.is_diverged = self._is_diverged
        self._parked: trio.Event | None = None
        self._succession = trio.Event()  # set when there is another unit
        self._settings = settings
        self._permission = permission or Permission()
        self.unit = make_unit()
        self.unit.inherit(self)
        self.unit.configure(settings)

    # --- requests: to the present unit, and anew to the next one ----------------------------------------

    async def showable(self, key: Key) -> None:
        while True:
            unit = self.unit if self._parked is None else await self._unparked()
            try:
                return await unit.showable(key)
            except RoleChanged:
                await self._succeeded(unit)

    def shows_at_once(self, inode: InodeNumber) -> bool:
        return self._parked is None and self.unit.shows_at_once(inode)

    def cacheable_s(self, key: Key) -> float:
        return self.unit.cacheable_s(key) if self._parked is None else 0.0

    def want_lease(self, directory: InodeNumber) -> None:
        if self._parked is None:
            self.unit.want_lease(directory)

    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        await self._anew(lambda unit: unit.free_directory(directory, of_change=of_change))

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        while True:
            unit = self.unit if self._parked is None else await self._unparked()
            try:
                return await unit.read(inode, offset, length)
            except RoleChanged:
                await self._succeeded(unit)

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        place: int = await self._anew(lambda unit: unit.seek(inode, offset, data=data))
        return place

    def allocated_bytes(self, inode: Inode) -> int:
        return self.unit.allocated_bytes(inode)

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        stepwise = operation.stepwise
        if stepwise is not None:
            return await self._perform_in_steps(operation, *stepwise)
        return await self._perform(operation, data)

    def writes_at_once(self, data_bytes: int) -> bool:
        return self._parked is None and self.unit.writes_at_once(data_bytes)

    async def _perform_in_steps(self, operation: AnyOperation, start: int, end: int) -> Inode | None:
        """`perform`, so that no step takes either host long.

        A file that lies in very many places needs several, each a change of its own, that others see.
        """
        number = operation.image
        before = self.volume.catalog.inode(number)
        if before is None or min(before.size, end) - start <= CUT_SHORT_BYTES or not before.is_regular:
            return await self._perform(operation)
        try:
            points = await self.volume.step_points(number, start, end)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error

        def size_now() -> int:
            now = self.volume.catalog.inode(number)
            return 0 if now is None else now.size

        done = None
        for step in operation.steps(points, size_now):
            done = await self._perform(step)
        return done

    async def _perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        while True:
            unit = self.unit if self._parked is None else await self._unparked()
            try:
                return await unit.perform(operation, data)
            except RoleChanged:
                await self._succeeded(unit)

    async def _anew(self, ask: Callable[[ControlUnit], Awaitable[Any]]) -> Any:
        while True:
            unit = self.unit if self._parked is None else await self._unparked()
            try:
                return await ask(unit)
            except RoleChanged:
                await self._succeeded(unit)

    async def _unparked(self) -> ControlUnit:
        check_task()
        while self._parked is not None:
            await self._parked.wait()
        return self.unit

    async def _succeeded(self, unit: ControlUnit) -> None:
        check_task()
        while self.unit is unit and unit.retired:
            await self._succession.wait()

    async def flush(self, inode: InodeNumber) -> None:
        await self._anew(lambda unit: unit.flush(inode))

    async def settle(self, inode: InodeNumber) -> None:
        await self._anew(lambda unit: unit.settle(inode))

    @property
    def is_linked(self) -> bool:
        return self.unit.is_linked

    @property
    def peer_disk(self) -> DiskSpace | None:
        return self.unit.peer_disk

    def shown(self, inode: Inode) -> Inode:
        return self.unit.shown(inode)

    def modes_in_effect(self) -> dict[str, str]:
        return self.unit.modes_in_effect()

    def configure(self, settings: Settings) -> None:
        self._settings = settings
        self.unit.configure(settings)

    async def verify(self, keep: str = "") -> None:
        await self._anew(lambda unit: unit.verify(keep))

    async def verify_report(self) -> dict[str, Any]:
        report: dict[str, Any] = await self._anew(lambda unit: unit.verify_report())
        return report

    async def wait_connected(self) -> None:
        await self._anew(lambda unit: unit.wait_connected())

    async def wait_normal(self) -> None:
        await self._anew(lambda unit: unit.wait_normal())

    async def wait_drained(self) -> None:
        await self._anew(lambda unit: unit.wait_drained())

    async def wait_safe(self) -> None:
        await self._anew(lambda unit: unit.wait_safe())

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        await self._anew(lambda unit: unit.change_pace(rate_bytes=rate_bytes, paused=paused))

    @property
    def access(self) -> Access:
        return self.unit.access

    async def change_access(self, access: Access) -> None:
        await self._anew(lambda unit: unit.change_access(access))

    async def stop(self, reason: str) -> None:
        await self.unit.stop(reason)

    def status(self) -> dict[str, Any]:
        return self.unit.status()

    async def run_link(self, link: Link) -> None:
        raise AssertionError("the unit of the present role serves links")

    def _show_diverged(self, reason: str) -> None:
        raise AssertionError("the unit of the present role is met")

    # --- changes of the role ------------------------------------------------------------------------------

    def met_same_role(self, peer: Hello) -> bool:
        """A peer was met that has the same role as this host: one of the two acts. Whether only a person
        can say which."""
        step = meet(claim_of(self.volume), peer.claim)
        self.unit.meet_peer(peer, step)
        return step is Step.DIVERGED

    async def switch(self) -> None:
        """Exchange the roles with the peer. On return both hosts have their new ones, and are normal.

        RefusedForSafety unless the mirror state is normal, HistoriesDiverged, TimedOut: then nothing has
        changed, or TimedOut says that the roles have, and why the hosts have not met since.
        """
        unit = self.unit
        self._check_not_diverged()
        if isinstance(unit, PrimaryUnit):
            change = RoleChange("backup", "asked for", hand_over=True)
            unit.role_change.resolve(change)
            await change.done.wait()
        elif isinstance(unit, BackupUnit):
            try:
                await unit.ask_to_switch()
            except RoleChanged:
                await self._succeeded(unit)
        await self._normal_after_switch()

    async def _normal_after_switch(self) -> None:
        io_timeout_s = self._settings.io_timeout
        with trio.move_on_after(io_timeout_s):
            await self.wait_normal()
            return
        why = self.unit.status()["reason"] or "the images are being compared"
        raise TimedOut(io_timeout_s, f"the roles are exchanged, but the mirror is not normal: {why}")

    def takeover_report(self) -> dict[str, Any]:
        """What a take-over would lose, and why it would be refused without force, or None."""
        identity, unit = self.volume.identity, self.unit
        status = unit.status()
        reason = None
        if self.volume.health.replaced:
            reason = self.volume.health.failure
        elif unit.link is not None:
            reason = "the primary is connected; use `fusemirror switch` to exchange the roles"
        elif not (identity.complete and identity.consistent):
            reason = "this copy is not consistent: it was being brought up to date when the primary went away"
        elif identity.compare_all:
            reason = "this copy was not compared with the primary's since a power cut or a repair"
        return {
            "role": status["role"],
            "refused": reason,
            "last_contact_seconds": unit.last_contact_seconds(),
            "pending_requests": status["communication"]["pending_requests"],
            "pending_bytes": status["communication"]["pending_bytes"],
            "out_of_sync": status["out_of_sync"],
            "change": status["change"],
        }

    async def takeover(self, *, force: bool) -> None:
        """Become the primary without the other host; where this is the primary already, only `force` does
        anything: it then goes on alone whatever the witness says.

        What the primary had acknowledged and this host does not have gives way when it comes back.
        HostReplaced, DiskStopped where this host serves nothing any more, whatever is forced.
        RefusedForSafety unless forced, where this copy is not consistent, the primary is connected, or there
        is a witness and it does not permit this. `GoingAlone` calls this as a person does.
        """
        unit = self.unit
        unit.check_disk()
        if isinstance(unit, PrimaryUnit):
            if force and unit.mirror.wants_permission:
                self._permission.overridden = True
                unit.mirror.permission_changed()
            return
        if force:
            self._permission.overridden = True
        if self._permission.needed and not self._permission.granted and not await self._permission.ask():
            why = self._permission.reason or "the witness has not been heard"
            raise RefusedForSafety(f"{why}; --force takes over all the same")
        unit = self.unit
        if isinstance(unit, PrimaryUnit):
            return
        reason = self.takeover_report()["refused"]
        if reason is not None and not force:
            raise RefusedForSafety(f"{reason}; --force takes over all the same")
        term = self.volume.identity.term + 1
        change = RoleChange("primary", "taken over", term, alone=True)
        unit.role_change.resolve(change)
        await change.done.wait()

    async def wait_alone(self) -> None:
        """Return when this host, a primary, goes on alone, or has met the peer, or after `io_timeout`."""
        unit = self.unit
        with trio.move_on_after(self._settings.io_timeout):
            while isinstance(unit, PrimaryUnit) and not unit.retired:
                if unit.link is not None or unit.mirror.acknowledges_alone:
                    return
                await unit.mirror.changed.wait()

    def check_may_invite(self) -> None:
        """Whether another host may be invited in the peer's place; RefusedForSafety, HostReplaced.

        Only where this host's copy is the one that stays, and the peer can neither change nor read anything.
        """
        unit = self.unit
        unit.check_disk()
        peer = self.volume.identity.peer_name
        if not isinstance(unit, PrimaryUnit):
            raise RefusedForSafety(
                "this host is the backup; if the primary is lost for good, let this host take over first, "
                "with `fusemirror takeover NAME`"
            )
        if unit.link is not None or unit.exchange.connected:
            raise RefusedForSafety(
                f"{peer} is connected; unmount it there first, if another host is to replace it"
            )
        if not unit.mirror.acknowledges_alone:
            why = unit.mirror.told_reason or "the other host may still read under its lease"
            raise RefusedForSafety(f"this host does not go on alone yet: {why}; try again in a moment")

    def take_peer(self, peer: str, peer_name: str, pairing: int) -> None:
        """From now on `peer` (its identity, in hexadecimal) is the other host. Durable on return. OSError."""
        term = self.volume.identity.term + 1
        self.volume.update_identity(
            peer=peer, peer_name=peer_name, pairing=pairing, term=term, peer_file_bytes_max=0
        )
        for unit in (self, self.unit):
            unit.peer_identity, unit.met = bytes.fromhex(peer), None

    def _is_diverged(self) -> bool:
        return bool(self.unit.status()["mirror_state"] == "diverged")

    async def conflicts(self) -> dict[str, Any]:
        """What each host changed since the fork point, while the histories differ, and the published files.

        The other host is asked, for `io_timeout` at most.
        """
        exchange = self.exchange if self._is_diverged() else None
        return await report(self.volume, exchange, self._settings.io_timeout)

    def resolve(self, keep: str) -> str:
        """Record durably whose copy stays; the other host yields when they meet, at once where it is there.

        UsageError unless `keep` names one of the hosts. What was done, for people.
        """
        identity, unit = self.volume.identity, self.unit
        hosts = {identity.peer_name: identity.peer, identity.host_name: identity.host}
        if keep not in hosts:
            raise UsageError(f"`{keep}` is neither host; it is {' or '.join(sorted(hosts))}")
        diverged = unit.status()["mirror_state"] == "diverged"
        if not diverged and unit.link is not None:
            return "there is no split brain; nothing is to be done"
        generations = generations_of(self.volume)
        at = generations[0].identity.hex() if generations else ""
        if (identity.keep, identity.keep_at) != (hosts[keep], at):
            term = max(identity.term, 0 if unit.met is None else unit.met.term) + 1
            self.volume.update_identity(keep=hosts[keep], keep_at=at, term=term)
        self._meeting.meet_anew("a person has chosen a copy")
        return f"the copy of {keep} stays; the other host's changes go to quarantine when the hosts meet"

    def _check_not_diverged(self) -> None:
        status = self.unit.status()
        if status["mirror_state"] == "diverged":
            raise HistoriesDiverged(status["reason"])

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve in one role after the other, for ever. Cancellation leaves the volume as it is."""
        is_first = True
        while True:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.unit.run, links)
                if is_first:
                    task_status.started()
                    is_first = False
                change = await self._next_change()
                nursery.cancel_scope.cancel()
            await self._change(change)

    async def _next_change(self) -> RoleChange:
        """The change that is to be made now. One that could not be prepared is answered, and not made."""
        unit = self.unit
        while True:
            change = await unit.role_change.wait()
            unit.role_change = Promise()
            try:
                if change.hand_over:
                    await self._hand_over(change)
                elif change.quarantines:
                    self._park()
                    await self._quarantine(unit)
                self._make_durable(change)
                return change
            except (FusemirrorError, OSError) as error:
                log.info("the role stays as it is: %s", error)
                told = disk_error(self.volume.directory, error) if isinstance(error, OSError) else error
                change.done.reject(told)
                self._meeting.go_on()
                unit.resume()
                self._tell_succession()
                self._unpark()

    async def _quarantine(self, unit: ControlUnit) -> None:
        """Copy what was changed here since the fork point; nothing is changed meanwhile. OSError: nothing is
        in quarantine."""
        unit.suspend()
        first = fork_point(self.volume, None if unit.met is None else unit.met.history)
        files = await DivergentChanges(self.volume, first).files()
        count = await quarantine_files(self.volume, files)
        log.info("in quarantine: %s changed here", counted(count, "file"))

    async def _hand_over(self, change: RoleChange) -> None:
        unit = self.unit
        if not isinstance(unit, PrimaryUnit):
            raise RefusedForSafety("this host is not the primary any more")
        await unit.prepare_hand_over()
        self._park()
        self._meeting.hold()  # or the unit of the old role would get a link of the new one
        await unit.hand_over()

    def _park(self) -> None:
        """Whoever asks from now on waits."""
        if self._parked is None:
            self._parked = trio.Event()

    def _unpark(self) -> None:
        if self._parked is not None:
            self._parked.set()
            self._parked = None

    def _tell_succession(self) -> None:
        succession, self._succession = self._succession, trio.Event()
        succession.set()

    async def _change(self, change: RoleChange) -> None:
        """Put a unit of the other role in the place of the present one. No task serves either meanwhile."""
        before = self.unit
        if self.volume.copying and change.role == "primary":
            try:
                self.volume.abandon_catalog_copy()
            except (FusemirrorError, OSError) as error:
                self._stop_serving(error)
        before.retire(change.known)
        self._meeting.meet_anew("the roles changed")
        self.unit = self._make_unit()
        self.unit.inherit(before)
        self.unit.configure(self._settings)
        if isinstance(self.unit, PrimaryUnit) and not self.volume.copying:
            try:
                self._begin_as_primary(self.unit, change)
            except (FusemirrorError, OSError) as error:
                self._stop_serving(error)
        log.info("this host is the %s now: %s", change.role, change.reason)
        self._tell_succession()
        self._unpark()
        change.done.resolve(None)
        if change.quarantines:
            self.publishing.wanted.set()

    def _stop_serving(self, error: FusemirrorError | OSError) -> None:
        """The role is this host's all the same: it serves it once it is mounted again."""
        log.error("the role was taken, and the disk does not take the record of it: %s", error)
        self.volume.health.fail(str(error))

    def _make_durable(self, change: RoleChange) -> None:
        """The one step that counts: a crash before leaves the old role, a crash after it the new one."""
        identity = self.volume.identity
        if change.role == "primary":
            self.volume.update_identity(
                role="primary",
                term=change.term,
                handed_over=False,
                complete=True,
                consistent=True,
                # What was said and known when this host last was the primary:
                resync_paused=False,
                held_below=None,
            )
        elif not change.hand_over:  # else it was durable before the other host heard of it
            complete = identity.complete and not change.quarantines
            self.volume.update_identity(role="backup", term=change.term, handed_over=True, complete=complete)

    def _kernel_forgets_at(self) -> float:
        """When the kernel of the other host has let go of what its process, now gone, had told it."""
        lost_at = self.unit.link_lost_at
        return (trio.current_time() if lost_at is None else lost_at) + self._settings.peer_timeout

    def _begin_as_primary(self, unit: PrimaryUnit, change: RoleChange) -> None:
        if change.alone:
            unit.go_alone(self._kernel_forgets_at())
        else:
            # From here on this host is ahead, whatever the records of the two journals are.
            unit.mirror.record((term_row(change.term),))
