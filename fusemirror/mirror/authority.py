"""Authority: what a primary may do on its own word. Lease, fence and witness meet in one table.

Three facts decide: where the replicas stand, whether this host is permitted to go on alone (always, without a
witness; `witness/quorum.py`), and the fence. The table says what then holds of a change that is to be
made, of one that was made, and of what programs of this host may see.
"""

import logging
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

import trio

from fusemirror.channel.session import Session
from fusemirror.errors import ChangesRefused, ChangeUnconfirmed, CheckReport, NotPermitted, RoleChanged
from fusemirror.limits import KERNEL_DELAY_S
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PRIMARY_STANDINGS, Standing
from fusemirror.mirror.waits import Waits
from fusemirror.settings import Fence, OnDegraded
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)


class Making(Enum):
    """What becomes of a change that a program asks for."""

    MADE = auto()
    WAITS = auto()
    """The backup is being waited for, or brought up to date: for `io_timeout`, then it is refused."""
    REFUSED = auto()


class Acknowledged(Enum):
    """Who has to have a change before its program hears that it is done."""

    BY_BACKUP = auto()
    ALONE = auto()
    BY_NOBODY = auto()
    """Neither host's word would do: it waits for the other, or for the grant."""


class Shown(Enum):
    """Whether programs of this host may see what is here."""

    ALWAYS = auto()
    UNDER_LEASE = auto()
    """As long as a backup has promised not to become the primary."""
    NEVER = auto()


class Left(Enum):
    """What becomes of changes that are under way as the backup is left."""

    WAIT = auto()
    """It is not left: it may still acknowledge them."""
    IN_A_LINE_OF_THEIR_OWN = auto()
    IN_DOUBT = auto()
    UNCONFIRMED = auto()
    """In doubt too: this host may not say alone that they are done."""


class Rights(NamedTuple):
    making: Making
    acknowledged: Acknowledged
    shown: Shown
    left: Left


# The columns, None where it does not matter: where the replicas stand; this host is permitted to go on alone;
# the fence forbids changes that are not mirrored.
Columns = tuple[Standing, bool | None, bool | None]

_MADE, _WAITS, _REFUSED = Making
_BY_BACKUP, _ALONE, _BY_NOBODY = Acknowledged
_ALWAYS, _UNDER_LEASE, _NEVER = Shown
_WAIT, _OWN_LINE, _IN_DOUBT, _UNCONFIRMED = Left

RIGHTS: tuple[tuple[Columns, Rights], ...] = (
    # The backup gets every change, so neither fence nor grant is asked about one. Without the grant the
    # other host could take over, but not before each lease is over that it gave with its heartbeats.
    ((Standing.STREAMS, True, None), Rights(_MADE, _BY_BACKUP, _ALWAYS, _WAIT)),
    ((Standing.STREAMS, False, None), Rights(_MADE, _BY_BACKUP, _UNDER_LEASE, _WAIT)),
    # The link is lost and the backup may go on reading under the lease that this host gave. A change that
    # was acknowledged alone now would be one that the backup does not show: G2. So it is made, and waits.
    # A fence keeps it from being made, as it might have to be reported in doubt when the lease is over.
    ((Standing.HOLDS, True, False), Rights(_MADE, _BY_BACKUP, _ALWAYS, _WAIT)),
    ((Standing.HOLDS, True, True), Rights(_WAITS, _BY_BACKUP, _ALWAYS, _WAIT)),
    ((Standing.HOLDS, False, False), Rights(_MADE, _BY_BACKUP, _UNDER_LEASE, _WAIT)),
    ((Standing.HOLDS, False, True), Rights(_WAITS, _BY_BACKUP, _UNDER_LEASE, _WAIT)),
    # A backup that catches up serves no reads, so nothing is to be waited for. What was under way when it was
    # left is acknowledged, behind a record that says so: only then can the histories tell who went on.
    ((Standing.REJOINS, True, False), Rights(_MADE, _ALONE, _ALWAYS, _OWN_LINE)),
    ((Standing.APART, True, False), Rights(_MADE, _ALONE, _ALWAYS, _OWN_LINE)),
    # With a fence nothing begins that line. What was under way is here, and perhaps there: it is in doubt.
    # A change waits where the backup is being brought up to date, which ends by itself, and is refused at
    # once where it is away, for nobody knows how long.
    ((Standing.REJOINS, True, True), Rights(_WAITS, _ALONE, _ALWAYS, _IN_DOUBT)),
    ((Standing.APART, True, True), Rights(_REFUSED, _ALONE, _ALWAYS, _IN_DOUBT)),
    # The other host may have become the primary: what is here may be old, and this host's word counts for
    # nothing. A fence decides first all the same, so that a change that it forbids is refused for its reason.
    ((Standing.REJOINS, False, False), Rights(_MADE, _BY_NOBODY, _NEVER, _UNCONFIRMED)),
    ((Standing.REJOINS, False, True), Rights(_WAITS, _BY_NOBODY, _NEVER, _UNCONFIRMED)),
    ((Standing.APART, False, False), Rights(_MADE, _BY_NOBODY, _NEVER, _UNCONFIRMED)),
    ((Standing.APART, False, True), Rights(_REFUSED, _BY_NOBODY, _NEVER, _UNCONFIRMED)),
)

# `Authority.acknowledges_alone` goes by this, and so does the rule that there are never two primaries.
assert all(each.acknowledged is not _ALONE for (_, permitted, _), each in RIGHTS if not permitted)


def rights_at(standing: Standing, *, permitted: bool, fenced: bool) -> Rights:
    """Exactly one row of the table matches."""
    facts = (standing, permitted, fenced)
    for columns, rights in RIGHTS:
        if all(expected is None or expected == fact for expected, fact in zip(columns, facts, strict=True)):
            return rights
    raise AssertionError("every combination has its row")


# Whether a change is made is asked without looking at the grant (`fenced`, `admit`): a fence forbids with it
# and without. Were it not so, a change could be made alone that nobody may acknowledge.
assert all(
    rights_at(standing, permitted=False, fenced=fenced).making
    is rights_at(standing, permitted=True, fenced=fenced).making
    for standing in Standing
    for fenced in (False, True)
)


class Authority:
    """The row of the table that holds now, and the waits for another one.

    The grant is asked each time: it is given back before the word of that leaves, and whoever looked a
    moment later by a copy of it could be a second primary.
    """

    def __init__(
        self, replicas: Sequence[Replica], quorum: QuorumGrant, fence: Fence, io_timeout_s: float
    ) -> None:
        self.quorum = quorum
        self.fence = fence
        self.io_timeout_s = io_timeout_s
        self.waits = Waits()
        """Of programs, for the other host or for the grant to go on without it."""
        self.retired = False
        """This host is the primary no more."""
        self.changed = trio.Event()
        self._replicas = replicas
        self._has_reported = False  # this time apart has its line in the log
        self._reports = False  # what is in vain is not waited for
        self._is_refused = False  # the witness has said in this time apart that this host may not go on
        self._rights: tuple[Rights, Rights]  # without the grant, and with it
        self.look()

    def look(self) -> None:
        """A replica stands elsewhere, or the fence or the grant has changed: who waits looks again."""
        standing = max(PRIMARY_STANDINGS[replica.state] for replica in self._replicas)
        # Both rows, as the grant comes and ends without a call of this: which of them holds is asked each
        # time.
        without, with_it = (self.rights_where(standing, permitted=each) for each in (False, True))
        self._rights = without, with_it
        # The next time apart gets a line of its own in the log.
        if standing is Standing.STREAMS:
            self._has_reported = False
        # The witness spoke of one time apart. Kept over the next, its word would refuse programs before it is
        # asked.
        if self._is_refused and not self.wants_quorum:
            self._is_refused = False
        self.waits.tell(in_vain=self._reports and self._is_refused)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def rights_where(self, standing: Standing, *, permitted: bool) -> Rights:
        return rights_at(standing, permitted=permitted, fenced=self.fence is Fence.DATA)

    @property
    def rights(self) -> Rights:
        return self._rights[self.quorum.granted]

    @property
    def acknowledges_alone(self) -> bool:
        """Changes are acknowledged without the backup."""
        # Nobody does without the grant; so it is asked only where it makes the difference.
        return self._rights[True].acknowledged is _ALONE and self.quorum.granted

    def goes_without(self, replica: Replica) -> bool:
        """Changes are acknowledged that this one does not have: by the others, or by this host alone."""
        return replica.is_left and (
            self.acknowledges_alone or not all(each.is_left for each in self._replicas)
        )

    @property
    def entitled(self) -> bool:
        """Programs of this host may see what is here: the other cannot have become the primary."""
        shown = self._rights[self.quorum.granted].shown
        if shown is not _UNDER_LEASE:
            return shown is _ALWAYS
        now = trio.current_time()
        # Also by a session that was lost: what the backup promised holds until the lease is over, link or no
        # link.
        for replica in self._replicas:
            if replica.session is not None and now < replica.session.heartbeat.lease_until:
                return True
        return False

    @property
    def fenced(self) -> bool:
        """No change may be made now: it could not be mirrored, and `fence` forbids to go on alone."""
        return self._rights[True].making is not _MADE

    def configure(self, fence: Fence, io_timeout_s: float, on_degraded: OnDegraded) -> None:
        """From now on; what waits is refused, made, or waits on, accordingly."""
        self.io_timeout_s = io_timeout_s
        reports = on_degraded is OnDegraded.REPORT
        # Only where one is another: `look` wakes every program that waits.
        if (fence, reports) != (self.fence, self._reports):
            self.fence, self._reports = fence, reports
            self.look()

    def refuse(self) -> None:
        """The witness does not let this host go on alone. Nothing while a backup's lease lets it show what
        is here: that may be back before it is over."""
        if not self._is_refused and not self.entitled:
            self._is_refused = True
            self.look()

    @property
    def wants_quorum(self) -> bool:
        """It is time to go on without a replica, and the witness has to say whether this host may."""
        if self.quorum.held or not self.quorum.needed:
            return False
        # Of any: one that is lost may have become the primary, whoever else there is.
        now = trio.current_time()
        return any(replica.may_be_left(now) for replica in self._replicas)

    def retire(self) -> None:
        """Whoever waits here, or does from now on, gets `RoleChanged`."""
        self.retired = True
        # Whoever waits wakes by this and finds it: a role that has ended decides nothing, whatever the state
        # of its mirror says.
        self.look()

    def check_not_retired(self) -> None:
        if self.retired:
            raise RoleChanged

    # --- waiting ------------------------------------------------------------------------------------------

    async def until_decided(self) -> None:
        """Return when the state is one in which requests are decided: streaming, or alone."""
        while not self._decides:
            self.check_not_retired()
            await self.changed.wait()
        self.check_not_retired()

    @property
    def _decides(self) -> bool:
        # In between, nobody knows yet by which of the two a decision would be acknowledged.
        return self.acknowledges_alone or any(replica.streams for replica in self._replicas)

    async def admit(self) -> None:
        """Return when a change may be made; without a checkpoint while the mirror streams.

        `ChangesRefused` at once while the backup is away, and after `io_timeout` where it is being
        brought up to date. What is refused here has no effect.
        """
        # By the row with the grant: whether it is given decides who acknowledges, and not whether a change
        # is made.
        with trio.move_on_after(self.io_timeout_s):
            while self._rights[True].making is _WAITS:
                await self.changed.wait()
                self.check_not_retired()
        # After the wait, too: the fence may have come into force meanwhile, and nothing was changed yet.
        if self.fenced:
            raise self.reported(self._refused())

    async def wait_entitled(self) -> None:
        """Return when programs of this host may see what is here; `NotPermitted` after `io_timeout`, or where
        that is known to be in vain and is reported at once.

        There is no checkpoint between that moment and the return.
        """
        # Looked at after each wake and never kept: a right ends at any moment, by a word or by a clock.
        with self.waits.limited(self.io_timeout_s):
            while not self.entitled:
                self.check_not_retired()
                session = self._lender()
                if session is None:
                    await self.changed.wait()
                else:
                    await session.heartbeat.wait_lease()
        if not self.entitled:
            self.check_not_retired()
            raise self.not_permitted()

    def _lender(self) -> Session | None:
        """By whose next heartbeat this host may be entitled."""
        # Any one will do: a lease of one backup is a promise of that one alone, and there is one record to
        # go by.
        if self.rights.shown is _UNDER_LEASE:
            for replica in self._replicas:
                if replica.session is not None and not replica.session.closed:
                    return replica.session
        return None

    def shows_for_s(self, seconds: float) -> float:
        """For how long of `seconds` a kernel may keep what it is shown now."""
        if self.quorum.granted:
            return seconds
        sessions = [replica.session for replica in self._replicas if replica.session is not None]
        # The longest of them, as by `entitled`: one backup that holds to its promise is enough.
        until = max((session.heartbeat.lease_until for session in sessions), default=0.0)
        # The kernel counts from when it takes the answer, which is a little later.
        return min(seconds, max(0.0, until - trio.current_time() - KERNEL_DELAY_S))

    # --- reasons ------------------------------------------------------------------------------------------

    def reported(self, error: CheckReport) -> CheckReport:
        """`error`, of which the log says one for each time apart."""
        # Once for each time apart: every request of every program would say the same.
        if not self._has_reported:
            self._has_reported = True
            log.warning("%s", error)
        return error

    def not_permitted(self) -> CheckReport:
        """What a request gets that waited too long for the other host or the witness."""
        return self.reported(NotPermitted(self.reason_alone))

    def unconfirmed(self) -> CheckReport:
        """What a change gets that was made, and waited too long for either."""
        return self.reported(ChangeUnconfirmed(self.reason_alone))

    @property
    def reason(self) -> str | None:
        """Why the mirror state is not normal."""
        return "; ".join(filter(None, (replica.reason for replica in self._replicas))) or None

    @property
    def reason_alone(self) -> str:
        """Why this host does not go on alone."""
        return "; ".join(filter(None, (self.reason, self.quorum.reason))) or "it waits for the other host"

    def _refused(self) -> ChangesRefused:
        return ChangesRefused(self.reason or "the backup is being brought up to date")

    @property
    def shown_reason(self) -> str | None:
        """Why the state is not normal, and what that means for changes, for people."""
        if self.wants_quorum:
            return str(NotPermitted(self.reason_alone))
        # While the lease lasts it is not decided yet whether changes are refused.
        waits = any(replica.is_held for replica in self._replicas)
        return str(self._refused()) if self.fenced and not waits else self.reason
