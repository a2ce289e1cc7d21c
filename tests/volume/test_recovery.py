"""Recovery's tables: whatever is found at opening, exactly one row says what is done."""

import itertools
from pathlib import Path

import pytest

from fusemirror.change import AllocateChange, DataChange, TruncateChange, WriteChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.volume.effects import content_note
from fusemirror.volume.images import ImageFacts
from fusemirror.volume.recovery import (
    LAST_RECORDS,
    RECOVERIES,
    Effect,
    ImageEvidence,
    LastEnd,
    Scope,
    effect_of,
    plan_of,
)
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, counting_seams

INODE = InodeNumber(7)
BEFORE, NOW = 10, 20


def matches(columns: tuple[object, ...], found: tuple[object, ...]) -> bool:
    return all(expected is None or expected == fact for expected, fact in zip(columns, found, strict=True))


@pytest.mark.parametrize(
    ("ended", "marks_lost", "images_tell"), list(itertools.product(LastEnd, (False, True), (False, True)))
)
def test_exactly_one_row_says_what_an_opening_does(
    ended: LastEnd, marks_lost: bool, images_tell: bool
) -> None:
    rows = [plan for columns, plan in RECOVERIES if matches(columns, (ended, marks_lost, images_tell))]
    assert len(rows) == 1
    plan = plan_of(ended, marks_lost=marks_lost, images_tell=images_tell)
    assert plan == rows[0]
    power_went = ended in (LastEnd.POWER_CUT, LastEnd.UNKNOWN)
    assert plan.compare_all is (marks_lost or power_went)
    assert plan.strays is (ended is LastEnd.POWER_CUT and images_tell)
    if ended is LastEnd.CLEAN:
        assert (plan.sync, plan.attributes) == (Scope.NONE, Scope.NONE)
    else:
        assert (plan.attributes is not Scope.NONE) is images_tell
        assert (plan.sync is Scope.NONE) is power_went
    if marks_lost or power_went:
        assert Scope.MARKED not in plan, "marks that are lost name no images"


@pytest.mark.parametrize(
    ("kind", "has_time", "is_there"), list(itertools.product(ImageEvidence, (False, True), (False, True)))
)
def test_exactly_one_row_says_what_became_of_the_last_record(
    kind: ImageEvidence, has_time: bool, is_there: bool
) -> None:
    rows = [effect for columns, effect in LAST_RECORDS if matches(columns, (kind, has_time, is_there))]
    assert len(rows) == 1
    assert (rows[0] is Effect.WHOLE) is has_time, "times are set last"


def write(offset: int, length: int) -> WriteChange:
    return WriteChange(ChangeNumber(3), NO_REQUEST, NOW, INODE, offset, length)


def truncation(size: int) -> TruncateChange:
    return TruncateChange(ChangeNumber(3), NO_REQUEST, NOW, INODE, size)


@pytest.mark.parametrize(
    ("change", "size", "content", "note", "expected"),
    [
        (write(4, 2), 6, b"ab", 4, Effect.NO_TIMES),
        (write(4, 2), 5, b"a", 4, Effect.NONE),  # half of it
        (write(4, 2), 4, b"", 4, Effect.NONE),
        (write(0, 2), 6, b"ab", content_note(b"ab"), Effect.NO_TIMES),
        (write(0, 2), 6, b"ax", content_note(b"ab"), Effect.NONE),
        (truncation(2), 2, b"", 6, Effect.NO_TIMES),
        (truncation(2), 6, b"", 6, Effect.NONE),
        (truncation(2), 2, b"", 2, Effect.NONE),  # the size tells nothing where it stays
        (AllocateChange(ChangeNumber(3), NO_REQUEST, NOW, INODE, 0, 9, 0), 9, b"", 6, Effect.NONE),
    ],
)
def test_an_image_tells_whether_the_last_change_took_effect(
    change: DataChange, size: int, content: bytes, note: int, expected: Effect
) -> None:
    older = ImageFacts(size, mtime_ns=BEFORE, ctime_ns=BEFORE)
    assert effect_of(change, older, content, note=note) is expected
    done = ImageFacts(size, mtime_ns=NOW, ctime_ns=NOW)
    assert effect_of(change, done, content, note=note) is Effect.WHOLE


def test_the_number_of_a_change_that_did_not_take_effect_is_not_given_again(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    writer = Writer(volume)
    inode = writer.create(b"a")
    record = writer.write(inode, 0, b"abc", request=b"of the backup")
    volume.images.truncate(inode, 1, 1)  # as a process leaves it that is killed in the middle
    volume.abandon()
    volume = Volume.open(directory, counting_seams())
    assert volume.recovery.change_in_doubt is not None
    assert volume.number == record
    assert volume.journal.last_number < record
    assert not volume.requests_done
    volume.close()
