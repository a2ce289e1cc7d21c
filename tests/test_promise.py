"""A promise: one value or one error for one task, whoever comes first."""

from typing import Any

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusemirror.promise import Promise, begin, go_on_after, gone_on, resumed


async def waited(promise: Promise[int], results: list[object]) -> None:
    try:
        results.append(await promise.wait())
    except ValueError as error:
        results.append(str(error))


async def test_a_value_given_before_is_there_at_once() -> None:
    promise: Promise[int] = Promise()
    promise.resolve(7)
    assert promise.settled
    with trio.CancelScope() as scope:
        scope.cancel()  # what is there needs no checkpoint
        assert await promise.wait() == 7
    assert not scope.cancelled_caught


async def test_a_value_given_later_wakes_the_task_that_waits() -> None:
    promise: Promise[int] = Promise()
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited, promise, results)
        await wait_all_tasks_blocked()
        assert not promise.settled
        assert not results
        promise.resolve(7)
    assert results == [7]


async def test_a_rejection_before_is_raised() -> None:
    promise: Promise[int] = Promise()
    promise.reject(ValueError("lost"))
    assert promise.settled
    with pytest.raises(ValueError, match="lost"):
        await promise.wait()


async def test_a_rejection_later_is_raised_in_the_task_that_waits() -> None:
    promise: Promise[int] = Promise()
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited, promise, results)
        await wait_all_tasks_blocked()
        promise.reject(ValueError("lost"))
    assert results == ["lost"]


@pytest.mark.parametrize("waits", [False, True], ids=["settled before", "settled while waited for"])
async def test_only_the_first_outcome_counts(waits: bool) -> None:
    promise: Promise[int] = Promise()
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        if waits:
            nursery.start_soon(waited, promise, results)
            await wait_all_tasks_blocked()
        promise.resolve(1)
        promise.resolve(2)
        promise.reject(ValueError("too late"))
        if not waits:
            nursery.start_soon(waited, promise, results)
    assert results == [1]


async def test_a_cancelled_wait_leaves_the_promise_usable() -> None:
    promise: Promise[int] = Promise()
    with trio.CancelScope() as scope:
        scope.cancel()
        await promise.wait()
    assert scope.cancelled_caught
    assert not promise.settled
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited, promise, results)
        await wait_all_tasks_blocked()
        promise.resolve(7)
    assert results == [7]


async def test_a_value_for_a_task_that_gave_up_is_kept() -> None:
    promise: Promise[int] = Promise()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(promise.wait)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    promise.resolve(7)
    assert await promise.wait() == 7


async def test_a_value_given_is_not_lost_to_a_cancellation_in_the_same_turn() -> None:
    promise: Promise[int] = Promise()
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited, promise, results)
        await wait_all_tasks_blocked()
        promise.resolve(7)
        nursery.cancel_scope.cancel()
    assert results == [7]


class Ended:
    """What became of a coroutine without a task."""

    def __init__(self) -> None:
        self.result: outcome.Outcome[Any] | None = None
        self.error: outcome.Outcome[Any] | None = None

    def ended(self, result: "outcome.Outcome[Any]") -> None:
        self.result = result

    def failed(self, error: "outcome.Outcome[Any]") -> None:
        self.error = error


async def twice(before: Promise[int], last: Promise[int]) -> int:
    return 2 * await before.wait() + await last.wait_last()


def test_a_coroutine_without_a_task_goes_on_where_a_promise_is_settled() -> None:
    there, last, ending = Promise[int](), Promise[int](), Ended()
    there.resolve(2)
    coroutine = twice(there, last)
    promise = begin(coroutine)
    assert promise is last
    go_on_after(promise, coroutine, ending)
    assert ending.result is None
    last.resolve(3)
    assert ending.result == outcome.Value(7)


def test_one_that_need_not_wait_has_ended_at_once() -> None:
    before, last = Promise[int](), Promise[int]()
    before.resolve(4)
    last.resolve(4)
    with pytest.raises(StopIteration) as end:
        begin(twice(before, last))
    assert end.value.value == 12


async def test_one_that_waits_before_keeps_its_task() -> None:
    before, last = Promise[int](), Promise[int]()
    results: list[int] = []

    async def asking() -> None:
        coroutine = twice(before, last)
        results.append(await resumed(coroutine, begin(coroutine)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        for promise in (before, last):
            await wait_all_tasks_blocked()
            promise.resolve(4)
    assert results == [12]


def test_one_that_waits_after_the_last_wait_is_a_mistake() -> None:
    async def asking() -> None:
        await last.wait_last()
        await other.wait_last()

    last, other, ending = Promise[int](), Promise[int](), Ended()
    coroutine = asking()
    go_on_after(begin(coroutine), coroutine, ending)
    last.resolve(3)
    assert isinstance(ending.result, outcome.Error)


async def test_one_that_meets_an_error_goes_on_in_a_task() -> None:
    async def asking() -> str:
        try:
            await promise.wait_last()
        except ValueError as error:
            await trio.lowlevel.checkpoint()
            return str(error)
        return "nothing"

    promise, ending = Promise[int](), Ended()
    coroutine = asking()
    go_on_after(begin(coroutine), coroutine, ending)
    promise.reject(ValueError("why"))
    assert ending.result is None
    assert ending.error is not None
    assert await gone_on(coroutine, ending.error) == "why"


async def test_a_task_waits_as_ever_while_others_have_none() -> None:
    """Also for a promise that a coroutine settles which goes on without a task."""
    first, second, results = Promise[int](), Promise[int](), list[object]()

    async def settling() -> None:
        second.resolve(await first.wait_last())

    coroutine = settling()
    go_on_after(begin(coroutine), coroutine, Ended())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited, second, results)
        await wait_all_tasks_blocked()
        first.resolve(3)
    assert results == [3]
