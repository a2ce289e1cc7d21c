"""The checker accepts what some order explains, and refuses what none does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linearizability.checker import check, smallest
from tests.linearizability.history import Operation, load, save
from tests.linearizability.model import Blocks, File

FILE = 1


def write(tag: int, invoked: int, returned: int | None = None) -> Operation:
    return Operation(f"w{tag}", "write", (FILE, 0, tag), invoked, returned)


def read(result: int | None, invoked: int, returned: int | None = None) -> Operation:
    return Operation("r", "read_block", (FILE, 0), invoked, returned, result)


LINEARIZABLE: dict[str, Sequence[Operation]] = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "a read beside a write sees it": [write(1, 0, 9), read(1, 2, 3)],
    "a read beside a write does not see it": [write(1, 0, 9), read(None, 2, 3)],
    "two writes in either order": [write(1, 0, 9), write(2, 1, 8), read(1, 10, 11)],
    "two that touch are concurrent": [write(1, 0, 5), read(None, 5, 6)],
    "in doubt, and never done": [write(1, 0), read(None, 2, 3), read(None, 90, 91)],
    "in doubt, and done much later": [write(1, 0), write(2, 1, 2), read(2, 3, 4), read(1, 90, 91)],
    "a read in doubt says nothing": [write(1, 0, 1), read(7, 2)],
}

NOT_LINEARIZABLE: dict[str, Sequence[Operation]] = {
    "a read of what nobody wrote": [read(1, 0, 1)],
    "a stale read": [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
    "a write that was lost": [write(1, 0, 1), read(None, 2, 3)],
    "a read before the write": [read(1, 0, 1), write(1, 2, 3)],
    "seen by one, and later not by another": [write(1, 0, 9), read(1, 1, 2), read(None, 3, 4)],
    "two readers see two orders": [
        *(write(1, 0, 9), write(2, 0, 9)),
        *(read(1, 10, 20), read(2, 21, 30)),
    ],
    "in doubt, and done twice": [write(1, 0), read(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)],
    "in doubt, and done before it was asked": [read(1, 0, 1), write(1, 2)],
}


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_what_an_order_explains_is_accepted(history: Sequence[Operation]) -> None:
    assert check(history, File()) is None


@pytest.mark.parametrize("history", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_what_no_order_explains_is_refused(history: Sequence[Operation]) -> None:
    violation = check(history, File())
    assert violation is not None
    assert violation.stuck[0] in history
    assert str(violation.stuck[0]) in str(violation)


# --- histories from an execution one after the other ----------------------------------------------------

GAP = 100  # between the moments at which two operations take effect

Call = tuple[str, tuple[int, ...]]
block = st.integers(0, 3)
calls = st.one_of(
    st.tuples(st.just("write"), st.tuples(block)),
    st.tuples(st.just("append"), st.just(())),
    st.tuples(st.just("truncate"), st.tuples(block)),
    st.tuples(st.just("read"), st.just(())),
    st.tuples(st.just("read_block"), st.tuples(block)),
    st.tuples(st.just("size"), st.just(())),
)
stretch = st.integers(0, 6 * GAP)


def execute(programme: Sequence[Call], first_tag: int = 1) -> list[Operation]:
    """What a file tells that does one call after the other, each in no time."""
    history: list[Operation] = []
    state: Blocks = ()
    for index, (call, place) in enumerate(programme):
        tag = (first_tag + index,) if call in ("write", "append") else ()
        operation = Operation(f"p{index}", call, (FILE, *place, *tag), index * GAP, index * GAP)
        operation = replace(operation, result=_answer(state, operation))
        (state,) = File().steps(state, operation)
        history.append(operation)
    return history


def _answer(state: Blocks, operation: Operation) -> object:
    match operation.call:
        case "read":
            return state
        case "read_block":
            index = operation.arguments[1]
            return state[index] if index < len(state) else None
        case "size":
            return len(state)
    return None


def widen(history: Sequence[Operation], draw: Callable[[st.SearchStrategy[int]], int]) -> list[Operation]:
    return [
        replace(each, invoked=each.invoked - draw(stretch), returned=(each.returned or 0) + draw(stretch))
        for each in history
    ]


@given(st.lists(calls, max_size=40), st.data())
def test_stretched_over_the_moments_of_effect_it_is_accepted(
    programme: list[Call], data: st.DataObject
) -> None:
    history = widen(execute(programme), data.draw)
    doubtful = data.draw(st.sets(st.integers(0, 39), max_size=5))
    history = [each.in_doubt() if index in doubtful else each for index, each in enumerate(history)]
    never_done = Operation("never", "write", (FILE, 0, 999), data.draw(stretch))
    assert check(data.draw(st.permutations([*history, never_done])), File()) is None


@given(st.lists(calls, max_size=20), st.lists(calls, max_size=20), st.data())
def test_with_one_stale_read_it_is_refused(
    before: list[Call], after: list[Call], data: st.DataObject
) -> None:
    """A write that overlaps nothing, and after it a read that overlaps nothing and misses it."""
    history = execute([*before, ("write", (0,)), ("read_block", (0,)), *after])
    at = len(before)
    tagged, seen = history[at], history[at + 1]
    earlier = _answer(_state_after(history[:at]), seen)
    stale = replace(seen, result=earlier)
    others = [
        *(
            replace(each, returned=min(each.returned or 0, tagged.invoked - 1))
            for each in widen(history[:at], data.draw)
        ),
        *(
            replace(each, invoked=max(each.invoked, (seen.returned or 0) + 1))
            for each in widen(history[at + 2 :], data.draw)
        ),
    ]
    assert check([*others, tagged, seen], File()) is None
    broken = [*others, tagged, stale]
    assert check(broken, File()) is not None
    short = smallest(broken, File())
    assert check(short, File()) is not None
    assert len(short) <= len(broken)


def _state_after(history: Sequence[Operation]) -> Blocks:
    state: Blocks = ()
    for operation in history:
        (state,) = File().steps(state, operation)
    return state


def test_the_smallest_history_holds_what_it_takes() -> None:
    noise = [read(1, time, time + 1) for time in range(2, 40, 2)]
    history = [write(1, 0, 1), *noise, write(2, 50, 51), read(1, 60, 61), write(3, 70, 71), read(3, 80, 81)]
    assert smallest(history, File()) == [write(1, 0, 1), write(2, 50, 51), read(1, 60, 61)]


def test_a_long_history_of_many_processes_is_judged_quickly() -> None:
    """Each operation overlaps the next five; a search that forgot what it had tried would not end."""
    programme: list[Call] = [("write", (index % 4,)) if index % 2 else ("read", ()) for index in range(5_000)]
    history = [replace(each, returned=(each.returned or 0) + 5 * GAP) for each in execute(programme)]
    assert check(history, File()) is None
    last = replace(history[-1], call="read", arguments=(FILE,), result=(1, 2, 3, 4))
    assert check([*history, last], File()) is not None


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = [write(1, 0, 1), write(2, 3), Operation("p", "read", (FILE,), 4, 5, (1, 2)), *execute([])]
    save(history, tmp_path / "history")
    assert load(tmp_path / "history") == history
