"""Landing: what is exclusive in main takes the subvolume's status, and is written there (Figs. 19 and 20).

Main decides. A write of the primary takes the subvolume's status by its command (C), which goes ahead of
the data (D) where that takes its time; a small one is both. Whoever has the subvolume's status for less, a
write of the backup that asks main, finds main exclusive by the same word: it gives up (851) and stands by at
main. So the command waits for nobody, and nobody for ever: main's answer would say the same a moment later.
A write of the backup that had given up takes the status anew before it lands. Source: seed [0075]-[0078].
"""

from collections.abc import Callable
from functools import partial

import trio

from fusemirror.change import AnyChange
from fusemirror.communication.staged import Staged
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.ranges import RangeClaim
from fusemirror.control.steps import WriteEvent, WriteState
from fusemirror.errors import BadChange
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.protocol.messages import TakeStatus

_LANDED = frozenset({WriteState.LANDING, WriteState.ENDED})


class Landing:
    """Of the links of one backup. Without a wait: called in the order in which main sends."""

    def __init__(self, exclusive: ExclusiveAccess) -> None:
        self.asking: dict[RequestId, ExclusiveWrite] = {}
        """Writes of this host that main was asked for, until their programs hear of it."""
        self.changed = trio.Event()
        """Set, and replaced, when data has landed whose command came ahead of it, or does not come."""
        self.held_back: InodeNumber | None = None
        """The file of such data, where its program may have been told of success already."""
        self.exclusive = exclusive
        self._early: dict[RequestId, Staged] = {}  # whose programs hear of success when main has granted it
        self._commanded: tuple[ChangeNumber, RangeClaim] | None = None  # its data comes next

    def main_is_exclusive(self, identity: RequestId) -> None:
        """Steps 832, 851, 833: a write gives up the subvolume's status, and stands by at main."""
        write = self.asking.get(identity)
        if write is not None and write.state not in _LANDED:
            write.meet(WriteEvent.MAIN_EXCLUSIVE)

    # --- writes of this host that are answered early ------------------------------------------------------

    def await_status(self, staged: Staged, write: ExclusiveWrite) -> None:
        """Its program hears of success once main has granted its status, and it is safe here."""
        identity = staged.request.identity
        self.asking[identity], self._early[identity] = write, staged

    def is_early(self, write: ExclusiveWrite) -> bool:
        """Whether it is this that ends the write, when its data has landed or does not come."""
        return any(self.asking[identity] is write for identity in self._early)

    def granted(self, identity: RequestId) -> None:
        """0078: main is exclusive for it, and so is the subvolume: success may be reported."""
        staged, write = self._early.get(identity), self.asking.get(identity)
        if staged is None or write is None or write.state in _LANDED:
            return
        claim = write.claim
        anew = write.state is WriteState.GIVEN_UP
        write.land(self._take(claim.inode, claim.start, claim.end) if anew else None)
        staged.grant_status()

    def ended(self, identity: RequestId) -> None:
        """It has landed, or failed, or the link is lost: what comes of it then needs no status."""
        if self._early.pop(identity, None) is not None:
            self.asking.pop(identity).end(WriteEvent.FAILED)  # where it has not landed

    # --- what main sends ----------------------------------------------------------------------------------

    def command(self, message: TakeStatus) -> None:
        """C of Fig. 19: from now on the subvolume is exclusive for a change of main, until that has landed.

        BadChange: the data of the one before has not come.
        """
        if self._commanded is not None:
            raise BadChange(f"the data of change {self._commanded[0]} has not come, which took a status")
        self._commanded = message.number, self._take(message.inode, message.start, message.end)
        self.held_back = message.inode if message.answers else None

    def begin(self, change: AnyChange) -> Callable[[], None] | None:
        """The subvolume is exclusive for the change on return, until what this returns is called (854).

        BadChange: another one was to come.
        """
        inode, start, end = change.data_range()
        if not inode:
            return None
        write = self.asking.get(change.request) if change.request else None
        if write is None or write.state is WriteState.ENDED:
            claim = self._taken_for(change.number) or self._take(inode, start, end)
            return partial(self.exclusive.ranges.release, claim)
        if write.state is not WriteState.LANDING:
            write.land(self._take(inode, start, end) if write.state is WriteState.GIVEN_UP else None)
        return partial(self._landed, change.request, write)

    def link_lost(self) -> None:
        """Data that was commanded does not come: the next link brings what the subvolume lacks."""
        if self._commanded is not None:
            self.exclusive.ranges.release(self._commanded[1])
            self._commanded = None
            self._has_landed()
        self.forget_early()

    def forget_early(self) -> None:
        """What is on its way with a status lands without one. Whose program was not told of success yet, as
        it was not safe here, waits for the answer as others do."""
        for identity, staged in list(self._early.items()):
            staged.awaits_status = not staged.acknowledged
            self.ended(identity)

    def _taken_for(self, number: ChangeNumber) -> RangeClaim | None:
        if self._commanded is None:
            return None
        (commanded, claim), self._commanded = self._commanded, None
        self._has_landed()  # or it is about to
        if commanded != number:
            self.exclusive.ranges.release(claim)
            raise BadChange(f"it was to be change {commanded}, which has taken a status")
        return claim

    def _landed(self, identity: RequestId, write: ExclusiveWrite) -> None:
        write.transferred()
        self.ended(identity)

    def _has_landed(self) -> None:
        self.held_back = None
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _take(self, inode: InodeNumber, start: int, end: int) -> RangeClaim:
        claim = self.exclusive.ranges.claim_by_right(inode, start, end)
        for write in self.asking.values():
            own = write.claim
            if write.state is WriteState.ASKING_MAIN and own.inode == inode and own.overlaps(start, end):
                write.meet(WriteEvent.MAIN_EXCLUSIVE)
        return claim
