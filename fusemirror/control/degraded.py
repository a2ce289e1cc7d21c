"""Degraded operation: what a role does while the other host is away, and who may let it go on.

Only one of the two hosts may go on, or both would, each in a line of its own. So each role says whether it
wants to, and is told what the witness, or a person, says of that (`failover.py`, `succession.py`).
"""

from abc import ABC, abstractmethod

from fusemirror.control.life import RoleLife
from fusemirror.control.links import Links
from fusemirror.control.patience import Patience
from fusemirror.control.states import RoleState
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import BackupState


class Degraded(ABC):
    """One for each role; see the module."""

    @property
    @abstractmethod
    def acknowledges_alone(self) -> bool:
        """A primary that goes on without the other host."""

    @property
    @abstractmethod
    def wants_quorum(self) -> bool:
        """It would go on, or take over, without the other host, if that were permitted."""

    @abstractmethod
    def granted(self) -> None:
        """The witness, or a person, has said that this host may go on alone."""

    @abstractmethod
    def refused(self) -> None:
        """This host may not go on alone now, or its copy does not allow it. It is asked about again."""

    @abstractmethod
    async def wait_alone(self) -> None:
        """Return when a primary goes on alone, or has met the peer, or has retired; at once at a backup."""


class DegradedPrimary(Degraded):
    """A primary goes on by itself, once the lease of the backup is over and it is granted."""

    def __init__(self, life: RoleLife, links: Links, mirror: Mirror) -> None:
        self._life = life
        self._links = links
        self._mirror = mirror

    @property
    def acknowledges_alone(self) -> bool:
        return self._mirror.authority.acknowledges_alone

    @property
    def wants_quorum(self) -> bool:
        return self._mirror.authority.wants_quorum

    def granted(self) -> None:
        self._mirror.authority.look()

    def refused(self) -> None:
        self._mirror.authority.refuse()

    async def wait_alone(self) -> None:
        while (
            self._life.state is not RoleState.RETIRED
            and self._links.link is None
            and not self.acknowledges_alone
        ):
            await self._mirror.changed.wait()


class DegradedBackup(Degraded):
    """A backup never goes on alone: it becomes the primary, by a change of its role."""

    def __init__(self, applier: Applier, patience: Patience) -> None:
        self._applier = applier
        self._patience = patience

    @property
    def acknowledges_alone(self) -> bool:
        return False

    @property
    def wants_quorum(self) -> bool:
        return self._applier.state is BackupState.DISCONNECTED

    def granted(self) -> None:
        """It takes over by a change of its role."""

    def refused(self) -> None:
        self._patience.refuse()

    async def wait_alone(self) -> None:
        """It is none."""
