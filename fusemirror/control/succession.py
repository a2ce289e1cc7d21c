"""Succession: one role after the other, and what people ask about it: switch, takeover, resolve, invite.

A change of the role is prepared while the present one still serves, or stands still; made durable, which is
the one step that counts; and then a unit of the other role takes the place of the present one, over the same
volume. What fails before that step leaves the role as it is. Source: seed [0082].
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import trio

from fusemirror.channel.link import Link
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleChange
from fusemirror.control.present_role import PresentRole
from fusemirror.control.role import Role
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.divergence.listing import DivergentChanges, fork_point
from fusemirror.divergence.publishing import Publishing
from fusemirror.divergence.quarantine import quarantine_files
from fusemirror.divergence.report import report
from fusemirror.errors import (
    FusemirrorError,
    HistoriesDiverged,
    RefusedForSafety,
    RoleChanged,
    TimedOut,
    UsageError,
)
from fusemirror.mirror.histories import Action, claim_of, generations_of, meet
from fusemirror.mirror.states import MirrorWord
from fusemirror.printable import counted
from fusemirror.protocol.messages import Hello
from fusemirror.settings import Settings
from fusemirror.volume.health import disk_error
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)

MakeRole = Callable[[HostState], Role]
"""Makes the unit of the role that the volume's identity says."""


class Meeting(Protocol):
    """What makes the links to the peer: a `Linker`, whose page says what these do."""

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def meet_anew(self, reason: str) -> None: ...


class Succession:
    """See the module. `run` serves for ever; the rest may be called meanwhile."""

    def __init__(
        self,
        present: PresentRole,
        make_role: MakeRole,
        meeting: Meeting,
        settings: Settings,
        quorum: QuorumGrant,
        publishing: Publishing,
    ) -> None:
        self._present = present
        self._host = present.role.host
        self._volume = self._host.volume
        self._make_role = make_role
        self._meeting = meeting
        self._settings = settings
        self._quorum = quorum
        self._publishing = publishing
        present.role.configure(settings)

    @property
    def role(self) -> Role:
        """The present role."""
        return self._present.role

    def configure(self, settings: Settings) -> None:
        """From now on these settings hold, for this role and those to come."""
        self._settings = settings
        self.role.configure(settings)

    # --- one role after the other -------------------------------------------------------------------------

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
                await nursery.start(self.role.run, links)
                if is_first:
                    task_status.started()
                    is_first = False
                change = await self._next_change()
                nursery.cancel_scope.cancel()
            # All tasks of the old unit have ended here: one that still ran would decide beside the next unit.
            self._change(change)

    async def _next_change(self) -> RoleChange:
        """The change that is to be made now. One that could not be prepared is answered, and not made."""
        role = self.role
        while True:
            change = await role.life.next_change()
            try:
                if change.hand_over:
                    await role.prepare_hand_over()
                    self._meeting.hold()  # or the unit of the old role would get a link of the new one
                    await role.hand_over()
                elif change.quarantines:
                    await self._quarantine(role)
                self._make_durable(change)
                return change
            except (FusemirrorError, OSError) as error:
                log.info("the role stays as it is: %s", error)
                # Not made, so who waits for it must hear why, and what was parked is served by the unit that
                # is still here.
                told = disk_error(self._volume.directory, error) if isinstance(error, OSError) else error
                change.end(told)
                self._meeting.go_on()
                role.life.meet(RoleEvent.STAY)

    async def _quarantine(self, role: Role) -> None:
        """Copy what was changed here since the fork point; nothing is changed meanwhile. OSError: nothing is
        in quarantine."""
        role.life.meet(RoleEvent.SUSPEND)
        met = self._host.links.met
        # Suspended first: a change made behind the copy would be overwritten, and be in no quarantine (G6).
        first = fork_point(self._volume, None if met is None else met.history)
        files = await DivergentChanges(self._volume, first).files()
        count = await quarantine_files(self._volume, files)
        log.info("in quarantine: %s changed here", counted(count, "file"))

    def _make_durable(self, change: RoleChange) -> None:
        """The one step that counts: a crash before leaves the old role, a crash after it the new one."""
        identity = self._volume.identity
        if change.role == "primary":
            self._volume.update_identity(
                # From here on the other host is made equal to this copy, whatever this one lacked.
                role="primary",
                term=change.term,
                handed_over=False,
                complete=True,
                consistent=True,
                # What was said and known when this host last was the primary:
                resync_paused=False,
                peers=identity.peers_with(*identity.peers, held_below=None),
            )
        elif not change.hand_over:  # else it was durable before the other host heard of it
            # `handed_over` lets a peer that never heard of it take the role when the hosts meet (`MEETINGS`).
            # What went to quarantine gives way whole: an incomplete copy gets all rows anew (`missed`).
            complete = identity.complete and not change.quarantines
            self._volume.update_identity(role="backup", term=change.term, handed_over=True, complete=complete)

    def _change(self, change: RoleChange) -> None:
        """Put a unit of the other role in the place of the present one. No task serves either meanwhile.

        There is no wait in here: whoever is woken by the old unit's end finds the new one.
        """
        # A copy that was cut short is no whole catalog. The one that was here before is.
        if self._volume.catalog.copying and change.role == "primary":
            try:
                self._volume.abandon_catalog_copy()
            except (FusemirrorError, OSError) as error:
                self._stop_serving(error)
        before = self.role
        assert self._volume.identity.role == change.role, "durable before anybody goes by it (G6)"
        # A backup may become one anew: where two meet, one of them takes what the other has (`MEETINGS`).
        assert not (before.is_primary and change.role == "primary"), "a primary keeps its role"
        before.retire(change)
        assert before.life.state is RoleState.RETIRED, "nobody is served by two units"
        # A link that was made before says the old roles, by its Hello.
        self._meeting.meet_anew("the roles changed")
        role = self._make_role(self._host)
        assert role.is_primary is (change.role == "primary"), "the volume says which role this host has"
        self._present.take(role)
        role.configure(self._settings)
        # Where the copy could not be abandoned the role begins without its record, which would go with the
        # copy. This host serves nothing then.
        if not self._volume.catalog.copying:
            try:
                role.begin(change, self._kernel_forgets_at())
            except (FusemirrorError, OSError) as error:
                self._stop_serving(error)
        log.info("this host is the %s now: %s", change.role, change.reason)
        # At the end: whoever waits for it asks the new unit at once.
        change.end()
        if change.quarantines:
            self._publishing.wanted.set()

    def _kernel_forgets_at(self) -> float:
        """When the kernel of the other host has let go of what its process, now gone, had told it."""
        lost_at = self._host.links.lost_at
        return (trio.current_time() if lost_at is None else lost_at) + self._settings.peer_timeout

    def _stop_serving(self, error: FusemirrorError | OSError) -> None:
        """The role is this host's all the same: it serves it once it is mounted again."""
        log.error("the role was taken, and the disk does not take the record of it: %s", error)
        self._volume.health.fail(str(error))

    # --- both hosts there ---------------------------------------------------------------------------------

    def met_same_role(self, peer: Hello) -> bool:
        """A peer was met that has the same role as this host: one of the two acts. Whether only a person
        can say which."""
        step = meet(claim_of(self._volume), peer.claim)
        self.role.meeting.meet(peer, step)
        return step is Action.DIVERGED

    async def switch(self) -> None:
        """Exchange the roles with the peer. On return both hosts have their new ones, and are normal.

        RefusedForSafety unless the mirror state is normal, HistoriesDiverged, TimedOut: then nothing has
        changed, or TimedOut says that the roles have, and why the hosts have not met since.
        """
        role = self.role
        if role.word is MirrorWord.DIVERGED:
            raise HistoriesDiverged(role.status()["reason"])
        try:
            await role.ask_to_switch()
        except RoleChanged:
            # The unit that was asked for its role's end hears of it in this way.
            await self._present.succeeded(role)
        io_timeout_s = self._settings.io_timeout
        with trio.move_on_after(io_timeout_s):
            await self._present.ask(lambda role: role.wait_normal())
            return
        why = self.role.status()["reason"] or "the images are being compared"
        raise TimedOut(io_timeout_s, f"the roles are exchanged, but the mirror is not normal: {why}")

    # --- the other host away ------------------------------------------------------------------------------

    def takeover_report(self) -> dict[str, Any]:
        """What a take-over would lose, and why it would be refused without force, or None."""
        identity, links = self._volume.identity, self._host.links
        status = self.role.status()
        reason = None
        if self._volume.health.replaced:
            reason = self._volume.health.failure
        elif links.link is not None:
            reason = "the primary is connected; use `fusemirror switch` to exchange the roles"
        elif not (identity.complete and identity.consistent):
            reason = "this copy is not consistent: it was being brought up to date when the primary went away"
        elif identity.compare_all:
            reason = "this copy was not compared with the primary's since a power cut or a repair"
        return {
            "role": status["role"],
            "refused": reason,
            "last_contact_seconds": links.last_contact_seconds(),
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
        is a witness and it does not permit this. `Failover` calls this as a person does.
        """
        self._host.check_disk()
        if self.role.is_primary:
            if force and self.role.degraded.wants_quorum:
                self._quorum.overridden = True
                self.role.degraded.granted()
            return
        if force:
            self._quorum.overridden = True
        if self._quorum.needed and not self._quorum.granted and not await self._quorum.ask():
            why = self._quorum.reason or "the witness has not been heard"
            raise RefusedForSafety(f"{why}; --force takes over all the same")
        role = self.role
        if role.is_primary:
            return  # it was handed the role meanwhile
        reason = self.takeover_report()["refused"]
        # Looked at after the wait for the witness: the primary may have come back meanwhile.
        if reason is not None and not force:
            raise RefusedForSafety(f"{reason}; --force takes over all the same")
        change = RoleChange("primary", "taken over", self._volume.identity.term + 1, alone=True)
        await role.life.ask(change).until_done()

    async def wait_alone(self) -> None:
        """Return when this host, a primary, goes on alone, or has met the peer, or after `io_timeout`."""
        with trio.move_on_after(self._settings.io_timeout):
            await self.role.degraded.wait_alone()

    def check_may_invite(self) -> None:
        """Whether another host may be invited in the peer's place; RefusedForSafety, HostReplaced.

        Only where this host's copy is the one that stays, and the peer can neither change nor read anything.
        """
        role = self.role
        self._host.check_disk()
        if not role.is_primary:
            raise RefusedForSafety(
                "this host is the backup; if the primary is lost for good, let this host take over first, "
                "with `fusemirror takeover NAME`"
            )
        if role.link is not None or self._host.exchange.connected:
            raise RefusedForSafety(
                f"{self._volume.identity.only_peer.name} is connected; unmount it there first, if another "
                "host is to replace it"
            )
        if not role.degraded.acknowledges_alone:
            why = role.status()["reason"] or "the other host may still read under its lease"
            raise RefusedForSafety(f"this host does not go on alone yet: {why}; try again in a moment")

    def take_peer(self, peer: str, peer_name: str, pairing: int) -> None:
        """From now on `peer` (its identity, in hexadecimal) is the other host. Durable on return. OSError."""
        identity = self._volume.identity
        peers = identity.peers_with(identity.only_peer, host=peer, name=peer_name, file_bytes_max=0)
        self._volume.update_identity(peers=peers, pairing=pairing, term=identity.term + 1)
        self._host.forget_peer()

    # --- split brain --------------------------------------------------------------------------------------

    async def conflicts(self) -> dict[str, Any]:
        """What each host changed since the fork point, while the histories differ, and the published files.

        The other host is asked, for `io_timeout` at most.
        """
        exchange = self._host.exchange if self.role.word is MirrorWord.DIVERGED else None
        return await report(self._volume, exchange, self._settings.io_timeout)

    def resolve(self, keep: str) -> str:
        """Record durably whose copy stays; the other host yields when they meet, at once where it is there.

        UsageError unless `keep` names one of the hosts. What was done, for people.
        """
        identity, links = self._volume.identity, self._host.links
        hosts = {peer.name: peer.host for peer in identity.peers} | {identity.host_name: identity.host}
        if keep not in hosts:
            raise UsageError(f"`{keep}` is neither host; it is {' or '.join(sorted(hosts))}")
        if self.role.word is not MirrorWord.DIVERGED and links.link is not None:
            return "there is no split brain; nothing is to be done"
        generations = generations_of(self._volume)
        at = generations[0].identity.hex() if generations else ""
        # With the newest line that there is, so that the word is not taken for one about the next split
        # brain; and above both terms, as the later of two words counts (`_chosen`).
        if (identity.keep, identity.keep_at) != (hosts[keep], at):
            term = max(identity.term, 0 if links.met is None else links.met.term) + 1
            self._volume.update_identity(keep=hosts[keep], keep_at=at, term=term)
        self._meeting.meet_anew("a person has chosen a copy")
        return f"the copy of {keep} stays; the other host's changes go to quarantine when the hosts meet"

    async def stop(self, reason: str) -> None:
        """See `Role.stop`."""
        await self.role.stop(reason)
