"""What two volumes do when they meet: every combination is decided once, and every row is reached."""

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.change import NamespaceChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.mirror.histories import (
    TABLE,
    Columns,
    Verdict,
    compare,
    generation_row,
    generations_of,
    history_of,
)
from fusemirror.protocol.messages import Generation, History
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer, counting_seams


def line(name: str, first_change: int) -> Generation:
    return Generation(name.encode(), ChangeNumber(first_change))


def history(
    *generations: Generation,
    last: int,
    first: int = 1,
    complete: bool = True,
    compare_all: bool = False,
) -> History:
    """Generations newest first; the journal holds changes `first` to `last`."""
    return History(generations, ChangeNumber(last), ChangeNumber(first), complete, compare_all)


def matching(facts: tuple[bool, ...]) -> list[Columns]:
    return [
        columns
        for columns, _ in TABLE
        if all(column is None or column == fact for column, fact in zip(columns, facts, strict=True))
    ]


@pytest.mark.parametrize("facts", list(itertools.product((True, False), repeat=5)), ids=str)
def test_exactly_one_row_matches_each_combination(facts: tuple[bool, ...]) -> None:
    assert len(matching(facts)) == 1


A, B, C = line("a", 1), line("b", 10), line("c", 20)

SCENARIOS = {
    "the same": (history(A, last=9), history(A, last=9), Verdict.SEND_RECORDS),
    "behind by some changes": (history(A, last=9), history(A, last=4), Verdict.SEND_RECORDS),
    "behind by a time that the primary was alone": (
        history(B, A, last=15),
        history(A, last=9),
        Verdict.SEND_RECORDS,
    ),
    "behind by two such times": (history(C, B, A, last=25), history(A, last=3), Verdict.SEND_RECORDS),
    "the journal holds just what was missed": (
        history(A, last=9, first=5),
        history(A, last=4),
        Verdict.SEND_RECORDS,
    ),
    "the journal was trimmed by one too many": (
        history(A, last=9, first=6),
        history(A, last=4),
        Verdict.COPY_CATALOG,
    ),
    "a new backup": (history(A, last=9), history(last=0), Verdict.COPY_CATALOG),
    "a copy that was interrupted": (
        history(A, last=9),
        history(A, last=4, complete=False),
        Verdict.COPY_CATALOG,
    ),
    "a copy that was interrupted of something else": (
        history(A, last=9),
        history(C, last=40, complete=False),
        Verdict.COPY_CATALOG,
    ),
    "the primary had a power cut": (
        history(A, last=9, compare_all=True),
        history(A, last=9),
        Verdict.COPY_CATALOG,
    ),
    "the backup had a power cut": (
        history(A, last=9),
        history(A, last=9, compare_all=True),
        Verdict.COPY_CATALOG,
    ),
    "the primary lost its tail": (history(A, last=7), history(A, last=9), Verdict.BACKUP_AHEAD),
    "the primary lost its tail in a power cut": (
        history(A, last=7, compare_all=True),
        history(A, last=9),
        Verdict.BACKUP_AHEAD,
    ),
    "an old copy of the backup was restored": (
        history(C, B, A, last=25),
        history(B, A, last=12),
        Verdict.SEND_RECORDS,
    ),
    "an old copy of the backup was restored, and the journal is too short": (
        history(C, B, A, last=25, first=20),
        history(B, A, last=12),
        Verdict.COPY_CATALOG,
    ),
    "an old copy of the primary was restored": (
        history(A, last=5),
        history(B, A, last=15),
        Verdict.BACKUP_AHEAD,
    ),
    "the backup took over": (history(A, last=9), history(B, A, last=15), Verdict.BACKUP_AHEAD),
    "both went on apart": (history(B, A, last=15), history(C, A, last=25), Verdict.DIVERGED),
    "the backup went on in the generation that the primary left": (
        history(B, A, last=15),
        history(A, last=10),
        Verdict.DIVERGED,
    ),
    "another filesystem": (history(A, last=9), history(B, last=15), Verdict.DIVERGED),
    "a primary without a generation": (history(last=9), history(A, last=9), Verdict.DIVERGED),
}


@pytest.mark.parametrize(("primary", "backup", "verdict"), SCENARIOS.values(), ids=SCENARIOS)
def test_a_scenario_has_its_verdict(primary: History, backup: History, verdict: Verdict) -> None:
    assert compare(primary, backup) is verdict


def test_the_scenarios_need_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in TABLE:
        rest = tuple(other for other in TABLE if other is not row)
        monkeypatch.setattr("fusemirror.mirror.histories.TABLE", rest)
        undecided = 0
        for primary, backup, _ in SCENARIOS.values():
            try:
                compare(primary, backup)
            except AssertionError:
                undecided += 1
        assert undecided, f"no scenario needs {row}"


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    missed=st.integers(0, 12),
    alone=st.integers(0, 3),
    trimmed=st.integers(0, 12),
)
def test_what_happened_to_both_decides(lengths: list[int], missed: int, alone: int, trimmed: int) -> None:
    """The primary's lines have `lengths`; the backup missed its last changes, and made some alone."""
    firsts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
    lines = [line(f"line {index}", first) for index, first in enumerate(firsts)]
    last = sum(lengths)
    held = max(1, last - missed)
    known = [each for each in lines if each.first_change <= held]
    own = [line("own", held + 1)] if alone else []
    primary = history(*reversed(lines), last=last, first=1 + min(trimmed, last))
    backup = history(*own, *reversed(known), last=held + alone)
    verdict = compare(primary, backup)
    if not alone:
        in_journal = held + 1 >= primary.journal_first
        assert verdict is (Verdict.SEND_RECORDS if in_journal else Verdict.COPY_CATALOG)
    elif len(known) == len(lines):  # the primary made nothing alone
        assert verdict is Verdict.BACKUP_AHEAD
    else:
        assert verdict is Verdict.DIVERGED


def begin(writer: Writer, name: bytes) -> Generation:
    number = ChangeNumber(writer.volume.number + 1)
    writer.namespace(generation_row(writer.volume, name, number))
    return Generation(name, number)


def test_a_new_volume_has_no_generation(volume: Volume) -> None:
    assert generations_of(volume) == ()


def test_a_generation_begins_with_its_row_before_those_that_were(volume: Volume, writer: Writer) -> None:
    first = begin(writer, b"first")
    writer.create(b"between")
    second = begin(writer, b"second")
    assert generations_of(volume) == (second, first)
    assert second.first_change > first.first_change


def test_generations_survive_the_end_of_the_process(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    generation = begin(Writer(volume), b"first")
    volume.abandon()
    volume = Volume.open(directory, counting_seams())
    assert generations_of(volume) == (generation,)
    volume.close()


def test_the_oldest_generations_are_let_go(volume: Volume, writer: Writer) -> None:
    for index in range(70):
        begin(writer, b"%d" % index)
    kept = [generation.identity for generation in generations_of(volume)]
    assert kept == [b"%d" % index for index in range(69, 5, -1)]


def test_the_history_tells_where_the_volume_stands(volume: Volume, writer: Writer) -> None:
    generation = begin(writer, b"first")
    inode = writer.create(b"file")
    namespace = volume.number
    writer.write(inode, 0, b"data has no record")
    assert history_of(volume) == History(
        generations=(generation,),
        journal_number=namespace,
        journal_first=ChangeNumber(1),
        complete=True,
        compare_all=False,
        number=ChangeNumber(namespace + 1),
    )
    volume.update_identity(compare_all=True)
    assert history_of(volume) == msgspec.structs.replace(history_of(volume), compare_all=True)


def test_a_copy_of_the_records_makes_histories_the_same(
    volume: Volume, writer: Writer, tmp_path: Path
) -> None:
    backup_identity = msgspec.structs.replace(volume.identity, role="backup", host="02", peer="01")
    Volume.create(tmp_path / "backup", backup_identity)
    backup = Volume.open(tmp_path / "backup", counting_seams())
    begin(writer, b"first")
    writer.create(b"file")
    for _, payload in volume.journal.records(ChangeNumber(0)):
        backup.apply(msgspec.msgpack.decode(payload, type=NamespaceChange))
    assert compare(history_of(volume), history_of(backup)) is Verdict.SEND_RECORDS
    row = generation_row(backup, b"apart", ChangeNumber(backup.number + 1))
    number = ChangeNumber(backup.number + 1)
    backup.apply(NamespaceChange(number, NO_REQUEST, backup.time_ns(), InodeNumber(0), (row,)))
    assert compare(history_of(volume), history_of(backup)) is Verdict.BACKUP_AHEAD
    begin(writer, b"alone")
    assert compare(history_of(volume), history_of(backup)) is Verdict.DIVERGED
    backup.close()
