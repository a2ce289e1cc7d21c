"""What the backup acknowledges: how far the subvolume is, as one word for all changes that came together."""

from fusemirror.channel.session import Session
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Applied
from fusemirror.volume.volume import Volume


class Acknowledging:
    """Over all links of a backup."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._acknowledged = volume.number
        """The newest change that the primary knows to be applied here."""
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
        """Say what is applied that was not said yet; whether there was anything. ConnectionLost."""
        number = self._volume.number
        if number <= self._acknowledged:
            return False
        self._acknowledged = number
        session.send(Applied(number))
        if self._waiting is not None:
            self._waiting.resolve(None)
        return True

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
