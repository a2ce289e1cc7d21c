"""A new catalog: copied from the peer into a place beside, and put in the place of the old at its end.

The copy stands in `catalog.new`. What an opening finds there says how far it came:

    nothing, or no `catalog.new`       no copy was under way
    a catalog that has no place        it was not ended: it is thrown away, and the old catalog counts
    a catalog that has its place       it was ended: the images of no inode in it go, the journal begins anew
                                       behind its last record, and it becomes the catalog. Each step may
                                       be done again

The place (`Meta.has_place`) is written by the copy's last commit, so a crash finds one of the two.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusemirror.errors import DiskFailed, FusemirrorError, VolumeDamaged
from fusemirror.identifiers import ChangeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.health import noting
from fusemirror.volume.images import Images
from fusemirror.volume.journal import Journal
from fusemirror.volume.parts import Parts

_NEW, _CATALOG = "catalog.new", "catalog"


@noting
def begin(parts: Parts) -> None:
    """From now on rows go into a new, empty catalog; a copy under way is thrown away.

    Until `finish` a crash leaves the old catalog and its journal, which the identity says are incomplete.
    VolumeError, DiskFailed, OSError: of this copy comes nothing, and another may begin.
    """
    assert not parts.home.identity.complete, "a crash from here on leaves a catalog known to be incomplete"
    catalog = parts.catalog
    fresh = parts.home.directory / _NEW
    # The old one is closed and stays whole where it is: it is what a crash comes back to.
    catalog.close()
    # From here on nothing is journalled: the records would be put into the old catalog, if a crash comes back
    # to that.
    catalog.copying = True
    parts.removal.forget()  # whatever is in no catalog goes at the end
    with _reopening(parts, _CATALOG):
        # Nothing of an earlier copy may be in it: rows that the peer has removed since would come back.
        _remove_tree(fresh)
        catalog.open(fresh, create=True)


@noting
def finish(parts: Parts, number: ChangeNumber, journal_number: ChangeNumber, time_ns: int) -> None:
    """On return the new catalog durably stands in the place of the old, complete up to `number`, and to the
    peer's record `journal_number`. `time_ns`: the time of change `number`; 0 where it is not known.

    Images of no inode are removed; the journal is empty. DiskFailed, OSError: the next opening finishes it or
    goes back, and until then another copy may begin.
    """
    catalog, clock = parts.catalog, parts.clock
    assert catalog.copying, "a copy was begun"
    clock.restart(time_ns)
    # The place is in the same transaction as the last rows, so an opening that finds it has all of them.
    # From here on it will be finished.
    try:
        catalog.commit(number, journal_number, clock.newest_ns)
    except DiskFailed:
        catalog.rollback()  # what the transaction held is gone, and the copy goes on or begins anew
        raise
    catalog.close()
    with _reopening(parts, _NEW, _CATALOG):
        finish_or_discard(parts.home.directory, parts.journal, parts.images)
        catalog.open(parts.home.directory / _CATALOG)
    catalog.copying = False
    clock.correct()


@noting
def abandon(parts: Parts) -> None:
    """Go back to the catalog that was there before a copy under way. VolumeError, DiskFailed, OSError: the
    copy may still be there, and the next opening decides; nothing may be changed before that.
    """
    catalog = parts.catalog
    catalog.close()
    with _reopening(parts, _CATALOG):
        _remove_tree(parts.home.directory / _NEW)
        catalog.open(parts.home.directory / _CATALOG)
    catalog.copying = False


@contextmanager
def _reopening(parts: Parts, *names: str) -> Iterator[None]:
    """For what opens another catalog in the place of one that is closed. After an error the first of
    `names` that is there is opened; where that fails too this host has none, and stops serving."""
    try:
        yield
    except (OSError, FusemirrorError):
        places = [parts.home.directory / name for name in names]
        # Whichever step failed, one of the two is whole: the old one until the new has its name.
        there = [place for place in places if place.is_dir()]
        try:
            parts.catalog.open(there[0] if there else places[-1])
        except FusemirrorError as error:
            parts.health.fail(str(error))
            raise
        raise


def finish_or_discard(directory: Path, journal: Journal, images: Images) -> None:
    """Finish a copy whose new catalog is complete, throw away one that is not. DiskFailed, OSError."""
    fresh, old = directory / _NEW, directory / _CATALOG
    if not fresh.is_dir():
        return
    number = _take_over_images(fresh, images) if (fresh / "data.mdb").exists() else None
    if number is None:
        shutil.rmtree(fresh)
        return
    # Before the old catalog goes: records of the old one, put into the new, would undo what the copy
    # brought.
    journal.restart(number)
    # Until the rename there is only the new one, and every opening comes here before it looks for a catalog.
    _remove_tree(old)
    # The name is the last step but for its durability. A crash before leaves `catalog.new` with its place,
    # and all of this is done once more.
    fresh.rename(old)
    sync_directory(directory)


def _remove_tree(directory: Path) -> None:
    """On return there is no such directory. OSError: some of it may be there still."""
    if directory.is_dir():
        shutil.rmtree(directory)


def _take_over_images(fresh: Path, images: Images) -> ChangeNumber | None:
    """Where the copied catalog stands, with images of no inode in it removed; None if it is unfinished."""
    try:
        catalog = Catalog(fresh)
    except VolumeDamaged:
        return None  # killed before its first commit
    try:
        if not catalog.meta.has_place:
            return None
        for number in images.numbers():
            inode = catalog.inode(number)
            # An empty file needs no image, and what an old one holds would be compared with nothing.
            if inode is None or not inode.is_regular or inode.size == 0:
                images.discard(number)
        return catalog.journal_number
    finally:
        catalog.close()
