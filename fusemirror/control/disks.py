"""The disks of both hosts: how much room there is for programs, and whose disk is full.

A change is made on both, so there is as much room as the disk has that has less. Each host tells the other;
while the other is away, what it said last counts.
"""

import errno
import logging
import os
from contextlib import suppress
from typing import Any

import trio

from fusemirror.channel.link import Link
from fusemirror.errors import ConnectionLost, OperationFailed
from fusemirror.limits import SPACE_LOOK_INTERVAL_S
from fusemirror.protocol.messages import DiskSpace
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


class Disks:
    """What is known of both disks, whichever role this host has."""

    def __init__(self, volume: Volume) -> None:
        self.peer: DiskSpace | None = None
        """What the peer said last of its disk, over any link of this mount."""
        self._volume = volume
        self._told_full = self._told_peer_full = False  # in the log

    def hear(self, peer: DiskSpace) -> None:
        """The peer says how its disk is."""
        self.peer = peer

    def status(self) -> dict[str, Any]:
        """The field `disk` of the status."""
        health, theirs = self._volume.health, self.peer
        return {
            "full": self._volume.space.short,
            "failure": None if health.replaced else health.failure,
            "peer_full": None if theirs is None else theirs.full,
            "peer_available_bytes": None if theirs is None else theirs.available_bytes,
        }

    def own(self) -> DiskSpace:
        """What this host says of its disk. OSError."""
        found = self._volume.space.statvfs()
        return DiskSpace(
            size_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bfree * found.f_frsize,
            available_bytes=found.f_bavail * found.f_frsize,
            inodes=found.f_files,
            inodes_available=found.f_favail,
            full=self._volume.space.short,
        )

    def statvfs(self) -> os.statvfs_result:
        """What there is room for on both hosts: bytes by the disk that has fewer available, inodes likewise.
        While the peer is away, by what it said last. OperationFailed: this host's disk does not say."""
        try:
            own, theirs = self._volume.space.statvfs(), self.peer
        except OSError as error:
            self._volume.health.note(error)
            raise OperationFailed(error.errno or errno.EIO) from error
        if theirs is None:
            return own
        unit = own.f_frsize
        blocks, inodes = tuple(own[2:5]), tuple(own[5:8])
        if theirs.available_bytes < own.f_bavail * unit:
            sizes = (theirs.size_bytes, theirs.free_bytes, theirs.available_bytes)
            blocks = tuple(size // unit for size in sizes)
        if theirs.inodes and (not own.f_files or theirs.inodes_available < own.f_favail):
            inodes = (theirs.inodes, theirs.inodes_available, theirs.inodes_available)
        return os.statvfs_result((*own[:2], *blocks, *inodes, *own[8:]))

    async def tell(self, link: Link) -> None:
        """Tell the peer what the disk of this host has room for, whenever that has changed, until the link is
        lost."""
        if not link.peer.takes_disk_space:
            return
        told = None
        with suppress(ConnectionLost):
            while True:
                try:
                    space = self.own()
                except OSError as error:
                    self._volume.health.note(error)
                    return
                if space != told:
                    link.mirror.send(space)
                    told = space
                await trio.sleep(SPACE_LOOK_INTERVAL_S)

    def look(self) -> None:
        """Say in the log, once each time, which host's disk is full."""
        identity, theirs = self._volume.identity, self.peer
        own_full, peer_full = self._volume.space.short, theirs is not None and theirs.full
        for name, is_full, told in (
            (identity.host_name, own_full, self._told_full),
            (identity.only_peer.name, peer_full, self._told_peer_full),
        ):
            if is_full and not told:
                log.warning(
                    "the disk of %s is full: what needs room gets ENOSPC on both hosts; delete something, or "
                    "make that disk larger",
                    name,
                )
            elif told and not is_full:
                log.info("the disk of %s has room again", name)
        self._told_full, self._told_peer_full = own_full, peer_full
