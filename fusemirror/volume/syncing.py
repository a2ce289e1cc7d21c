"""Syncing: making what was written durable, and letting go of records that nobody needs after that."""

from collections.abc import Collection

import trio

from fusemirror.errors import DiskFailed
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import JOURNAL_BYTES_MAX, JOURNAL_SEGMENT_BYTES
from fusemirror.volume.health import noting, noting_async
from fusemirror.volume.parts import Parts
from fusemirror.volume.requests_done import RequestsDone, store_requests


class _Flush:
    """Of one image, under way: it makes durable what was written before it began."""

    def __init__(self, serial: int) -> None:
        self.serial = serial  # of the last change that it covers
        self.over = trio.Event()
        self.has_ended = False  # and not been given up
        self.error: OSError | DiskFailed | None = None


class Syncing:
    """That of one volume."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._flushes: dict[InodeNumber, _Flush] = {}
        self.health = parts.health

    @noting_async
    async def flush(self, inode: InodeNumber) -> None:
        """On return what was written to the inode, and all of the namespace, is durable; inode 0 is none.

        Without a checkpoint where there is nothing to do. Cancelled, it may have done all or a part.
        DiskFailed, OSError.
        """
        journal = self._parts.journal
        wanted, record = self._parts.images.unsynced.dirty.get(inode), journal.last_number
        # What is under way may lack what was written since it began. So whoever comes meanwhile waits for its
        # end, and shares the next one with all others that do.
        while wanted is not None and (under_way := self._flushes.get(inode)) is not None:
            await under_way.over.wait()
            if under_way.serial >= wanted and under_way.has_ended:
                if under_way.error is not None:  # it is everybody's, and the kernel tells it once
                    raise under_way.error
                break
        else:
            if wanted is not None:
                await self._flush_image(inode)
        if journal.durable_number < record:
            await journal.sync_beside()

    @noting_async
    async def flush_all(self) -> None:
        """On return everything that was applied before the call is durable. Images whose removal is durable
        are then removed. Cancelled, it may have done all or a part. DiskFailed, OSError.
        """
        await self._flush(dict(self._parts.images.unsynced.dirty))
        await self._parts.removal.remove()

    async def _flush_image(self, inode: InodeNumber) -> None:
        """Make an image durable, and the journal beside it where that is not: a power cut may take either
        without the other whatever their order is, as the system writes both when it likes."""
        images, journal = self._parts.images, self._parts.journal
        serial = images.unsynced.dirty.get(inode)
        if serial is None:
            return  # another flush of everything has come before
        flush = self._flushes[inode] = _Flush(serial)
        try:
            begun = images.begin_sync(inode)
            if begun is None:
                await self._flush({inode: serial})
            else:
                try:
                    if not journal.is_durable:
                        await journal.sync_beside()
                finally:
                    # Whatever is cancelled, or fails beside: the kernel tells an error of the image once.
                    await begun.wait_through()
                images.unsynced.synced({inode: serial})
            flush.has_ended = True
        except (OSError, DiskFailed) as error:
            flush.has_ended, flush.error = True, error
            raise
        finally:
            del self._flushes[inode]
            flush.over.set()

    async def _flush(self, dirty: dict[InodeNumber, int]) -> None:
        if dirty or not self._parts.journal.is_durable:
            await self._parts.seams.run_blocking(self.sync, dirty)
            self._parts.images.unsynced.synced(dirty)

    def sync(self, dirty: Collection[InodeNumber]) -> None:
        """Sync these images, and the journal. Thread-safe. DiskFailed, OSError."""
        self._parts.images.unsynced.sync_all(dirty)
        self._parts.journal.sync()

    @noting
    def trim(
        self,
        peer_durable: ChangeNumber,
        requests_done: RequestsDone | None = None,
    ) -> None:
        """Let go of records that nobody needs: the peer has them durably, the catalog holds them, and they
        answered none of `requests_done`, which the peer may ask for again.

        Beyond JOURNAL_BYTES_MAX, and on a full disk at once, the peer is not waited for; what records said of
        `requests_done` is durable in a file then. OSError.
        """
        held = self._parts.catalog.journal_number
        if self._parts.removal.oldest is not None:
            # A record that removed an inode is needed until the image is removed too.
            held = min(held, ChangeNumber(self._parts.removal.oldest - 1))
        if requests_done:
            # The record of a request that may be sent again says that it was done, after a restart too.
            oldest = next(iter(requests_done.values()))[0]
            peer_durable = min(peer_durable, ChangeNumber(oldest - 1))
        journal = self._parts.journal
        journal.trim(min(peer_durable, held))
        keep_bytes = JOURNAL_SEGMENT_BYTES if self._parts.space.short else JOURNAL_BYTES_MAX
        if requests_done and journal.can_trim(held, keep_bytes):
            store_requests(self._parts.home.directory, requests_done)
        journal.trim(held, keep_bytes=keep_bytes)
