"""What one host knows of the leases that its kernel may keep. The exchange of both hosts is simulated."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.coherence.directory_leases import DirectoryLeases
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIRECTORY_REST_S,
    KERNEL_DELAY_S,
    LOOKS_TO_KEEP,
    NAME_LIFETIME_S,
    SHARED_NAME_LIFETIME_S,
)
from fusemirror.operations import Unlink

EXCLUSIVE, SHARED, OTHER = InodeNumber(2), InodeNumber(3), InodeNumber(4)
CHANGE = Unlink(OTHER, b"name")


@pytest.fixture
async def leases() -> DirectoryLeases:
    leases = DirectoryLeases()
    leases.exclusive.add(EXCLUSIVE)
    leases.share(SHARED)
    return leases


async def test_only_many_looks_in_a_short_time_are_worth_keeping_a_directory(
    autojump_clock: MockClock,
) -> None:
    leases = DirectoryLeases()
    assert [leases.look(OTHER) for _ in range(LOOKS_TO_KEEP)] == [False] * (LOOKS_TO_KEEP - 1) + [True]
    await trio.sleep(NAME_LIFETIME_S)
    assert not any(leases.look(OTHER) for _ in range(LOOKS_TO_KEEP - 1))


async def test_a_directory_counts_as_used_for_a_rest_at_least_and_for_two_at_most(
    autojump_clock: MockClock,
) -> None:
    leases = DirectoryLeases()
    await trio.sleep(DIRECTORY_REST_S / 2)
    leases.look(EXCLUSIVE)
    leases.change(CHANGE)
    await trio.sleep(DIRECTORY_REST_S * 0.99)
    leases.look(SHARED)
    assert EXCLUSIVE in leases.used
    assert OTHER in leases.used
    assert OTHER in leases.changed
    assert EXCLUSIVE not in leases.changed
    await trio.sleep(DIRECTORY_REST_S * 1.02)
    assert EXCLUSIVE not in leases.used
    assert OTHER not in leases.changed


async def test_a_lifetime_ends_with_the_lease_and_is_short_where_it_is_shared(
    leases: DirectoryLeases, autojump_clock: MockClock
) -> None:
    assert leases.lifetime_s(EXCLUSIVE, 100.0) == NAME_LIFETIME_S
    assert leases.lifetime_s(SHARED, 100.0) == SHARED_NAME_LIFETIME_S
    assert leases.lifetime_s(EXCLUSIVE, 0.125) == 0.125
    assert leases.lifetime_s(EXCLUSIVE, -1.0) == 0.0


async def test_giving_up_waits_until_what_was_granted_has_run_out(
    leases: DirectoryLeases, autojump_clock: MockClock
) -> None:
    leases.lifetime_s(EXCLUSIVE, 100.0)
    began = trio.current_time()
    await leases.give_up_exclusive()
    assert trio.current_time() - began == pytest.approx(NAME_LIFETIME_S + KERNEL_DELAY_S)
    assert leases.keeping(EXCLUSIVE) is None
    assert leases.keeping(SHARED) is not None


async def test_what_was_held_before_it_was_shared_is_waited_for_as_well(
    leases: DirectoryLeases, autojump_clock: MockClock
) -> None:
    leases.lifetime_s(EXCLUSIVE, 100.0)
    leases.share(EXCLUSIVE)
    began = trio.current_time()
    await leases.give_up_shared()
    assert trio.current_time() - began == pytest.approx(NAME_LIFETIME_S + KERNEL_DELAY_S)


async def test_what_is_shared_is_in_the_way_of_changes_until_both_hosts_gave_it_up(
    leases: DirectoryLeases, autojump_clock: MockClock
) -> None:
    await leases.give_up_shared()
    assert leases.keeping(SHARED) is None
    assert leases.is_in_the_way(SHARED, of_change=True)
    assert not leases.is_in_the_way(SHARED, of_change=False)
    leases.end_sharing()
    assert not leases.is_in_the_way(SHARED, of_change=True)


async def test_an_answer_from_before_a_directory_was_given_up_is_not_kept_after(
    leases: DirectoryLeases, autojump_clock: MockClock
) -> None:
    before = leases.keeping(EXCLUSIVE)
    await leases.give_up_exclusive()
    leases.exclusive.add(EXCLUSIVE)
    assert leases.keeping(EXCLUSIVE) != before
