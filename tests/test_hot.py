"""A function is called whenever a descriptor is readable, the same in the hot loop and in a task."""

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from fusemirror import hot
from fusemirror.limits import HOT_CALLS_PER_TURN
from fusemirror.promise import gone_on

DEADLINE_S = 5.0


@pytest.fixture(params=["hot", "in a task"])
async def loop(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "hot":
        assert hot.install(), "trio is not as it is known: see hot.py, and what small writes cost without it"
    with trio.fail_after(DEADLINE_S):
        yield request.param


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


async def test_it_is_called_until_it_says_so(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    taken: list[bytes] = []

    def take() -> bool:
        taken.append(ours.recv(10))
        return taken[-1] == b"end"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hot.readable, ours.fileno(), take)
        for word in (b"one", b"two", b"end", b"left"):
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(word)
    assert taken == [b"one", b"two", b"end"]
    assert ours.recv(10) == b"left"


async def test_nobody_is_called_who_does_not_wait(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"one")
    await hot.readable(ours.fileno(), lambda: True)
    await trio.sleep(0.001)  # what is left there does not turn the loop in circles
    await hot.readable(ours.fileno(), lambda: bool(ours.recv(10)))


async def test_what_it_raises_is_raised_where_it_is_waited_for(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"one")

    def fail() -> bool:
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        await hot.readable(ours.fileno(), fail)
    await hot.readable(ours.fileno(), lambda: bool(ours.recv(10)))


async def test_who_waits_is_told_that_it_is_closed(loop: str, ends: Ends) -> None:
    ours, _ = ends
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await hot.readable(ours.fileno(), lambda: True)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        hot.notify_closing(ours.fileno())
    hot.notify_closing(ours.fileno())  # nobody waits


async def test_the_error_counts_of_one_who_closes_it_first(ends: Ends) -> None:
    assert hot.install()
    ours, theirs = ends
    theirs.send(b"one")

    def close(error: Exception | None) -> bool:
        hot.notify_closing(ours.fileno())
        if error is not None:
            raise error
        return False

    with pytest.raises(KeyError):
        await hot.readable(ours.fileno(), lambda: close(KeyError("why")))
    with pytest.raises(trio.ClosedResourceError):
        await hot.readable(ours.fileno(), lambda: close(None))


async def test_what_it_took_counts_of_one_who_closes_it_then(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"one")

    def take_and_close() -> bool:
        hot.notify_closing(ours.fileno())
        return bool(ours.recv(10))

    assert await hot.readable(ours.fileno(), take_and_close) is None


async def test_a_cancelled_task_waits_no_more(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    with trio.move_on_after(0.001):
        await hot.readable(ours.fileno(), lambda: True)
    theirs.send(b"one")
    await hot.readable(ours.fileno(), lambda: bool(ours.recv(10)))


async def test_it_may_cancel_who_waits(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"one")
    with trio.CancelScope() as scope:

        def cancel() -> bool:
            scope.cancel()
            return False

        await hot.readable(ours.fileno(), cancel)
    assert scope.cancelled_caught


async def test_two_do_not_wait_for_one_descriptor(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hot.readable, ours.fileno(), lambda: bool(ours.recv(10)))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await hot.readable(ours.fileno(), lambda: True)
        theirs.send(b"one")


async def test_a_stream_of_calls_keeps_no_task_from_its_turn(loop: str, ends: Ends) -> None:
    """Neither one that a deadline wakes, nor one that waits for a descriptor as trio has it."""
    ours, theirs = ends
    other, its_end = socket.socketpair()
    calls, turns = 0, 0

    def echo() -> bool:
        nonlocal calls
        ours.recv(10)
        theirs.send(b"again")
        calls += 1
        return turns >= 3

    async def take_turns() -> None:
        nonlocal turns
        await trio.sleep(0.001)
        turns += 1
        its_end.send(b"x")
        await trio.lowlevel.wait_readable(other)
        turns += 1
        await trio.lowlevel.checkpoint()
        turns += 1

    with other, its_end:
        theirs.send(b"first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            await hot.readable(ours.fileno(), echo)
    assert turns == 3


async def test_a_task_that_is_woken_is_next(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    event = trio.Event()
    calls = 0
    seen: list[int] = []

    def wake() -> bool:
        nonlocal calls
        ours.recv(10)
        theirs.send(b"again")
        calls += 1
        event.set()
        return bool(seen)

    async def wait() -> None:
        await event.wait()
        seen.append(calls)

    theirs.send(b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await hot.readable(ours.fileno(), wake)
    assert seen[0] <= (1 if loop == "hot" else HOT_CALLS_PER_TURN)


async def paused(seconds: float, pauses: list[str]) -> str:
    with trio.CancelScope(deadline=trio.current_time() + seconds):
        await trio.sleep_forever()
    pauses.append("a deadline")
    await trio.lowlevel.checkpoint()
    return "its end"


async def test_what_it_begins_waits_in_the_task(loop: str, ends: Ends) -> None:
    """And another may wait for the descriptor meanwhile."""
    ours, theirs = ends
    pauses: list[str] = []
    coroutine = paused(0.001, pauses)
    tasks: list[object] = []

    def begin() -> hot.Trapped:
        ours.recv(10)
        tasks.append(trio.lowlevel.current_task())
        nursery.start_soon(hot.readable, ours.fileno(), lambda: bool(ours.recv(10)))
        return hot.Trapped(coroutine.send(None))

    theirs.send(b"one")
    async with trio.open_nursery() as nursery:
        trapped = await hot.readable(ours.fileno(), begin)
        assert trapped is not None
        assert trapped.given is not None
        assert await gone_on(coroutine, trapped.given) == "its end"
        theirs.send(b"two")
    assert pauses == ["a deadline"]
    assert tasks == [trio.lowlevel.current_task()]


async def test_a_checkpoint_is_one_there(loop: str, ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"one")
    checkpoint = trio.lowlevel.checkpoint()  # noqa: ASYNC105 - begun by hand
    trapped = await hot.readable(ours.fileno(), lambda: hot.Trapped(checkpoint.send(None)))
    assert trapped is not None
    assert trapped.given is not None
    await gone_on(checkpoint, trapped.given)


@pytest.mark.parametrize("before", [False, True])
async def test_what_it_begins_is_cancelled_with_the_task(loop: str, ends: Ends, before: bool) -> None:
    ours, theirs = ends
    theirs.send(b"one")
    with trio.CancelScope() as scope:
        sleep = trio.sleep_forever()  # noqa: ASYNC105 - begun by hand

        def begin() -> hot.Trapped:
            if before:
                scope.cancel()
            return hot.Trapped(sleep.send(None))

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cancel() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            trapped = await hot.readable(ours.fileno(), begin)
            assert trapped is not None
            assert trapped.given is not None
            await gone_on(sleep, trapped.given)
    assert scope.cancelled_caught


async def test_elsewhere_trio_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.setattr("fusemirror.hot.select.epoll", type("other", (), {}))
    ours, theirs = ends
    assert not hot.install()
    theirs.send(b"one")
    await hot.readable(ours.fileno(), lambda: bool(ours.recv(10)))


def test_another_loop_of_the_process_is_not_hot() -> None:
    async def install() -> type:
        assert hot.install()
        return type(trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager)

    async def look() -> type:
        return type(trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager)

    assert trio.run(install) is not trio.run(look)
