"""Recovery: what is done at opening, by what the last process left.

What may be wrong, and which part tells what is right:

- Rows that the catalog had not committed stand in the journal: they are put again, in every case.
- Size and times that only memory held stand in the images that were written to. A mark was written before
  each of those writes, so the marked images tell, unless marks were lost: then any image may.
- A data change with a record may have been cut short by the end of the process, the last one only: the image
  tells whether it took effect (`LAST_RECORDS`).
- What was written and not synced is in the page cache still, unless the power went. Then nothing that was not
  synced can be relied on, and everything is compared with the peer's copy.

`RECOVERIES` says which of it is done. Every step may be done again after a crash: that the volume is in use
is noted last, so that another crash finds what this one left.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

import msgspec

from fusemirror.change import (
    NEWEST_TAG,
    AllocateChange,
    AnyChange,
    CopyChange,
    DataChange,
    NamespaceChange,
    TruncateChange,
    WriteChange,
    decode_change,
    tag_of,
)
from fusemirror.errors import VolumeDamaged, VolumeFormat
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import CATALOG_CHANGES_PER_COMMIT_MAX
from fusemirror.volume.durable import unused
from fusemirror.volume.effects import CONTENT_NOTE, content_note, removed_inodes
from fusemirror.volume.identity import Shutdown, boot_id
from fusemirror.volume.images import NO_IMAGE, ImageFacts, Images
from fusemirror.volume.journal import Record
from fusemirror.volume.parts import Parts, Recovery
from fusemirror.volume.requests_done import RequestsDone, done_by, load_requests

_log = logging.getLogger(__name__)


# --- how the last process ended, and what is done about it ------------------------------------------------


class LastEnd(Enum):
    """How the process that had the volume open last came to its end."""

    CLEAN = auto()
    """It closed the volume in good order."""
    KILLED = auto()
    """It was killed, and the kernel still has all that it wrote."""
    POWER_CUT = auto()
    """The host was started anew since: what was not synced may be lost."""
    UNKNOWN = auto()
    """Nobody says, as after a repair that made a part of the volume anew; it counts as a power cut."""


class Scope(Enum):
    """Which images a step concerns."""

    NONE = auto()
    MARKED = auto()
    ALL = auto()


class Plan(NamedTuple):
    """What recovery does besides putting records again."""

    compare_all: bool
    """Every image and row is compared with the peer's."""
    sync: Scope
    """Their next sync makes durable what the last process wrote to them, too."""
    attributes: Scope
    """Size and times of the rows are taken from them."""
    strays: bool
    """An image of no file goes to lost-images."""


# The columns, each a value or None where it does not matter: how the last process ended; whether marks were
# lost; whether images tell what rows lack (not on a backup whose images wait for their content).
Columns = tuple[LastEnd | None, bool | None, bool | None]

RECOVERIES: tuple[tuple[Columns, Plan], ...] = (
    # Closing made everything durable and the catalog complete.
    ((LastEnd.CLEAN, False, None), Plan(False, Scope.NONE, Scope.NONE, False)),
    # Closing synced the marks: they were lost on the disk since, and which images differ is unknown.
    ((LastEnd.CLEAN, True, None), Plan(True, Scope.NONE, Scope.NONE, False)),
    # A killed process had marked each image before it wrote to it.
    ((LastEnd.KILLED, False, True), Plan(False, Scope.MARKED, Scope.MARKED, False)),
    # The rows came from the primary and are right; its images are still on their way.
    ((LastEnd.KILLED, False, False), Plan(False, Scope.MARKED, Scope.NONE, False)),
    # Any image may be one of those written to.
    ((LastEnd.KILLED, True, True), Plan(True, Scope.ALL, Scope.ALL, False)),
    ((LastEnd.KILLED, True, False), Plan(True, Scope.ALL, Scope.NONE, False)),
    # Nothing is left in the page cache that a sync could save. Marks were never synced, and tell nothing. An
    # image may have survived that its file's making did not: another file will get its number, and must not
    # begin with its bytes.
    ((LastEnd.POWER_CUT, None, True), Plan(True, Scope.NONE, Scope.ALL, True)),
    ((LastEnd.POWER_CUT, None, False), Plan(True, Scope.NONE, Scope.NONE, False)),
    # `check` may have made the catalog anew, and finds the files of images without a row itself.
    ((LastEnd.UNKNOWN, None, True), Plan(True, Scope.NONE, Scope.ALL, False)),
    ((LastEnd.UNKNOWN, None, False), Plan(True, Scope.NONE, Scope.NONE, False)),
)


def plan_of(ended: LastEnd, *, marks_lost: bool, images_tell: bool) -> Plan:
    """What is done: exactly one row of the table matches."""
    found = (ended, marks_lost, images_tell)
    # The first row that matches is the only one: tests/volume/test_recovery.py asks for every combination.
    for columns, plan in RECOVERIES:
        if all(expected is None or expected == fact for expected, fact in zip(columns, found, strict=True)):
            return plan
    raise AssertionError("every combination has its row")


# --- the last data change of the journal ------------------------------------------------------------------


class Effect(Enum):
    """What became of the last data change of the journal."""

    WHOLE = auto()
    """All was done: times are set last."""
    NO_TIMES = auto()
    """Only the times are missing."""
    NONE = auto()
    """It is not done, or not known to be: it is taken back, and doing it again is right."""


class ImageEvidence(Enum):
    """How an image tells of a data change."""

    GROWING_WRITE = auto()
    WRITE_WITHIN = auto()
    TRUNCATION = auto()
    ALLOCATION_OR_COPY = auto()


# The columns: the kind; whether the image's ctime is the change's or later; whether the image is as it would
# be afterwards: it has grown to the end of the write, holds its bytes, or has got the new size.
RecordColumns = tuple[ImageEvidence | None, bool | None, bool | None]

LAST_RECORDS: tuple[tuple[RecordColumns, Effect], ...] = (
    ((None, True, None), Effect.WHOLE),
    # A file grows behind its bytes, so all of them are there.
    ((ImageEvidence.GROWING_WRITE, False, True), Effect.NO_TIMES),
    # A write that grew the file halfway is cut off, or it would append behind its own beginning.
    ((ImageEvidence.GROWING_WRITE, False, False), Effect.NONE),
    # By a checksum of the bytes, so it does not matter who wrote them: what was to be there is there.
    ((ImageEvidence.WRITE_WITHIN, False, True), Effect.NO_TIMES),
    ((ImageEvidence.WRITE_WITHIN, False, False), Effect.NONE),
    # A size is set whole or not at all: nothing is ever to be cut back.
    ((ImageEvidence.TRUNCATION, False, True), Effect.NO_TIMES),
    ((ImageEvidence.TRUNCATION, False, False), Effect.NONE),
    # Nothing tells whether room was given, a hole made, or all was copied. Doing it again is right, once what
    # it added at the end is cut off.
    ((ImageEvidence.ALLOCATION_OR_COPY, False, None), Effect.NONE),
)


def effect_of(change: DataChange, facts: ImageFacts, content: bytes, *, note: int) -> Effect:
    """What became of the last data change of the journal. `content` is what the image has where a write
    belongs; `note` is that of the record.
    """
    # What is looked at is cheap, and never more than the one image that the last record names.
    if isinstance(change, AllocateChange | CopyChange):
        kind, is_there = ImageEvidence.ALLOCATION_OR_COPY, False
    elif isinstance(change, TruncateChange):
        kind, is_there = ImageEvidence.TRUNCATION, facts.size == change.size != note
    elif note >= CONTENT_NOTE:
        kind, is_there = ImageEvidence.WRITE_WITHIN, content_note(content) == note
    else:
        grown = facts.size > note and facts.size >= change.offset + change.length
        kind, is_there = ImageEvidence.GROWING_WRITE, grown
    # Times are set last of all, and the image was made older than its change before (`Images.make_older`):
    # a time that is reached proves all that came before it.
    found = (kind, facts.ctime_ns >= change.time_ns, is_there)
    for columns, effect in LAST_RECORDS:
        if all(expected is None or expected == fact for expected, fact in zip(columns, found, strict=True)):
            return effect
    raise AssertionError("every combination has its row")


# --- doing it -----------------------------------------------------------------------------------------------


class Recovered(NamedTuple):
    """Where the volume stands after recovery."""

    number: ChangeNumber
    """The last change applied. One that did not take effect keeps its number: none is given twice."""
    requests_done: RequestsDone
    """The peer's requests that took effect or were refused for good, as records say."""


@dataclass
class _Replay:
    """What the journal's records say, after those that the catalog lacked were put again."""

    replayed: int = 0
    removed: list[InodeNumber] = field(default_factory=list)  # inodes that any record removed
    requests_done: RequestsDone = field(default_factory=RequestsDone)
    last: tuple[DataChange, Record] | None = (
        None  # the last record where it is of data: its rows are for later
    )


def recover(parts: Parts, state: Shutdown) -> Recovered:
    """Bring catalog and images to where the last process left them; see the module.

    VolumeFormat, VolumeDamaged, DiskFailed, OSError: it is to be done again.
    """
    home, journal, catalog = parts.home, parts.journal, parts.catalog
    same_boot = state.boot_id == boot_id()
    if journal.last_number < catalog.journal_number:
        # The journal is durable before the catalog that holds its records: no crash of ours leaves that. What
        # the lost records said is in the catalog, but for what the images were to be judged by.
        _log.warning("volume %s: the journal lost records; everything is compared", home.directory)
        journal.restart(catalog.journal_number)
        home.update_identity({"compare_all": True, "peers": home.identity.peers_in_doubt})
    assert journal.last_number >= catalog.journal_number, "the journal reaches as far as the catalog"
    # A data change without a record may have had a higher number and died with it: the peer may hold that,
    # and says so when the hosts meet (`Volume.advance`).
    number = max(catalog.number, journal.last_number)
    marks_lost = parts.regions.marks_lost
    plan = plan_of(_ended(state), marks_lost=marks_lost, images_tell=home.identity.images_tell)
    # Noted before anything is put right: a crash in the middle of recovery must not forget it.
    if plan.compare_all:
        home.update_identity({"compare_all": True})
    replay = _replay(parts)
    in_doubt = None
    if not state.clean:
        if plan.sync is not Scope.NONE:
            marked: Iterable[InodeNumber] = parts.regions.inodes()
            # The page cache still has what the killed process wrote. Nobody knows that it is unsynced
            # unless it is said here, and the next fsync would call durable what is not.
            parts.images.unsynced.inherit(parts.images.numbers() if plan.sync is Scope.ALL else marked)
        if replay.last is not None:
            change, record = replay.last
            if _took_effect(parts, change, record):
                replay.replayed += _put_again(parts, change, record)
            else:
                in_doubt = change
                # Or whoever asks again would be told that it is done (G4).
                replay.requests_done.pop(change.request, None)
        for inode in replay.removed:
            parts.images.discard(inode)
        if plan.attributes is not Scope.NONE:
            recover_attributes(parts, number, everything=plan.attributes is Scope.ALL)
        if plan.strays:
            _quarantine_strays(parts)
        # All that was put again is durable before the volume says that it is open: the next recovery may
        # begin where this one ended.
        parts.commits.commit(number)
    # Last: until here another crash must find what this one left.
    Shutdown(clean=False, boot_id=boot_id()).store(home.directory)
    home.recovery = Recovery(state.clean, same_boot, replay.replayed, journal.cut_bytes, in_doubt)
    return Recovered(number, replay.requests_done)


def _ended(state: Shutdown) -> LastEnd:
    if state.clean:
        return LastEnd.CLEAN
    if not state.lost_power:
        return LastEnd.KILLED
    return LastEnd.POWER_CUT if state.boot_id else LastEnd.UNKNOWN


def _replay(parts: Parts) -> _Replay:
    """Put records that the catalog lacks, but for the last where it is of data."""
    kept = load_requests(parts.home.directory)
    if kept is None:
        parts.home.update_identity({"peers": parts.home.identity.peers_in_doubt})
    replay = _Replay(requests_done=kept or RequestsDone())
    # From the first record and not from the catalog's on: requests that took effect stand in no row, and an
    # image may have outlived the row that a record removed.
    for record in parts.journal.notes(0):
        change = _decode(parts, record)
        if record.number > parts.catalog.journal_number or not parts.catalog.time_ns:
            # Or the next change could get the time of an earlier one, and recovery tells by times which of
            # an image and its row is the later.
            parts.clock.follow(change)
        if change.request:
            replay.requests_done[change.request] = done_by(change)
        # A record stands behind it, so the process had gone on: only the last one may be half done.
        if replay.last is not None:
            replay.replayed += _put_again(parts, *replay.last)
        if isinstance(change, NamespaceChange):
            replay.last = None
            replay.removed.extend(removed_inodes(change))
            replay.replayed += _put_again(parts, change, record)
        else:
            replay.last = change, record
    return replay


def _decode(parts: Parts, record: Record) -> AnyChange:
    directory = parts.home.directory
    try:
        return decode_change(record.payload)
    except msgspec.DecodeError as error:
        tag = tag_of(record.payload)
        # Written by a later version and no damage, for which a repair would drop it.
        if tag > NEWEST_TAG:
            raise VolumeFormat(directory, f"{tag} of its changes", NEWEST_TAG) from error
        raise VolumeDamaged(directory, f"journal: record {record.number}: {error}") from error


def _put_again(parts: Parts, change: AnyChange, record: Record) -> int:
    """Put a record's rows unless the catalog has them; how many records that are. DiskFailed."""
    # Rows are whole values, so to put one again would do no harm; but an older one must not go over a
    # newer.
    if record.number <= parts.catalog.journal_number:
        return 0
    if change.rows:
        parts.catalog.apply_rows(change.rows)
    return int(isinstance(change, NamespaceChange) or bool(change.rows))


def _took_effect(parts: Parts, change: DataChange, record: Record) -> bool:
    """Whether the last data change of the journal took effect; if not, what it began is undone on return, and
    its record is gone: the next opening would take it for done. DiskFailed, OSError.
    """
    images = parts.images
    facts = images.facts(change.inode) or NO_IMAGE
    content = b""
    if isinstance(change, WriteChange):
        content = images.read(change.inode, change.offset, change.length)
    # Whoever asked for it sends it again if it has no answer, so to be unsure is to undo it.
    effect = effect_of(change, facts, content, note=record.note)
    if effect is Effect.NO_TIMES:
        images.set_times(change.inode, change.time_ns, change.time_ns)
    if effect is not Effect.NONE:
        return True
    if not isinstance(change, TruncateChange):
        images.cut(change.inode, record.note)  # nothing, where the note is no size
        images.set_times(change.inode, facts.ctime_ns, facts.ctime_ns)
    # The record goes behind all that undoes it: after a crash in between, the next opening finds it and comes
    # here.
    parts.regions.mark_whole(change.inode)  # its size is not what its row says
    parts.journal.retract(change.number)
    parts.catalog.note_checkpoints(*parts.catalog.checkpoints)  # nor may it go on telling of the record
    return False


def recover_attributes(parts: Parts, number: ChangeNumber, *, everything: bool) -> None:
    """Take size and times that only memory held from the images that were written to; from all, with
    `everything`. `number` is the last change applied. DiskFailed, OSError.
    """
    catalog, clock = parts.catalog, parts.clock
    marked = parts.regions.inodes()
    concerned: Iterator[InodeNumber]
    concerned = (inode.number for inode in catalog.tables.inodes()) if everything else iter(marked)
    for inode_number in concerned:
        inode = catalog.inode(inode_number)
        if inode is None or not inode.is_regular:
            continue
        facts = parts.images.facts(inode_number) or NO_IMAGE
        clock.follow_image(facts.ctime_ns)
        if clock.is_newer(facts.ctime_ns, inode.ctime_ns):
            # A data change sets both alike. The image's mtime moves by itself in a write cut short.
            inode.mtime_ns = inode.ctime_ns = facts.ctime_ns
        elif facts.size == inode.size:
            continue
        # The image is right and the row is late: sizes reach the catalog only with a commit.
        inode.size = facts.size
        catalog.touch(inode)
        if catalog.changes_since_commit >= CATALOG_CHANGES_PER_COMMIT_MAX:
            parts.commits.commit(number)


def _quarantine_strays(parts: Parts) -> None:
    for number in list(parts.images.numbers()):
        inode = parts.catalog.inode(number)
        if inode is None or not inode.is_regular:
            directory = parts.home.directory
            _log.info("volume %s: image %x of no file goes to lost-images", directory, number)
            quarantine_image(directory, parts.images, number)


def quarantine_image(directory: Path, images: Images, inode: InodeNumber) -> None:
    """Move an image that no inode has into VOLUME_DIR/lost-images, unless it is empty. OSError."""
    if not images.size(inode):
        images.remove(inode)
        return
    # Moved and not removed: it may be all that is left of a file (G6).
    lost = directory / "lost-images"
    lost.mkdir(mode=0o700, exist_ok=True)
    images.release(inode)
    images.path(inode).rename(unused(lost / f"{inode:x}"))
