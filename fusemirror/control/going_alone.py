"""Going alone: asks the witness when this host would go on without the other, and gives back what it said.

The rule stands in `witness/permission.py`. While both hosts are there and equal the witness is looked at only
so that `status` can say whether it is there.
"""

import logging
import math
from collections.abc import Callable

import trio

from fusemirror.channel.link import Link
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.roles import Roles
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import FusemirrorError
from fusemirror.limits import HEARTBEATS_PER_TIMEOUT, WITNESS_LOOK_S
from fusemirror.mirror.states import BackupState, PrimaryState
from fusemirror.witness.permission import Permission

log = logging.getLogger(__name__)

_LEASES = 2  # so long a backup waits for its primary, which asks the witness after one


class GoingAlone:
    """See the module. One task for both roles; nothing to do where there is no witness."""

    def __init__(
        self,
        roles: Roles,
        permission: Permission,
        peer_timeout_s: float,
        meet_anew: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`meet_anew` lets the two hosts say Hello again."""
        self._roles = roles
        self._meet_anew = meet_anew
        self._permission = permission
        self._peer_timeout_s = peer_timeout_s
        self._apart_since = 0.0
        self._unit: ControlUnit | None = None
        self._looked_at = -math.inf
        permission.agreed = roles.volume.identity.witness

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask whenever it is time to, for ever. Cancelled, the record stays as it is or as was asked."""
        task_status.started()
        while self._permission.needed:
            await self._act(self._roles.unit)
            await trio.sleep(self._peer_timeout_s / HEARTBEATS_PER_TIMEOUT)

    async def _act(self, unit: ControlUnit) -> None:
        if unit.volume.health.failed.is_set():
            return  # this host serves nothing, and leaves the other to go on
        self._compare_witnesses(unit.link)
        now = trio.current_time()
        if unit is not self._unit or unit.link is not None:
            self._unit, self._apart_since = unit, now
        if self._is_normal():
            self._permission.overridden = False
        if isinstance(unit, PrimaryUnit) and unit.mirror.wants_permission:
            if await self._permission.ask(seize=self._permission.overridden):
                unit.mirror.permission_changed()
        elif isinstance(unit, BackupUnit) and self._may_take_over(unit, now):
            await self._take_over()
        elif now - self._looked_at >= WITNESS_LOOK_S or (self._permission.held and self._is_normal()):
            self._looked_at = now
            await self._permission.give_back(self._is_normal)

    def _compare_witnesses(self, link: Link | None) -> None:
        """Two hosts that are linked, and know their witnesses, go by one: note which. Where this host said in
        its Hello that it does not know its own, or named another, they say Hello again. OSError."""
        permission, own = self._permission, self._permission.identity
        if link is None or not own:
            return
        if link.peer.witness_identity == own:
            if permission.agreed != own:
                self._roles.volume.update_identity(witness=own)
                permission.agreed = own
        elif link.mirror.ours.witness_identity != own:
            self._meet_anew("this host knows its witness now")

    def _may_take_over(self, unit: BackupUnit, now: float) -> bool:
        if unit.applier.state is not BackupState.DISCONNECTED:
            return False
        waited = now - self._apart_since >= _LEASES * self._peer_timeout_s
        return waited and self._roles.takeover_report()["refused"] is None

    async def _take_over(self) -> None:
        """Become the primary if the witness and the copy allow it. The other may be met again meanwhile."""
        try:
            await self._roles.takeover(force=False)
        except (FusemirrorError, OSError) as error:
            log.debug("this host does not take over: %s", error)

    def _is_normal(self) -> bool:
        unit = self._roles.unit
        if isinstance(unit, PrimaryUnit):
            return unit.mirror.state is PrimaryState.NORMAL
        return isinstance(unit, BackupUnit) and unit.applier.state is BackupState.NORMAL
