"""Going alone: asks the witness when this host would go on without the other, and gives back what it said.

The rule stands in `witness/quorum.py`. While both hosts are there and equal the witness is looked at only
so that `status` can say whether it is there.
"""

import logging
import math
from collections.abc import Callable

import trio

from fusemirror.channel.link import Link
from fusemirror.control.host_state import HostState
from fusemirror.control.role import Role
from fusemirror.control.succession import Succession
from fusemirror.errors import FusemirrorError
from fusemirror.limits import HEARTBEATS_PER_TIMEOUT, WITNESS_LOOK_S
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)

_LEASES = 2  # so long a backup waits for its primary, which asks the witness after one


class Failover:
    """See the module. One task for both roles; nothing to do where there is no witness."""

    def __init__(
        self,
        succession: Succession,
        host: HostState,
        quorum: QuorumGrant,
        peer_timeout_s: float,
        meet_anew: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`meet_anew` lets the two hosts say Hello again."""
        self._succession = succession
        self._host = host
        self._meet_anew = meet_anew
        self._quorum = quorum
        self._peer_timeout_s = peer_timeout_s
        self._apart_since = 0.0
        self._role: Role | None = None
        self._looked_at = -math.inf
        quorum.agreed = host.volume.identity.witness

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask whenever it is time to, for ever. Cancelled, the record stays as it is or as was asked."""
        task_status.started()
        while self._quorum.needed:
            await self._act(self._succession.role)
            await trio.sleep(self._peer_timeout_s / HEARTBEATS_PER_TIMEOUT)

    async def _act(self, role: Role) -> None:
        if self._host.volume.health.failed.is_set():
            return  # this host serves nothing, and leaves the other to go on
        self._compare_witnesses(role.link)
        now = trio.current_time()
        if role is not self._role or role.link is not None:
            self._role, self._apart_since = role, now
        if self._is_normal():
            self._quorum.overridden = False
        if role.is_primary and role.degraded.wants_quorum:
            if await self._quorum.ask(seize=self._quorum.overridden):
                role.degraded.granted()
            else:
                role.degraded.refused()
            return
        if self._is_due_to_take_over(role, now):
            may = self._succession.takeover_report()["refused"] is None  # else the witness is not asked
            if not (may and await self._take_over()):
                role.degraded.refused()
            if may:
                return
        if now - self._looked_at >= WITNESS_LOOK_S or (self._quorum.held and self._is_normal()):
            self._looked_at = now
            await self._quorum.give_back(self._is_normal)

    def _compare_witnesses(self, link: Link | None) -> None:
        """Two hosts that are linked, and know their witnesses, go by one: note which. Where this host said in
        its Hello that it does not know its own, or named another, they say Hello again. OSError."""
        quorum, own = self._quorum, self._quorum.identity
        if link is None or not own:
            return
        if link.peer.witness_identity == own:
            if quorum.agreed != own:
                self._host.volume.update_identity(witness=own)
                quorum.agreed = own
        elif link.mirror.ours.witness_identity != own:
            self._meet_anew("this host knows its witness now")

    def _is_due_to_take_over(self, role: Role, now: float) -> bool:
        waited = now - self._apart_since >= _LEASES * self._peer_timeout_s
        return not role.is_primary and role.degraded.wants_quorum and waited

    async def _take_over(self) -> bool:
        """Become the primary if the witness allows it; whether it has. The other may be met meanwhile."""
        try:
            await self._succession.takeover(force=False)
        except (FusemirrorError, OSError) as error:
            log.debug("this host does not take over: %s", error)
            return False
        return True

    def _is_normal(self) -> bool:
        return self._succession.role.is_normal
