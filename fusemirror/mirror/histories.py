"""What two volumes do when they meet: one table over where each stands in the order of changes.

A generation is a line of changes; a new one begins at the first change made without the peer. Each
volume knows its generations, newest first, with the number at which each began; they are a row of
its catalog, so that they travel as every row does. Source: DRBD's generation identifiers
(drbd.conf(5)); design.md G5, G6.
"""

from enum import Enum, auto

import msgspec

from fusemirror.change import Row as CatalogRow
from fusemirror.change import Table
from fusemirror.identifiers import ChangeNumber
from fusemirror.protocol.messages import Generation, History
from fusemirror.volume.volume import Volume

GENERATIONS_KEY = b"generations"
_GENERATIONS_KEPT_MAX = 64  # a peer that missed more lines than these is told apart by hand
_generations = msgspec.msgpack.Decoder(tuple[Generation, ...])


class Verdict(Enum):
    """What the primary does about its backup."""

    SEND_RECORDS = auto()
    """The backup is the same or behind, and the journal still holds what it missed."""
    COPY_CATALOG = auto()
    """The backup is new, half copied, or missed more than the journal holds."""
    BACKUP_AHEAD = auto()
    """The backup holds changes that the primary has lost."""
    DIVERGED = auto()
    """Both went on apart."""


def compare(primary: History, backup: History) -> Verdict:
    """The one decision on connect: exactly one row of the table matches."""
    facts = _facts(primary, backup)
    for columns, verdict in TABLE:
        if all(expected is None or expected == fact for expected, fact in zip(columns, facts, strict=True)):
            return verdict
    raise AssertionError("every combination has its row")


# The columns, each True, False, or None where it does not matter:
#   empty:    the backup has never had a whole copy (no generation, or a copy that was interrupted)
#   known:    the backup's newest generation is one of the primary's
#   within:   the backup's last change belongs to the primary's line: it stands before the primary
#             began its next generation, and not after the primary's own last change
#   past:     the primary's newest generation is in the backup's past, or the backup's present
#   held:     the primary's journal still holds everything after the backup's last change, and no
#             row is suspect for a power cut or a repair
Columns = tuple[bool | None, bool | None, bool | None, bool | None, bool | None]

TABLE: tuple[tuple[Columns, Verdict], ...] = (
    # Nothing of value stands in a volume that never was complete: it is made anew.
    ((True, None, None, None, None), Verdict.COPY_CATALOG),
    # The same line, and what was missed can be sent.
    ((False, True, True, None, True), Verdict.SEND_RECORDS),
    # The same line, but the journal was trimmed or lost: rows are compared by copying them.
    ((False, True, True, None, False), Verdict.COPY_CATALOG),
    # The same newest generation, yet the backup has a later change: the primary lost its tail in a
    # power cut. The backup's copy is the better one; overwriting it would lose acknowledged changes.
    ((False, True, False, True, None), Verdict.BACKUP_AHEAD),
    # A shared generation that the primary left before the backup's last change: both went on apart.
    ((False, True, False, False, None), Verdict.DIVERGED),
    # The backup's newest generation is not the primary's, but the primary's newest is in the
    # backup's past: the backup took over and went on. It must become the primary, not be overwritten.
    ((False, False, None, True, None), Verdict.BACKUP_AHEAD),
    # Neither newest generation is in the other's past.
    ((False, False, None, False, None), Verdict.DIVERGED),
)


def _facts(primary: History, backup: History) -> tuple[bool, bool, bool, bool, bool]:
    empty = not backup.complete or not backup.generations
    if empty or not primary.generations:
        return (empty, False, False, False, False)
    newest = backup.generations[0]
    known = any(ours.identity == newest.identity for ours in primary.generations)
    within = known and backup.journal_number <= _end_of(newest, primary)
    past = any(theirs.identity == primary.generations[0].identity for theirs in backup.generations)
    suspect = primary.compare_all or backup.compare_all
    held = backup.journal_number + 1 >= primary.journal_first and not suspect
    return (empty, known, within, past, held)


def _end_of(generation: Generation, history: History) -> int:
    """The last change of `generation` in `history`, which holds it."""
    end = int(history.journal_number)
    for newer in history.generations:
        if newer.identity == generation.identity:
            return end
        end = newer.first_change - 1
    raise AssertionError("the caller checked that the history holds the generation")


def generations_of(volume: Volume) -> tuple[Generation, ...]:
    """The volume's generations, newest first; none for a subvolume that was never copied to."""
    row = volume.catalog.meta(GENERATIONS_KEY)
    return () if row is None else _generations.decode(row)


def generation_row(volume: Volume, identity: bytes, first_change: ChangeNumber) -> CatalogRow:
    """The catalog row by which a new generation begins."""
    generations = (Generation(identity, first_change), *generations_of(volume))[:_GENERATIONS_KEPT_MAX]
    return (Table.META, GENERATIONS_KEY, msgspec.msgpack.encode(generations))


def history_of(volume: Volume) -> History:
    """Where the volume stands now."""
    return History(
        generations=generations_of(volume),
        journal_number=volume.journal_number,
        journal_first=ChangeNumber(volume.journal.first_number),
        complete=volume.identity.complete,
        compare_all=volume.identity.compare_all,
        number=volume.number,
    )
