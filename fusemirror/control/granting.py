"""Granting: main's exclusive status for a write of the backup whose data is still on its way (Fig. 20).

With asynchronous acknowledgement the backup asks for the status ahead of the data, and its program hears of
success once main has granted it. So from the grant on this host's kernel keeps nothing of the file, and
nobody here is shown those bytes, or the attributes of the file, before the data has landed. The status of a
backup that is lost is free once its lease is over: it carries the write out later, when it is back. A primary
that was killed knows nothing of what it has granted; the backup does, and sends that before anybody sees.
Source: seed [0078].
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from fusemirror.channel.session import Session
from fusemirror.control.exclusive import ExclusiveWrite
from fusemirror.control.steps import WriteEvent, WriteState
from fusemirror.errors import ConnectionLost, OperationFailed
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import REQUESTS_BESIDE_MAX
from fusemirror.protocol.messages import AskStatus, Excluded, StatusGranted
from fusemirror.volume.volume import Volume

CarryOut = Callable[[ExclusiveWrite], None]
"""Writes data that has come, whose write has main's status, or is in conflict. It must not raise."""


class _Asked:
    """What the backup asked a status for."""

    __slots__ = ("carry_out", "inode", "is_granted", "write")

    def __init__(self, inode: InodeNumber, write: ExclusiveWrite) -> None:
        self.inode = inode
        self.write = write
        self.is_granted = False
        self.carry_out: CarryOut | None = None  # the data came while it stood by


class Granting:
    """Of one primary; granted statuses outlast links for as long as the backup may read."""

    def __init__(self, volume: Volume) -> None:
        self.inodes: Counter[InodeNumber] = Counter()
        """Files of which a granted write has not landed."""
        self.changed = trio.Event()
        """Set, and replaced, when such a write has landed, or its status is free."""
        self.is_owed = False
        """The backup is about to send what it was granted, as the process that granted it may have ended."""
        self.grants = True
        """False while main is about to be the other host's, which knows nothing of what was granted here."""
        self._volume = volume
        self._asked: dict[RequestId, _Asked] = {}

    def takes(self, identity: RequestId) -> bool:
        """Whether a status may be asked for by this name now."""
        return identity not in self._asked and len(self._asked) < REQUESTS_BESIDE_MAX

    def ask(self, session: Session, message: AskStatus, write: ExclusiveWrite, nursery: trio.Nursery) -> None:
        """Grant the status, at once or in its turn. A reservation is told of when the data has come."""
        if write.state is WriteState.CONFLICT:
            return
        asked = self._asked[message.identity] = _Asked(message.inode, write)
        if write.stands_by:
            nursery.start_soon(self._grant_in_turn, session, message.identity, asked)
            session.send(Excluded(message.identity))
        else:
            self._grant(session, message.identity, asked)

    async def _grant_in_turn(self, session: Session, identity: RequestId, asked: _Asked) -> None:
        try:
            with suppress(OperationFailed):  # reserved meanwhile: its data finds that, too
                await asked.write.take_turn()
        except BaseException:
            self._end(identity)
            raise
        if asked.carry_out is not None:
            asked.carry_out(asked.write)
            self._end(identity)
        elif asked.write.state is WriteState.CONFLICT:
            self._end(identity)
        else:
            with suppress(ConnectionLost):
                self._grant(session, identity, asked)

    def _grant(self, session: Session, identity: RequestId, asked: _Asked) -> None:
        # The kernel first: the backup's program goes on by this word.
        self._volume.invalidator.data_changed(asked.inode, own=False)
        asked.is_granted = True
        self.inodes[asked.inode] += 1
        session.send(StatusGranted(identity))

    def waits(self, identity: RequestId) -> bool:
        """Whether the status that was asked for is another's still."""
        asked = self._asked.get(identity)
        return asked is not None and asked.write.stands_by

    def arrived(self, identity: RequestId, carry_out: CarryOut) -> bool:
        """The data is there, and is written once main is exclusive for it. False: no status was asked for."""
        asked = self._asked.get(identity)
        if asked is None:
            return False
        if asked.write.stands_by:
            asked.carry_out = carry_out
            return True
        carry_out(asked.write)
        self._end(identity)
        return True

    def free(self, identities: Iterable[RequestId]) -> None:
        """What was granted to these is free: their data does not come, or without a status."""
        for identity in identities:
            asked = self._asked.get(identity)
            if asked is not None and asked.is_granted:
                asked.write.end(WriteEvent.FAILED)
                self._end(identity)

    @property
    def granted(self) -> list[RequestId]:
        """Whose data has not come."""
        return [identity for identity, asked in self._asked.items() if asked.is_granted]

    async def run_out(self) -> None:
        """Nothing more can be asked for until `go_on`; on return all that was asked for has landed, or does
        not come. Cancelled, nothing can be asked for either."""
        self.grants = False
        while self._asked:
            await self.changed.wait()

    def go_on(self) -> None:
        self.grants = True

    def expect(self, *, owed: bool) -> None:
        """A link begins, and the backup has said whether it owes writes; or it does not come back in time."""
        self.is_owed = owed
        self._changed()

    def paid(self) -> None:
        """What was owed has come, and has a place in main's order."""
        if self.is_owed:
            self.is_owed = False
            self._changed()

    def _end(self, identity: RequestId) -> None:
        asked = self._asked.pop(identity)
        if asked.is_granted:
            assert self.inodes[asked.inode] > 0, "or the file of another write would be shown before it lands"
            self.inodes -= Counter((asked.inode,))
        self._changed()

    def _changed(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()
