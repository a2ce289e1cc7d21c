"""Commits: the catalog kept in step with the journal.

LMDB makes durable what changed since the last commit, as of a change and of a record. Where a commit fails,
LMDB's transaction is gone with all that it held: the rows come back from the journal, and what only memory
held from memory. A catalog that is being copied has no journal: what its transaction held is asked for again.
"""

import logging

from fusemirror.change import decode_change
from fusemirror.errors import DiskFailed, DiskFull
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import CATALOG_CHANGES_PER_COMMIT_MAX, CATALOG_CHANGES_PER_COMMIT_SHORT
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.clock import Clock
from fusemirror.volume.journal import Journal
from fusemirror.volume.space import Space

_log = logging.getLogger(__name__)


class Commits:
    """Commits the catalog of one volume; `due_at` is how many changes it may hold before that."""

    def __init__(self, catalog: Catalog, journal: Journal, clock: Clock, space: Space) -> None:
        self._catalog = catalog
        self._journal = journal
        self._clock = clock
        self._space = space
        self.due_at = CATALOG_CHANGES_PER_COMMIT_MAX

    def commit(self, number: ChangeNumber) -> None:
        """On return the catalog is durable, as of change `number`. DiskFailed: nothing is lost, and it may be
        tried again.
        """
        if self._catalog.copying:
            try:
                self._catalog.commit_unfinished()
            except DiskFailed:
                self._catalog.rollback()
                raise
            return
        if self._catalog.changes_since_commit == 0:
            return
        # Or a power cut could leave a catalog that holds changes which no journal tells of.
        self._journal.sync()
        record = self._journal.last_number
        assert self._journal.durable_number >= record, "the journal is durable before the catalog"
        assert number >= record, "a record is of a change that was applied"
        try:
            self._catalog.commit(number, record, self._clock.newest_ns)
        except DiskFailed:
            self.rebuild()
            raise
        self.due_at = self._changes_per_commit()

    def commit_or_later(self, number: ChangeNumber) -> None:
        """`commit`, unless the disk is full: the change itself is safe in the journal, and the timer's commit
        reports to who can act. DiskFull while copying; DiskFailed.
        """
        try:
            self.commit(number)
        except DiskFull as error:
            if self._catalog.copying:
                raise
            _log.warning("%s", error)
            self.due_at = self._catalog.changes_since_commit + self._changes_per_commit()

    def rebuild(self) -> None:
        """LMDB lost its transaction: put again what the journal holds, and what only memory held.

        DiskFailed.
        """
        unsaved = self._catalog.rollback()
        for number, payload in self._journal.records(self._catalog.journal_number):
            change = decode_change(payload)
            if change.rows:
                self._catalog.apply_rows(change.rows, number)
        for inode in unsaved:
            # Back into the cache, with its attributes, unless it has gone.
            if self._catalog.inode(inode.number) is not None:
                self._catalog.touch(inode)

    def _changes_per_commit(self) -> int:
        """A commit needs room for every page that it changes."""
        return CATALOG_CHANGES_PER_COMMIT_SHORT if self._space.short else CATALOG_CHANGES_PER_COMMIT_MAX
