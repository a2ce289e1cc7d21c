"""What a primary does again and again beside its links: upkeep, comparisons, what ends in time."""

import math

import trio

from fusemirror.coherence.locks import expire
from fusemirror.control.comparing import Comparisons
from fusemirror.control.granting import Granting
from fusemirror.control.host_state import HostState
from fusemirror.control.primary_reads import PrimaryReads
from fusemirror.control.taking_up import TakingUp
from fusemirror.control.upkeep import Upkeep
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror


class PrimaryTasks:
    """Of one primary, as long as it has the role."""

    def __init__(
        self,
        host: HostState,
        mirror: Mirror,
        replica: Replica,
        granting: Granting,
        reads: PrimaryReads,
        upkeep: Upkeep,
        comparisons: Comparisons,
        taking_up: TakingUp,
    ) -> None:
        self.upkeep = upkeep
        self.taking_up = taking_up
        self._host = host
        self._mirror = mirror
        self._replica = replica
        self._granting = granting
        self._reads = reads
        self._comparisons = comparisons

    def start(self, nursery: trio.Nursery) -> None:
        """Start them all: what was asked of this host before it had the role is taken up first."""
        nursery.start_soon(self.taking_up.run)
        for task, work in (
            ("purge", self.upkeep.purge_in_time),
            ("names", self._reads.hold_names),
            ("verify", self._comparisons.run_wanted),
            ("commit", self.upkeep.commit_in_time),
            ("freeing", self._host.volume.files.removal.free_discarded),
            ("locks", lambda: expire(self._host.locks)),
            ("statuses", self._free_statuses_of_the_lost),
        ):
            nursery.start_soon(self._host.background.repeat, task, work)

    async def _free_statuses_of_the_lost(self) -> None:
        """Once the lease of a lost backup is over, what it wrote comes when it is back.

        Whether this host may go on without it is asked elsewhere, of whoever would see or change those bytes.
        """
        changed, replica = self._mirror.changed, self._replica
        due = math.inf
        if replica.link is None:
            if replica.may_be_left(trio.current_time()):
                self._granting.free(self._granting.granted)
                self._granting.expect(owed=False)
            elif replica.is_held:
                due = replica.hold_until
        with trio.move_on_at(due):
            await changed.wait()
