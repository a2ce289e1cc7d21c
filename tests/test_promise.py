"""A promise: one value or one error for one task, whoever comes first."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusemirror.promise import Promise


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
