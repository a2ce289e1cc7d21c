"""What two volumes do when they meet: every combination is decided once, and every row is reached."""

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.change import NamespaceChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.mirror import histories
from fusemirror.mirror.histories import (
    MEETINGS,
    RELATIONS,
    Action,
    Better,
    Missed,
    Relation,
    better,
    claim_of,
    decide_meeting,
    generation_row,
    generations_of,
    history_of,
    meet,
    missed,
    relation,
)
from fusemirror.protocol.messages import Claim, Generation, History
from fusemirror.volume.volume import Volume
from tests.volume.conftest import ALPHA, Writer, counting_seams


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


def rows_matching(table: Any, facts: tuple[Any, ...]) -> list[Any]:
    return [
        result
        for columns, result in table
        if all(column is None or column == fact for column, fact in zip(columns, facts, strict=True))
    ]


# --- how two histories stand to each other ------------------------------------------------------------


@pytest.mark.parametrize("facts", list(itertools.product((True, False), repeat=5)), ids=str)
def test_exactly_one_row_tells_the_relation_of_each_combination(facts: tuple[bool, ...]) -> None:
    assert len(rows_matching(RELATIONS, facts)) == 1


A, B, C = line("a", 1), line("b", 10), line("c", 20)
AFTER_LOSS = line("c", 8)

RELATED = {
    "the same": (history(A, last=9), history(A, last=9), Relation.SAME),
    "some changes missed": (history(A, last=9), history(A, last=4), Relation.AHEAD),
    "a time missed that the other was alone": (history(B, A, last=15), history(A, last=9), Relation.AHEAD),
    "two such times missed": (history(C, B, A, last=25), history(A, last=3), Relation.AHEAD),
    "the other took over from its last change": (history(A, last=9), history(B, A, last=15), Relation.BEHIND),
    "the other took over, and had not got the last": (
        history(A, last=11),
        history(B, A, last=15),
        Relation.TAIL,
    ),
    "went on without what a power cut took, and the other has it": (
        history(AFTER_LOSS, A, last=12),
        history(A, last=9),
        Relation.AHEAD_OF_TAIL,
    ),
    "both went on apart": (history(B, A, last=15), history(C, A, last=25), Relation.DIVERGED),
    "another filesystem": (history(A, last=9), history(B, last=15), Relation.UNRELATED),
    "one that never had a generation": (history(last=0), history(A, last=9), Relation.UNRELATED),
}
MIRRORED = {
    Relation.SAME: Relation.SAME,
    Relation.AHEAD: Relation.BEHIND,
    Relation.BEHIND: Relation.AHEAD,
    Relation.TAIL: Relation.AHEAD_OF_TAIL,
    Relation.AHEAD_OF_TAIL: Relation.TAIL,
    Relation.DIVERGED: Relation.DIVERGED,
    Relation.UNRELATED: Relation.UNRELATED,
}


@pytest.mark.parametrize(("ours", "theirs", "expected"), RELATED.values(), ids=RELATED)
def test_two_histories_have_their_relation_from_both_sides(
    ours: History, theirs: History, expected: Relation
) -> None:
    assert relation(ours, theirs) is expected
    assert relation(theirs, ours) is MIRRORED[expected]


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    missing=st.integers(0, 12),
    alone=st.integers(0, 3),
)
def test_what_happened_to_both_decides(lengths: list[int], missing: int, alone: int) -> None:
    """One host's lines have `lengths`; the other missed its last changes, and made some alone."""
    firsts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
    lines = [line(f"line {index}", first) for index, first in enumerate(firsts)]
    last = sum(lengths)
    held = max(1, last - missing)
    known = [each for each in lines if each.first_change <= held]
    own = [line("own", held + 1)] if alone else []
    one = history(*reversed(lines), last=last)
    other = history(*own, *reversed(known), last=held + alone)
    found = relation(other, one)
    if not alone:
        assert found is (Relation.SAME if held == last else Relation.BEHIND)
    elif len(known) == len(lines):  # the one made nothing alone
        assert found is (Relation.AHEAD if held == last else Relation.AHEAD_OF_TAIL)
    else:
        assert found is Relation.DIVERGED


# --- who is the primary -------------------------------------------------------------------------------

WHO = [
    facts
    for facts in itertools.product((True, False), (True, False), Better, ("to us", "to them", "none"))
    if facts[0] != facts[1] or facts[2] is not Better.EITHER  # the term has decided that before
]


@pytest.mark.parametrize("facts", WHO, ids=str)
def test_exactly_one_row_decides_each_meeting(facts: tuple[bool, bool, Better, str]) -> None:
    assert rows_matching(MEETINGS, facts) == [decide_meeting(facts)]


def claim(role: str, past: History, **other: Any) -> Claim:
    host = other.pop("host", b"one")
    values: dict[str, Any] = {
        "term": 1,
        "handed_over": False,
        "consistent": True,
        "keep": b"",
        "keep_at": b"",
        "history": past,
    }
    return Claim(host=host, role=role, **(values | other))


def other(role: str, past: History, **more: Any) -> Claim:
    return claim(role, past, host=b"two", **more)


P, S = "primary", "backup"
NEW = history(last=0, complete=False)
MEETING = {
    "an ordinary reboot": (
        claim(P, history(A, last=9)),
        other(S, history(A, last=9)),
        Action.LINK,
        Action.LINK,
    ),
    "a new backup": (claim(P, history(A, last=9)), other(S, NEW), Action.LINK, Action.LINK),
    "a backup that missed changes": (
        claim(P, history(B, A, last=15)),
        other(S, history(A, last=9)),
        Action.LINK,
        Action.LINK,
    ),
    "a primary that lost its tail in a power cut": (
        claim(P, history(A, last=7, compare_all=True)),
        other(S, history(A, last=9)),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "the same, but the backup was getting images": (
        claim(P, history(A, last=7, compare_all=True)),
        other(S, history(A, last=9), consistent=False),
        Action.LINK,
        Action.LINK,
    ),
    "a primary that lost its tail and went on alone": (
        claim(P, history(AFTER_LOSS, A, last=12)),
        other(S, history(A, last=9)),
        Action.LINK,
        Action.LINK,
    ),
    "an old copy of the primary was restored": (
        claim(P, history(A, last=5)),
        other(S, history(B, A, last=15)),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "the old primary comes back after a take-over": (
        claim(P, history(A, last=9)),
        other(P, history(B, A, last=15), term=2),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "it has changes that were never acknowledged": (
        claim(P, history(A, last=12)),
        other(P, history(B, A, last=15), term=2),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "it went on alone": (
        claim(P, history(C, A, last=25)),
        other(P, history(B, A, last=15), term=2),
        Action.DIVERGED,
        Action.DIVERGED,
    ),
    "two primaries with one history": (
        claim(P, history(A, last=9)),
        other(P, history(A, last=9), term=2),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "two primaries with one history and one term": (
        claim(P, history(A, last=9)),
        other(P, history(A, last=9)),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "a switch that was cut short after its first half": (
        claim(S, history(A, last=9), term=2, handed_over=True),
        other(S, history(A, last=9)),
        Action.WAIT,
        Action.ACCEPT,
    ),
    "the same, and a power cut took the last changes of the host that was to be the primary": (
        claim(S, history(A, last=9), term=2, handed_over=True),
        other(S, history(A, last=8, compare_all=True)),
        Action.WAIT,
        Action.GIVE_WAY,
    ),
    "that has given the role back, though both had a power cut": (
        claim(S, history(A, last=9, compare_all=True), term=2, handed_over=True),
        other(S, history(A, last=8, compare_all=True), term=3, handed_over=True),
        Action.ACCEPT,
        Action.WAIT,
    ),
    "a power cut that took nothing": (
        claim(S, history(A, last=9, compare_all=True), term=2, handed_over=True),
        other(S, history(A, last=9, compare_all=True)),
        Action.WAIT,
        Action.ACCEPT,
    ),
    "a switch that was cut short after its second half": (
        claim(S, history(A, last=9), term=2, handed_over=True),
        other(P, history(A, last=9), term=2),
        Action.LINK,
        Action.LINK,
    ),
    "a hand-over that was overtaken": (
        claim(S, history(A, last=9), term=2, handed_over=True),
        other(S, history(A, last=9), term=3, handed_over=True),
        Action.ACCEPT,
        Action.WAIT,
    ),
    "two backups": (
        claim(S, history(A, last=9)),
        other(S, history(A, last=8)),
        Action.WAIT,
        Action.GIVE_WAY,
    ),
    "two backups with one history": (
        claim(S, history(A, last=9)),
        other(S, history(A, last=9)),
        Action.GIVE_WAY,
        Action.WAIT,
    ),
    "two that were never complete": (claim(S, NEW), other(S, NEW), Action.DIVERGED, Action.DIVERGED),
    "a backup that went on apart": (
        claim(P, history(B, A, last=15)),
        other(S, history(C, A, last=25)),
        Action.DIVERGED,
        Action.DIVERGED,
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "step", "their_step"), MEETING.values(), ids=MEETING)
def test_a_meeting_has_its_outcome_on_both_hosts(
    ours: Claim, theirs: Claim, step: Action, their_step: Action
) -> None:
    assert meet(ours, theirs) is step
    assert meet(theirs, ours) is their_step


def test_the_scenarios_need_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("RELATIONS", "MEETINGS"):
        rows = getattr(histories, table)
        impossible = ((True, True, False, False, None), Relation.UNRELATED)
        for row in rows:
            if row == impossible:
                continue
            with monkeypatch.context() as patch:
                patch.setattr(histories, table, tuple(each for each in rows if each is not row))
                undecided = 0
                for ours, theirs, *_ in MEETING.values():
                    for one, two in ((ours, theirs), (theirs, ours)):
                        try:
                            meet(one, two)
                            relation(one.history, two.history)
                        except AssertionError:
                            undecided += 1
                assert undecided, f"no scenario needs {row}"


RUNS = st.lists(st.sampled_from((A, B, C, line("d", 30))), unique=True, max_size=3).map(tuple)
CLAIMS = st.tuples(
    st.sampled_from((P, S)),
    RUNS,
    st.integers(0, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from((b"", b"one", b"two")),
)


def drawn(values: Any, host: bytes) -> Claim:
    role, generations, last, complete, consistent, term, handed_over, keep = values
    newest_first = tuple(sorted(generations, key=lambda each: -each.first_change))
    last = max([last, *(each.first_change for each in generations)])
    return Claim(
        host=host,
        role=role,
        term=term,
        handed_over=handed_over and role == S,
        consistent=consistent,
        keep=keep,
        keep_at=newest_first[0].identity if newest_first else b"",
        history=history(*newest_first, last=last, complete=complete),
    )


ALLOWED = {
    frozenset({Action.LINK}),
    frozenset({Action.DIVERGED}),
    frozenset({Action.WAIT, Action.GIVE_WAY}),
    frozenset({Action.WAIT, Action.YIELD}),
    frozenset({Action.WAIT, Action.ACCEPT}),
}


@given(one=CLAIMS, two=CLAIMS)
def test_whatever_two_hosts_claim_exactly_one_of_them_acts(one: Any, two: Any) -> None:
    ours, theirs = drawn(one, b"one"), drawn(two, b"two")
    assert frozenset({meet(ours, theirs), meet(theirs, ours)}) in ALLOWED


@given(one=CLAIMS, two=CLAIMS)
def test_two_that_meet_again_and_again_come_to_one_primary(one: Any, two: Any) -> None:
    """Each acts as it is told, durably, before they meet again."""
    ours, theirs = drawn(one, b"one"), drawn(two, b"two")
    for _ in range(4):
        steps = meet(ours, theirs), meet(theirs, ours)
        if steps == (Action.LINK, Action.LINK):
            assert {ours.role, theirs.role} == {P, S}
            return
        if Action.DIVERGED in steps:
            assert better(ours, theirs) is Better.NEITHER
            return
        ours, theirs = acted(ours, theirs, steps[0]), acted(theirs, ours, steps[1])
    raise AssertionError(f"they do not agree: {ours} {theirs}")


def acted(ours: Claim, theirs: Claim, step: Action) -> Claim:
    if step in (Action.GIVE_WAY, Action.YIELD):
        term = max(ours.term, theirs.term) + 1
        past = ours.history
        if step is Action.YIELD:
            past = msgspec.structs.replace(past, complete=False)
        return ours._replace(role=S, term=term, handed_over=True, history=past)
    if step is Action.ACCEPT:
        return ours._replace(role=P, term=theirs.term, handed_over=False, consistent=True)
    return ours


# --- what a person chose ------------------------------------------------------------------------------

LEFT, RIGHT = history(B, A, last=15), history(C, A, last=25)


def test_the_host_that_a_person_did_not_choose_yields_whoever_was_told() -> None:
    for told in ("ours", "theirs"):
        ours = claim(P, LEFT, keep=b"one" if told == "ours" else b"", keep_at=b"b", term=3)
        theirs = other(P, RIGHT, keep=b"one" if told == "theirs" else b"", keep_at=b"c", term=3)
        assert (meet(ours, theirs), meet(theirs, ours)) == (Action.WAIT, Action.YIELD)


def test_of_two_words_the_later_counts_and_two_at_once_count_for_nothing() -> None:
    ours = claim(P, LEFT, keep=b"one", keep_at=b"b", term=3)
    theirs = other(P, RIGHT, keep=b"two", keep_at=b"c", term=4)
    assert (meet(ours, theirs), meet(theirs, ours)) == (Action.YIELD, Action.WAIT)
    assert meet(ours._replace(term=4), theirs) is Action.DIVERGED


def test_a_word_about_an_earlier_split_says_nothing_about_this_one() -> None:
    ours = claim(P, LEFT, keep=b"one", keep_at=b"a")
    assert meet(ours, other(P, RIGHT)) is Action.DIVERGED


# --- how the backup is brought up to date -------------------------------------------------------------

BRINGING_UP = {
    "the same": (history(A, last=9), history(A, last=9), Missed.RECORDS),
    "the journal holds just what was missed": (
        history(A, last=9, first=5),
        history(A, last=4),
        Missed.RECORDS,
    ),
    "the journal was trimmed by one too many": (
        history(A, last=9, first=6),
        history(A, last=4),
        Missed.CATALOG,
    ),
    "a new backup": (history(A, last=9), history(last=0), Missed.CATALOG),
    "a copy that was interrupted": (history(A, last=9), history(A, last=4, complete=False), Missed.CATALOG),
    "a power cut here": (history(A, last=9, compare_all=True), history(A, last=9), Missed.CATALOG),
    "a power cut there": (history(A, last=9), history(A, last=9, compare_all=True), Missed.CATALOG),
    "a tail that is left out": (history(B, A, last=15), history(A, last=12), Missed.CATALOG),
}


def checkpointed(ended: int, begun: int = 0) -> History:
    """One that holds the same records as all others here."""
    return msgspec.structs.replace(history(A, last=9), checkpoint=ended, checkpoint_begun=max(begun, ended))


def test_a_backup_that_was_put_back_from_an_older_copy_is_compared() -> None:
    """It knows all records, but marks of what it lacks were dropped at the checkpoint after the copy."""
    assert missed(checkpointed(7), checkpointed(6)) is Missed.CATALOG
    assert missed(checkpointed(7), checkpointed(7)) is Missed.RECORDS
    assert missed(checkpointed(6, begun=7), checkpointed(7)) is Missed.RECORDS, "killed before it heard of it"


def test_a_primary_that_was_put_back_from_an_older_copy_gives_way() -> None:
    old, new = claim(P, checkpointed(6)), other(S, checkpointed(7))
    assert (meet(old, new), meet(new, old)) == (Action.GIVE_WAY, Action.WAIT)
    killed = claim(P, checkpointed(6, begun=7))
    assert (meet(killed, new), meet(new, killed)) == (Action.LINK, Action.LINK)


def test_it_gives_way_also_where_it_has_records_of_writes_that_the_backup_asked_for() -> None:
    """The backup has its own writes, and no records of them."""
    old = claim(P, msgspec.structs.replace(checkpointed(6), journal_number=ChangeNumber(10)))
    new = other(S, checkpointed(7))
    assert (meet(old, new), meet(new, old)) == (Action.GIVE_WAY, Action.WAIT)
    torn = other(S, checkpointed(7), consistent=False)
    assert (meet(old, torn), meet(torn, old)) == (Action.LINK, Action.LINK), "its content is not whole"


@pytest.mark.parametrize(("primary", "backup", "what"), BRINGING_UP.values(), ids=BRINGING_UP)
def test_a_backup_gets_what_it_lacks(primary: History, backup: History, what: Missed) -> None:
    assert missed(primary, backup) is what


# --- of one volume ------------------------------------------------------------------------------------


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
    backup_identity = msgspec.structs.replace(volume.identity, role="backup", host="02", peers=(ALPHA,))
    Volume.create(tmp_path / "backup", backup_identity)
    backup = Volume.open(tmp_path / "backup", counting_seams())
    begin(writer, b"first")
    writer.create(b"file")
    for _, payload in volume.journal.records(ChangeNumber(0)):
        backup.apply(msgspec.msgpack.decode(payload, type=NamespaceChange))
    assert relation(history_of(volume), history_of(backup)) is Relation.SAME
    row = generation_row(backup, b"apart", ChangeNumber(backup.number + 1))
    number = ChangeNumber(backup.number + 1)
    backup.apply(NamespaceChange(number, NO_REQUEST, backup.clock.next_ns(), InodeNumber(0), (row,)))
    assert relation(history_of(volume), history_of(backup)) is Relation.BEHIND
    begin(writer, b"alone")
    assert relation(history_of(volume), history_of(backup)) is Relation.DIVERGED
    backup.close()


def test_a_claim_says_what_the_identity_holds(volume: Volume) -> None:
    volume.update_identity(term=4, keep="abcd", keep_at="ef")
    found = claim_of(volume)
    assert (found.term, found.keep, found.keep_at) == (4, b"\xab\xcd", b"\xef")
    assert (found.role, found.host) == (volume.identity.role, bytes.fromhex(volume.identity.host))
    assert found.history == history_of(volume)
