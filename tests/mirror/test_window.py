"""The window: who waits for a change hears once it is acknowledged, in doubt, or of another host."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.change import AnyChange, NamespaceChange, TruncateChange, WriteChange
from fusemirror.errors import ChangeInDoubt, ChangeUntold, CheckReport, RoleChanged
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.mirror.window import InFlight, Window

BEFORE = ChangeNumber(10)
FILE = InodeNumber(7)
REQUEST = RequestId(b"1234567812345678")


def named(number: int) -> NamespaceChange:
    return NamespaceChange(ChangeNumber(number), NO_REQUEST, 0, InodeNumber(0), ())


def written(number: int, offset: int, length: int) -> WriteChange:
    return WriteChange(ChangeNumber(number), NO_REQUEST, 0, FILE, offset, length)


def requested(number: int) -> WriteChange:
    """As a program of the backup writes."""
    return WriteChange(ChangeNumber(number), REQUEST, 0, FILE, 0, 1)


def window_with(*changes: tuple[AnyChange, tuple[Any, ...]], old_size: int = FILE_BYTES_MAX) -> Window:
    window = Window(BEFORE)
    for change, keys in changes:
        window.add(change, keys, old_size, now=float(change.number))
    return window


async def outcome_of(wait: Callable[[], Awaitable[object]], then: Callable[[], None]) -> object:
    """What a task is told that began to wait before `then`; None if it waits on."""
    told: list[object] = []

    async def waits() -> None:
        try:
            told.append(await wait())
        except (CheckReport, RoleChanged) as error:
            told.append(type(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        then()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return told[0] if told else None


async def test_what_was_there_before_is_settled() -> None:
    window = Window(BEFORE)
    await window.acknowledged(BEFORE)
    assert await window.settled(BEFORE)
    assert window.unsettled("name") == 0


async def test_an_acknowledgement_is_cumulative_and_settles_nothing_after_it() -> None:
    window = window_with((named(11), ("a",)), (named(12), ("b",)), (named(13), ("a",)))
    assert window.unsettled("a") == 13
    assert window.unsettled("b") == 12
    told = await outcome_of(
        lambda: window.settled(ChangeNumber(12)), lambda: window.acknowledge(ChangeNumber(12))
    )
    assert told is True
    assert window.acknowledged_number == 12
    assert not window.unsettled("b")
    assert window.unsettled("a") == 13
    waits_on = await outcome_of(lambda: window.settled(ChangeNumber(13)), lambda: None)
    assert waits_on is None


def test_who_looks_goes_through_what_it_looks_for_and_not_through_all_that_is_under_way() -> None:
    window = window_with(*((written(number, number * 10, 10), (FILE, "both")) for number in range(11, 14)))
    window.add(named(14), ("a", "a", "both"), 0, 0.0)
    under_way = window.in_flight

    class Long(deque[InFlight]):
        def __iter__(self) -> Iterator[InFlight]:
            pytest.fail("it goes through all")

        __reversed__ = __iter__

    window.in_flight = Long(each for each in under_way)
    other = InodeNumber(FILE + 1)
    for done, newest in (11, {FILE: 13, "both": 14, "a": 14, "b": 0}), (13, {FILE: 0, "both": 14, "a": 14}):
        window.acknowledge(ChangeNumber(done))
        assert {key: window.unsettled(key) for key in newest} == newest
        assert window.unsettled_range(FILE, 110, 120) == 0
        assert window.unsettled_range(FILE, 120, 130) == (12 if done < 12 else 0)
        assert window.unsettled_range(FILE, 129, 140) == (13 if done < 13 else 0)
        assert window.unsettled_range(other, 0, FILE_BYTES_MAX) == 0
    window.acknowledge(ChangeNumber(14))
    assert not window.unsettled("both")
    assert not window._newest
    assert not window._newest_of_data


def test_an_old_acknowledgement_takes_nothing_back() -> None:
    window = window_with((named(11), ()), (named(12), ()))
    window.acknowledge(ChangeNumber(12))
    window.acknowledge(ChangeNumber(11))
    assert window.acknowledged_number == 12


async def test_its_program_hears_of_a_doubt_and_who_looks_is_shown_the_change() -> None:
    window = window_with((named(11), ("a",)))
    shown: list[bool] = []
    window.when_settled(ChangeNumber(11), shown.append)

    def doubt() -> None:
        window.acknowledge(ChangeNumber(11), lambda: ChangeInDoubt("lost"))

    assert await outcome_of(lambda: window.acknowledged(ChangeNumber(11)), doubt) is ChangeInDoubt
    assert shown == [False]
    window = window_with((named(11), ("a",)))
    assert await outcome_of(lambda: window.settled(ChangeNumber(11)), doubt) is False


async def test_who_waits_for_what_a_new_primary_does_not_hold_hears_that_the_role_changed() -> None:
    window = window_with((named(11), ()), (named(12), ()))

    def close() -> None:
        window.close(ChangeNumber(11))

    assert await outcome_of(lambda: window.acknowledged(ChangeNumber(12)), close) is RoleChanged
    await window.acknowledged(ChangeNumber(11))
    with pytest.raises(RoleChanged):
        await window.settled(ChangeNumber(12))


async def test_what_a_new_primary_may_hold_without_a_record_is_in_doubt_for_its_program() -> None:
    changes = (written(11, 0, 5), written(12, 5, 5), named(13), written(14, 9, 5))

    async def told(wait: Callable[[Window], Awaitable[object]], perhaps: int = 14) -> object:
        window = window_with(*((change, ()) for change in changes))

        def close() -> None:
            window.close(ChangeNumber(11), ChangeNumber(perhaps), lambda: ChangeUntold("beta"))

        return await outcome_of(lambda: wait(window), close)

    assert await told(lambda window: window.acknowledged(ChangeNumber(12))) is ChangeUntold
    assert await told(lambda window: window.settled(ChangeNumber(12))) is RoleChanged
    assert await told(partial(Window.acknowledged, number=ChangeNumber(12)), perhaps=11) is RoleChanged
    for number in (13, 14):  # a record comes first, which it would have
        assert await told(partial(Window.acknowledged, number=ChangeNumber(number))) is RoleChanged


def test_bytes_are_unsettled_where_a_change_of_their_image_shows_them_anew() -> None:
    window = window_with((written(11, 100, 50), ()))
    assert window.unsettled_range(FILE, 149, 150) == 11
    assert not window.unsettled_range(FILE, 150, 200)
    assert not window.unsettled_range(FILE, 0, 100)
    assert not window.unsettled_range(InodeNumber(FILE + 1), 100, 150)


@pytest.mark.parametrize(("old_size", "is_unsettled"), [(20, True), (100, False)])
def test_a_write_beyond_the_end_shows_zeros_from_the_old_end_on(old_size: int, is_unsettled: bool) -> None:
    window = window_with((written(11, 100, 50), ()), old_size=old_size)
    assert bool(window.unsettled_range(FILE, 50, 60)) is is_unsettled


def test_a_cut_changes_all_bytes_behind_it() -> None:
    window = window_with((TruncateChange(ChangeNumber(11), NO_REQUEST, 0, FILE, 10), ()))
    assert window.unsettled_range(FILE, 1 << 40, (1 << 40) + 1) == 11
    assert not window.unsettled_range(FILE, 0, 10)


def test_an_action_is_called_once_and_at_once_where_nothing_is_to_wait_for() -> None:
    window = window_with((named(11), ()))
    called: list[str] = []
    window.when_settled(BEFORE, lambda _: called.append("before"))
    window.when_settled(ChangeNumber(11), lambda _: called.append("then"))
    assert called == ["before"]
    window.acknowledge(ChangeNumber(11))
    window.acknowledge(ChangeNumber(12))
    assert called == ["before", "then"]


def test_a_number_comes_once_and_in_order() -> None:
    window = window_with((named(11), ()))
    for wrong in (10, 11):
        with pytest.raises(AssertionError):
            window.add(named(wrong), (), 0, now=0.0)
    window.acknowledge(ChangeNumber(12))
    with pytest.raises(AssertionError):
        window.add(named(12), (), 0, now=0.0)


def test_status_counts_what_is_under_way() -> None:
    window = window_with((written(11, 0, 50), ()), (written(12, 0, 7), ()))
    status = window.status(now=15.5)
    assert (status["pending_requests"], status["pending_bytes"], status["oldest_seconds"]) == (2, 57, 4.5)
    window.acknowledge(ChangeNumber(12))
    assert window.status(now=20.0)["oldest_seconds"] == 0


async def test_the_word_of_a_request_is_asked_for_once_and_only_where_somebody_waits() -> None:
    asked: list[str] = []
    window = Window(BEFORE, lambda: asked.append("word"))
    own = named(11)
    for change in (own, requested(12), requested(13)):
        window.add(change, (), FILE_BYTES_MAX, now=0.0)
    assert await outcome_of(partial(window.settled, ChangeNumber(11)), lambda: None) is None
    assert asked == [], "the word of a change of this host comes by itself"
    for number in (12, 13):
        assert await outcome_of(partial(window.settled, ChangeNumber(number)), lambda: None) is None
    assert asked == ["word"]
    window.acknowledge(ChangeNumber(13))
    window.add(requested(14), (), FILE_BYTES_MAX, now=0.0)
    window.when_settled(ChangeNumber(14), lambda _: None)
    assert asked == ["word"] * 2
