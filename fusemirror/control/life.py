"""The life of a role: its state, which requests wait for, and the change that it asks for itself."""

from dataclasses import dataclass, field

import trio

from fusemirror.control.states import (
    BEFORE_READY,
    PARKED,
    REFUSING,
    RoleEvent,
    RoleState,
    next_role_state,
)
from fusemirror.errors import RoleChanged
from fusemirror.identifiers import NO_CHANGE, ChangeNumber
from fusemirror.promise import Promise


@dataclass(frozen=True)
class RoleChange:
    """What a unit of one role asks for: that this host takes the other role.

    A backup becomes the primary: `alone`, without the other host, or handed the role under `term`. A
    primary becomes the backup: by `hand_over` while the link lives, or because the peer is the primary
    already. `known` is the last change of this host that the peer holds, as its process `peer` says, and
    `quarantines` says that what differs here is to go to quarantine. `until_done` returns, or raises, at the
    end.
    """

    role: str
    reason: str
    term: int = 0
    alone: bool = False
    hand_over: bool = False
    quarantines: bool = False
    known: ChangeNumber = NO_CHANGE
    peer: bytes = b""
    _ended: trio.Event = field(default_factory=trio.Event)
    _errors: list[Exception] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def end(self, error: Exception | None = None) -> None:
        """It was made; or it came to nothing, for this reason."""
        if error is not None:
            self._errors.append(error)
        self._ended.set()

    async def until_done(self) -> None:
        """Return when it is made, for as many as wait for it; raises the reason where it came to nothing."""
        await self._ended.wait()
        for error in self._errors:
            raise error


class RoleLife:
    """Of one unit. `states.py` has the table."""

    def __init__(self, state: RoleState) -> None:
        self.state = state
        self.changed = trio.Event()
        """Set, and replaced, with each change of the state."""
        self._asked: Promise[RoleChange] = Promise()
        self._change: RoleChange | None = None  # that is to be made, or is being made

    def meet(self, event: RoleEvent) -> None:
        """Go on to the state that follows. IllegalTransition."""
        self.state = next_role_state(self.state, event)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def check(self) -> None:
        """RoleChanged where this unit serves nobody any more, or for the time being."""
        if self.state in REFUSING:
            raise RoleChanged

    def is_ready(self) -> bool:
        """Whether it serves, or has served: what it decides the other host hears of."""
        return self.state not in BEFORE_READY

    async def until_ready(self) -> None:
        while self.state in BEFORE_READY:
            await self.changed.wait()

    async def until_unparked(self) -> None:
        """Return when it is known which role this host goes on with."""
        while self.state in PARKED:
            await self.changed.wait()

    # --- what the unit asks for -----------------------------------------------------------------------------

    def ask(self, change: RoleChange) -> RoleChange:
        """This host is to take the other role. The change that will be made: `change`, or the one that was
        asked for before and has not ended, as a role has one successor. RoleChanged once it has that.
        """
        if self.state is RoleState.RETIRED:
            raise RoleChanged
        if self._change is None or self._change.has_ended:
            self._change = change
            self._asked.resolve(change)
        return self._change

    async def next_change(self) -> RoleChange:
        """The change that was asked for. Whoever takes it ends it."""
        change = await self._asked.wait()
        self._asked = Promise()
        return change
