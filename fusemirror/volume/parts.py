"""Parts: what an open volume is made of. `Volume` and what works beside it share them."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fusemirror.change import DataChange
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.clock import Clock
from fusemirror.volume.commits import Commits
from fusemirror.volume.effects import Effects
from fusemirror.volume.health import Health
from fusemirror.volume.identity import Identity, VolumeLock
from fusemirror.volume.images import Images
from fusemirror.volume.journal import Journal
from fusemirror.volume.regions import Regions
from fusemirror.volume.removal import Removal
from fusemirror.volume.space import Space


@dataclass(frozen=True)
class Recovery:
    """What opening found and did. `change_in_doubt` did not take effect, whole or at all."""

    clean: bool = False
    same_boot: bool = False
    replayed: int = 0
    cut_bytes: int = 0
    change_in_doubt: DataChange | None = None


class Home:
    """The directory of a volume, which this process has locked: what it says of itself, how it was found."""

    def __init__(self, directory: Path) -> None:
        """VolumeInUse, VolumeMissing, VolumeFormat, VolumeDamaged, OSError."""
        self.directory = directory
        self._lock = VolumeLock(directory)
        self.identity = Identity.load(directory)
        self.recovery = Recovery()

    def update_identity(self, changes: dict[str, Any]) -> None:
        """On return the identity is durably changed. OSError."""
        identity = msgspec.structs.replace(self.identity, **changes)
        # By the term two hosts that say that they are the primary know which of them is: one that went back
        # would give the role to the host that has lost it.
        assert identity.term >= self.identity.term, "terms only grow"
        assert identity.pairing >= self.identity.pairing, "a host that was replaced stays replaced"
        if identity != self.identity:
            identity.store(self.directory)
            self.identity = identity

    def release(self) -> None:
        self._lock.release()


@dataclass(frozen=True)
class Parts:
    """Each of them belongs to one open volume."""

    home: Home
    seams: Seams
    health: Health
    images: Images
    journal: Journal
    regions: Regions
    catalog: Catalog
    space: Space
    clock: Clock
    commits: Commits
    removal: Removal
    effects: Effects
    undoing: ExitStack
    """Releases all of them once the volume is open, the newest first."""
