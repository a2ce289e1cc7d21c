"""Claims: nobody holds what another holds, everybody has a turn, and the turns are those of asking."""

import trio
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.control.ranges import RangeClaim, Ranges
from fusemirror.identifiers import InodeNumber

FILE, OTHER = InodeNumber(5), InodeNumber(6)


def test_a_free_range_is_held_at_once() -> None:
    ranges = Ranges()
    assert ranges.claim(FILE, 0, 10).held
    assert ranges.claim(FILE, 10, 20).held
    assert ranges.claim(OTHER, 0, 10).held
    assert (len(ranges), ranges.standing_by) == (3, 0)


def test_who_comes_later_stands_by_until_it_is_released() -> None:
    ranges = Ranges()
    first, second = ranges.claim(FILE, 0, 10), ranges.claim(FILE, 9, 20)
    assert [first.held, second.held] == [True, False]
    assert ranges.is_exclusive(FILE, 15, 16), "a claim that stands by keeps its place"
    ranges.release(first)
    ranges.release(first)  # again, for nothing
    assert [first.held, second.held] == [False, True]
    ranges.release(second)
    assert not ranges.is_exclusive(FILE, 0, 100)
    assert (len(ranges), ranges.standing_by) == (0, 0)


def test_nobody_is_overtaken_by_who_wants_the_same() -> None:
    ranges = Ranges()
    first, wide, narrow = ranges.claim(FILE, 0, 10), ranges.claim(FILE, 0, 100), ranges.claim(FILE, 50, 60)
    holding = [(first.held, wide.held, narrow.held)]
    for claim in (first, wide):
        ranges.release(claim)
        holding.append((first.held, wide.held, narrow.held))
    # Or a stream of narrow ones would keep the wide one off for ever.
    assert holding == [(True, False, False), (False, True, False), (False, False, True)]


def test_one_that_gives_up_its_place_lets_others_through() -> None:
    ranges = Ranges()
    ranges.claim(FILE, 0, 10)
    wide, narrow = ranges.claim(FILE, 0, 100), ranges.claim(FILE, 50, 60)
    ranges.release(wide)
    assert narrow.held


async def test_waiting_ends_with_the_grant() -> None:
    ranges = Ranges()
    first, second = ranges.claim(FILE, 0, 1), ranges.claim(FILE, 0, 1)
    await first.wait()
    ranges.release(first)
    await second.wait()
    assert second.held


async def test_mains_right_comes_before_all_and_who_held_it_has_a_turn_again() -> None:
    ranges = Ranges()
    holder, waiting, apart = ranges.claim(FILE, 0, 10), ranges.claim(FILE, 5, 10), ranges.claim(FILE, 20, 30)
    by_right = ranges.claim_by_right(FILE, 0, 15)
    assert [each.held for each in (by_right, holder, waiting, apart)] == [True, False, False, True]
    late = ranges.claim(FILE, 12, 13)
    with trio.move_on_after(0) as limit:
        await holder.wait()
    assert limit.cancelled_caught
    ranges.release(by_right)
    assert [each.held for each in (holder, waiting, late)] == [True, False, True]
    await holder.wait()
    ranges.release(holder)
    assert waiting.held


CLAIMS = st.tuples(st.sampled_from([FILE, OTHER]), st.integers(0, 20), st.integers(1, 12))


@given(st.lists(st.one_of(CLAIMS, st.integers(0, 30)), max_size=60))
def test_no_two_hold_the_same_and_all_come_to_their_turn(
    events: list[tuple[InodeNumber, int, int] | int],
) -> None:
    """A tuple claims, a number releases one of those that hold; at last all are released."""
    ranges = Ranges()
    claims: list[RangeClaim] = []

    def held() -> list[RangeClaim]:
        return [claim for claim in claims if claim.held]

    def check() -> None:
        live = [claim for claim in claims if not claim.released]
        for index, claim in enumerate(live):
            before = [each for each in live[:index] if each.inode == claim.inode]
            assert claim.held != any(each.overlaps(claim.start, claim.end) for each in before)

    for event in events:
        if isinstance(event, tuple):
            inode, start, length = event
            claims.append(ranges.claim(inode, start, start + length))
        elif holders := held():
            ranges.release(holders[event % len(holders)])
        check()
    for _ in claims:
        if holders := held():
            ranges.release(holders[0])
            check()
    assert all(claim.released for claim in claims)
