"""What the backup acknowledges: how far the subvolume is, as one word for all changes that came together.

Who waits at the primary for a change is a program there that made it, or one that would be shown it. Of what
this host's own programs wrote there is only the latter, and it asks (`WantApplied`). So the word of that is
delayed, as TCP delays an acknowledgement (RFC 1122, 4.2.3.2), and one is enough for some small writes. To the
primary this is a slow network: nothing goes by how soon the word comes.
"""

from contextlib import suppress

import trio

from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import APPLIED_DELAY_S
from fusemirror.mirror.peer_space import SpaceTeller
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Applied
from fusemirror.volume.volume import Volume


class Acknowledging:
    """Over all links of a backup."""

    def __init__(self, volume: Volume) -> None:
        self.is_waited_for = True
        """Somebody may wait at the primary for what was applied since the last word, and will not ask."""
        self.room = SpaceTeller(volume.space)
        self._volume = volume
        self._acknowledged = volume.number
        """The newest change that the primary knows to be applied here."""
        self._delayed = trio.Event()
        self._waiting: Promise[None] | None = None
        self._made: list[InodeNumber] = []  # files of the primary's programs, whose images are to be prepared

    def made(self, file: InodeNumber) -> None:
        """A file that a program of the primary has just made, and is likely to write."""
        self._made.append(file)

    def caught_up(self, number: ChangeNumber, session: Session) -> None:
        """All changes up to this one are here, however they came. ConnectionLost."""
        assert self._volume.number >= number, "what is acknowledged is here"
        self._acknowledged = number
        session.send(Applied(number))

    def acknowledge(self, session: Session) -> bool:
        """Say what is applied that was not said yet, now or soon; whether there is any. ConnectionLost."""
        number = self._volume.number
        if number <= self._acknowledged:
            return False
        if self._waiting is not None:
            self._waiting.resolve(None)
        if self.is_waited_for or not session.peer.takes_delays:
            self._acknowledged = number
            self.is_waited_for = False
            session.send(Applied(number))
        else:
            self._delayed.set()
        return True

    def say_delayed(self, session: Session) -> None:
        """Say now what was delayed: this host is about to ask the primary for what waits for that."""
        if self._delayed.is_set() and self._volume.number > self._acknowledged:
            self.is_waited_for = True
            with suppress(ConnectionLost):
                self.acknowledge(session)

    def begin(self) -> None:
        """A session begins: what was delayed over the one before is said when this has caught up."""
        self._delayed = trio.Event()

    async def run(self, session: Session) -> None:
        """Say what is delayed in time, as long as the session lasts."""
        while True:
            await self._delayed.wait()
            await trio.sleep(APPLIED_DELAY_S)
            self.say_delayed(session)
            self._delayed = trio.Event()

    def prepare_images(self) -> None:
        """Make the images of files that were made, while the primary goes on: most files are written next."""
        while self._made:
            self._volume.files.prepare(self._made.pop())

    async def wait_applied(self, number: ChangeNumber) -> None:
        """Return when change `number` is applied here. One task waits at a time."""
        while self._volume.number < number:
            self._waiting = Promise()
            await self._waiting.wait()
            self._waiting = None
