"""Kept: what is sent again is what the other end lacks, whatever was sent together."""

from random import Random

import pytest

from fusemirror import limits
from fusemirror.channel.kept import Kept
from fusemirror.protocol.framing import Buffer


def rest(kept: Kept) -> bytes:
    return b"".join(map(bytes, kept.rest()))


def kept_of(*sends: list[Buffer]) -> Kept:
    kept = Kept()
    for buffers in sends:
        kept.add(buffers, sum(map(len, buffers)))
    return kept


@pytest.mark.parametrize("arrived", range(10))
def test_what_is_kept_begins_where_the_other_end_says(arrived: int) -> None:
    kept = kept_of([b"012", memoryview(b"34")], [b"5"], [b"67", b"89"])
    kept.confirmed(arrived)
    assert rest(kept) == b"0123456789"[arrived:]
    assert (kept.start, kept.end) == (arrived, 10)


def test_of_what_was_taken_in_part_that_part_is_kept() -> None:
    kept = kept_of([b"ab"])
    kept.add([b"cd", b"efg", b"h"], 3)
    assert rest(kept) == b"abcde"
    kept.add([b"fg", b"h"], 3)
    kept.confirmed(4)
    assert rest(kept) == b"efgh"


def test_a_count_that_was_overtaken_changes_nothing_and_one_that_cannot_be_is_refused() -> None:
    kept = kept_of([b"0123"])
    kept.confirmed(3)
    kept.confirmed(1)
    assert rest(kept) == b"3"
    with pytest.raises(ValueError, match="5 bytes, and 4 were sent"):
        kept.confirmed(5)


def test_what_a_connection_has_not_told_to_have_gone_may_have_arrived() -> None:
    kept = kept_of([b"0123"])
    kept.confirmed(6, untold_bytes=2)
    assert (rest(kept), kept.start) == (b"", 4)
    with pytest.raises(ValueError, match="7 bytes, and 4 were sent"):
        kept.confirmed(7, untold_bytes=2)


@pytest.mark.parametrize("theirs", [1, 7])
def test_what_the_other_end_cannot_have_is_refused_over_a_new_connection(theirs: int) -> None:
    kept = kept_of([b"0123"])
    kept.confirmed(2)
    kept.offered(2)
    with pytest.raises(ValueError, match="more, or less"):
        kept.resume(theirs)
    assert not kept.again
    kept.resume(2)
    assert (rest(kept), b"".join(map(bytes, kept.again))) == (b"23", b"23")


def test_the_other_end_goes_on_by_its_newest_attempt_alone() -> None:
    kept = kept_of([b"0123"])
    kept.confirmed(2)
    assert [kept.takes(attempt, 2) for attempt in (1, 3, 2, 3)] == [True, True, False, False]
    assert [kept.takes(0, theirs) for theirs in (1, 2)] == [False, True], "one that does not number them"


def test_what_arrived_unnoticed_is_taken_as_sent_when_it_is_given_again() -> None:
    kept = kept_of([b"0123"])
    kept.offered(6)
    kept.resume(7)
    assert (rest(kept), kept.ahead) == (b"", 3)
    kept.confirmed(7)
    assert kept.take_ahead([b"45"]) == 2
    assert kept.take_ahead([b"6789"]) == 1
    assert kept.ahead == 0
    kept.add([b"789"], 3)
    assert (rest(kept), kept.end) == (b"789", 10)


def test_no_more_is_kept_than_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESENT_BYTES_MAX", 4)
    kept = kept_of([b"01"], [b"23"], [b"45"])
    assert rest(kept) == b"2345"
    with pytest.raises(LookupError):
        kept.resume(1)
    kept.resume(3)
    assert rest(kept) == b"345"


def test_no_more_sends_are_kept_than_the_limit_says_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes some 300 bytes of memory, and a peer may make this host send very many, and confirm none."""
    monkeypatch.setattr(limits, "RESENT_SENDS_MAX", 2)
    kept = kept_of([b"01"], [b"23"], [b"45"])
    assert rest(kept) == b"2345"
    kept.confirmed(3)
    kept.add([b"67"], 2)
    assert rest(kept) == b"4567"


def test_many_small_sends_are_sent_again_in_few_pieces() -> None:
    """Each call that sends some of them lists the rest anew: that would take the square of their number."""
    sends: list[list[Buffer]] = [[b"%05d" % number, b"-"] for number in range(10_000)]
    kept = kept_of(*sends)
    kept.confirmed(8)
    assert rest(kept) == b"".join(b"".join(each) for each in sends)[8:]
    assert len(kept.rest()) <= 2 * len(sends) / limits.SEND_BUFFERS_MAX + 1


def test_nothing_is_kept_of_a_stream_that_is_over() -> None:
    kept = kept_of([b"0123"])
    kept.clear()
    assert kept.rest() == []


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_same_stream_however_it_was_cut(seed: int) -> None:
    random, kept = Random(seed), Kept()
    stream, confirmed = b"", 0
    for _ in range(200):
        buffers: list[Buffer] = [random.randbytes(random.randrange(5)) for _ in range(random.randrange(1, 4))]
        whole = b"".join(buffers)
        size = random.randint(0, len(whole))
        kept.add(buffers, size)
        stream += whole[:size]
        if random.random() < 0.4:
            confirmed = random.randint(confirmed, len(stream))
            kept.confirmed(confirmed)
        assert rest(kept) == stream[confirmed:]
