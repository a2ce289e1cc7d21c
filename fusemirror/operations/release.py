"""Release: a reservation ends."""

import errno
from typing import ClassVar

from fusemirror.errors import OperationFailed
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode
from fusemirror.volume.reservations import reservation_row


class Release(OfInode, tag=21, frozen=True, array_like=True):
    """End a reservation; there need be none. `preempt` ends one of the other host too."""

    obeys_reservations: ClassVar[bool] = False

    preempt: bool = False

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        """EBUSY for one of the other host's."""
        held = draft.catalog.reservations.get(self.inode)
        if held is not None:
            if held.holder != draft.host and not self.preempt:
                raise OperationFailed(errno.EBUSY)
            draft.put(reservation_row(self.inode, None))
        return draft.decision(self.inode)
