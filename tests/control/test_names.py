"""What one host knows of the names that its kernel may keep. The exchange of both hosts is simulated."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.control.names import Names
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIRECTORY_REST_S,
    KERNEL_DELAY_S,
    LOOKS_TO_KEEP,
    NAME_LIFETIME_S,
    SHARED_NAME_LIFETIME_S,
)
from fusemirror.operations import Unlink

HELD, SHARED, OTHER = InodeNumber(2), InodeNumber(3), InodeNumber(4)
CHANGE = Unlink(OTHER, b"name")


@pytest.fixture
async def names() -> Names:
    names = Names()
    names.held.add(HELD)
    names.share(SHARED)
    return names


async def test_only_many_looks_in_a_short_time_are_worth_keeping_a_directory(
    autojump_clock: MockClock,
) -> None:
    names = Names()
    assert [names.look(OTHER) for _ in range(LOOKS_TO_KEEP)] == [False] * (LOOKS_TO_KEEP - 1) + [True]
    await trio.sleep(NAME_LIFETIME_S)
    assert not any(names.look(OTHER) for _ in range(LOOKS_TO_KEEP - 1))


async def test_a_directory_counts_as_used_for_a_rest_at_least_and_for_two_at_most(
    autojump_clock: MockClock,
) -> None:
    names = Names()
    await trio.sleep(DIRECTORY_REST_S / 2)
    names.look(HELD)
    names.change(CHANGE)
    await trio.sleep(DIRECTORY_REST_S * 0.99)
    names.look(SHARED)
    assert HELD in names.used
    assert OTHER in names.used
    assert OTHER in names.changed
    assert HELD not in names.changed
    await trio.sleep(DIRECTORY_REST_S * 1.02)
    assert HELD not in names.used
    assert OTHER not in names.changed


async def test_a_lifetime_ends_with_the_lease_and_is_short_where_it_is_shared(
    names: Names, autojump_clock: MockClock
) -> None:
    assert names.lifetime_s(HELD, 100.0) == NAME_LIFETIME_S
    assert names.lifetime_s(SHARED, 100.0) == SHARED_NAME_LIFETIME_S
    assert names.lifetime_s(HELD, 0.125) == 0.125
    assert names.lifetime_s(HELD, -1.0) == 0.0


async def test_giving_up_waits_until_what_was_granted_has_run_out(
    names: Names, autojump_clock: MockClock
) -> None:
    names.lifetime_s(HELD, 100.0)
    began = trio.current_time()
    await names.give_up_held()
    assert trio.current_time() - began == pytest.approx(NAME_LIFETIME_S + KERNEL_DELAY_S)
    assert names.keeping(HELD) is None
    assert names.keeping(SHARED) is not None


async def test_what_was_held_before_it_was_shared_is_waited_for_as_well(
    names: Names, autojump_clock: MockClock
) -> None:
    names.lifetime_s(HELD, 100.0)
    names.share(HELD)
    began = trio.current_time()
    await names.give_up_shared()
    assert trio.current_time() - began == pytest.approx(NAME_LIFETIME_S + KERNEL_DELAY_S)


async def test_what_is_shared_is_in_the_way_of_changes_until_both_hosts_gave_it_up(
    names: Names, autojump_clock: MockClock
) -> None:
    await names.give_up_shared()
    assert names.keeping(SHARED) is None
    assert names.are_in_the_way(SHARED, of_change=True)
    assert not names.are_in_the_way(SHARED, of_change=False)
    names.end_sharing()
    assert not names.are_in_the_way(SHARED, of_change=True)


async def test_an_answer_from_before_a_directory_was_given_up_is_not_kept_after(
    names: Names, autojump_clock: MockClock
) -> None:
    before = names.keeping(HELD)
    await names.give_up_held()
    names.held.add(HELD)
    assert names.keeping(HELD) != before
