"""The backup's half of an fsync and of a checkpoint (`durability.py`).

Both are made beside the stream, as a disk takes its time; which marks belong to a checkpoint is settled at
its place of the stream.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fusemirror.channel.session import Session
from fusemirror.errors import BadChange, ConnectionLost, DiskFailed
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import CHECKPOINTS_OPEN_MAX, COUNTER_SKIPPED_MAX
from fusemirror.mirror.declining import Declining
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import Checkpoint, FlushImage, ForgetMarks, Reply
from fusemirror.volume.health import disk_error
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]
"""What a handler leaves to be done beside the stream, as long as the session lives."""


class BackupDurability:
    """See the module."""

    def __init__(self, volume: Volume, declined: Declining | None = None) -> None:
        self.primary_durable = ChangeNumber(0)
        """What the primary has so, as a checkpoint of this process has shown."""
        self._volume = volume
        self._declined = declined or Declining(volume)
        # Token of a checkpoint that is durable here -> the epoch that it ends, and the last change before it.
        self._epochs: dict[int, tuple[int, ChangeNumber]] = {}
        self.handlers: dict[type, Callable[[Any, Buffer, Session], Work | None]] = {
            FlushImage: self._flush_image,
            Checkpoint: self._checkpoint,
            ForgetMarks: self._forget_marks,
        }

    def session_ended(self) -> None:
        """Marks of a checkpoint that was not ended stay: the next one ends them too."""
        self._epochs.clear()

    def _flush_image(self, message: FlushImage, _: Buffer, session: Session) -> Work:
        return partial(self._flush, session, message)

    async def _flush(self, session: Session, message: FlushImage) -> None:
        error = 0
        try:
            await self._volume.syncing.flush(message.inode)
        except (OSError, DiskFailed) as failed:
            log.error("fsync: %s", disk_error(self._volume.directory, failed))
            error = failed.errno or errno.EIO
        if message.inode in self._declined.reasons:
            error = error or errno.EIO  # one volume alone has what was written
        _reply(session, Reply(message.token, errno=error))

    def _checkpoint(self, message: Checkpoint, _: Buffer, session: Session) -> Work:
        # Numbers of checkpoints are compared for ever after (`histories.py`): one out of all proportion would
        # make every later copy look old (G7).
        if message.checkpoint > self._volume.catalog.checkpoints.begun + COUNTER_SKIPPED_MAX:
            raise BadChange(f"checkpoint {message.checkpoint} is beyond what can be")
        if len(self._epochs) >= CHECKPOINTS_OPEN_MAX or message.token in self._epochs:
            raise BadChange("too many checkpoints whose marks were not forgotten")
        # The marks are parted here, at this place of the stream; making them durable takes its time.
        parted = self._volume.regions.rotate(), self._volume.number
        return partial(self._make_durable, session, message, parted)

    async def _make_durable(
        self, session: Session, message: Checkpoint, parted: tuple[int, ChangeNumber]
    ) -> None:
        error, number = 0, ChangeNumber(0)
        try:
            number = await self._volume.make_durable()
            assert number >= parted[1], "what the marks stand for is durable before they go"
            # Durably known before it is answered: by this number the hosts tell, when they meet, that this
            # copy was not put back from an older one.
            self._volume.end_checkpoint(message.checkpoint)
            self._volume.syncing.trim(message.durable)
            self.primary_durable = max(self.primary_durable, message.durable)  # names alone
            # Before the answer leaves, as the word that the marks may go can follow it at once.
            self._epochs[message.token] = parted
        except (OSError, DiskFailed) as failed:
            # The epoch stays without a token: its marks go with those of a later checkpoint, and not before.
            # The answer ends the link, and the primary's marks stay as well.
            log.error("checkpoint: %s", disk_error(self._volume.directory, failed))
            error = failed.errno or errno.EIO
        _reply(session, Reply(message.token, errno=error, number=number))

    def _forget_marks(self, message: ForgetMarks, _: Buffer, session: Session) -> None:
        parted = self._epochs.pop(message.token, None)
        if parted is None:
            raise BadChange("there is no such checkpoint, or it is not durable here")
        # One before it that was not ended, as another replica was lost meanwhile, ends with it.
        self._epochs = {token: each for token, each in self._epochs.items() if token > message.token}
        epoch, number = parted
        self._volume.drop_marks(epoch)
        self.primary_durable = max(self.primary_durable, number)  # or it would keep its own marks
        # The primary's own marks say from now on which images are not copied yet.
        self._volume.update_identity(complete=True, compare_all=False)


def _reply(session: Session, reply: Reply) -> None:
    """Answer, unless the session has ended, or ends by this: then nobody waits for it."""
    with suppress(ConnectionLost):
        session.send(reply)
