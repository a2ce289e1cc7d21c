"""Upkeep of the primary: the names are made durable, inodes without names end, the clock is followed."""

import logging
from contextlib import suppress

import trio

from fusemirror.control import committing
from fusemirror.control.admission import Admission
from fusemirror.control.decisions import Decisions
from fusemirror.control.host_state import HostState
from fusemirror.control.purging import purge_rows
from fusemirror.errors import (
    DiskFailed,
)
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    PURGE_AFTER_S,
    PURGE_BATCH_MAX,
    PURGE_LOOKS_PER_S,
    PURGE_RECORDS_MAX,
    REFUSALS_PER_TURN,
)
from fusemirror.mirror.sending import Mirror

log = logging.getLogger(__name__)


class Upkeep:
    """What a primary does by itself, in the background. FusemirrorError, OSError: it is tried again."""

    def __init__(self, host: HostState, mirror: Mirror, admission: Admission, decisions: Decisions) -> None:
        self._host = host
        self._volume = host.volume
        self._mirror = mirror
        self._admission = admission
        self._decisions = decisions
        self._orphans_since: dict[InodeNumber, float] = {}

    async def commit_in_time(self) -> None:
        await committing.wait_commit_due(self._host)
        self.follow_clock()
        await committing.commit_names(self._host, self._mirror.durability.peer_durable)
        with suppress(OSError, DiskFailed):  # no room yet, or the disk has failed, which is known
            while self._decisions.unrecorded and self._admission.may_make_changes:
                self._decisions.record_some(REFUSALS_PER_TURN)
                await trio.lowlevel.checkpoint()  # a change of another task records the rest first

    def follow_clock(self) -> None:
        """Where the newest change is too far ahead of this host's clock, set it back.

        Not where that would be the first change without the backup: it is done with the one that is.
        """
        self._host.clocks.look()
        if self._volume.clock.set_back() is None:
            return
        if not self._admission.may_make_changes or self._mirror.must_begin_generation:
            return
        try:
            self._mirror.record(())
        except (OSError, DiskFailed) as error:
            log.warning("changes do not follow this host's clock yet, which will be tried again: %s", error)

    async def purge_in_time(self) -> None:
        await trio.sleep(max(PURGE_AFTER_S / 2, len(self._orphans_since) / PURGE_LOOKS_PER_S))
        await self.purge()

    async def purge(self) -> None:
        """End inodes without names that neither host has open (`mirror/holdings.py`).

        They stay for `PURGE_AFTER_S`: a program on either host may have looked the name up just
        before it went, and may open the inode yet, as it could on a local disk.
        """
        if self._volume.health.failure is not None:
            return
        now, since = trio.current_time(), self._orphans_since
        self._orphans_since = {inode: since.get(inode, now) for inode in self._volume.catalog.orphans()}
        old = [inode for inode, since_s in self._orphans_since.items() if now - since_s >= PURGE_AFTER_S]
        for start in range(0, len(old), PURGE_BATCH_MAX):
            batch = self._host.open_inodes.let_go(old[start : start + PURGE_BATCH_MAX])
            while batch and await self._purge_some(batch):
                if self._mirror.congested:
                    await self._mirror.wait_room()
            await trio.lowlevel.checkpoint()

    async def _purge_some(self, inodes: list[InodeNumber]) -> bool:
        """End those of these inodes that neither host has open; whether some are left of what may go."""
        not_held = await self._mirror.not_held(inodes)
        # No program here opens one between this look and the purge: there is no checkpoint.
        free = [inode for inode in not_held if inode not in self._host.open_inodes]
        if not self._admission.may_make_changes or self._mirror.must_begin_generation:
            return False
        for _ in range(PURGE_RECORDS_MAX):
            rows = purge_rows(self._volume.catalog, free)
            if not rows:
                return False
            self._decisions.publish_rows(rows)
        return True
