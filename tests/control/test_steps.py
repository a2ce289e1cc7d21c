"""The table of Fig. 17: every pair is decided, every write comes to an end, every step has its place."""

import itertools

import pytest

from fusemirror.control.steps import RESETS, TABLE, WriteEvent, WriteState, next_state
from fusemirror.errors import IllegalTransition

FIRST = (WriteState.ANALYSED, WriteState.ANALYSED_BY_MAIN)
ENDS = {WriteState.CONFLICT, WriteState.ENDED}


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(WriteState, WriteEvent)), ids=lambda each: each.name
)
def test_every_pair_is_decided(state: WriteState, event: WriteEvent) -> None:
    if event in TABLE[state]:
        assert next_state(state, event) in WriteState
    else:
        with pytest.raises(IllegalTransition, match=state.name):
            next_state(state, event)


def reached(state: WriteState) -> set[WriteState]:
    """Every state that may follow, sooner or later."""
    found: set[WriteState] = set()
    frontier = {state}
    while frontier:
        frontier = {go.to for each in frontier for go in TABLE[each].values()} - found
        found |= frontier
    return found


def test_every_write_can_end_and_an_end_is_final() -> None:
    assert {*FIRST, *reached(FIRST[0]), *reached(FIRST[1])} == set(WriteState), "each state has its use"
    for state in WriteState:
        assert state in ENDS or ENDS & reached(state)
        assert state not in ENDS or not TABLE[state]


def test_every_step_of_the_figure_has_its_place() -> None:
    steps = [step for row in TABLE.values() for go in row.values() for step in go.steps]
    assert sorted(steps) == list(range(832, 863)), "each once"


def test_a_write_that_gave_up_asks_no_more_and_takes_the_subvolume_anew_by_mains_word() -> None:
    assert WriteState.ASKING_MAIN not in reached(WriteState.GIVEN_UP)
    assert WriteState.GIVEN_UP in RESETS
    assert next_state(WriteState.GIVEN_UP, WriteEvent.MAIN_TAKEN) is WriteState.LANDING


def test_the_primary_never_gives_up_main_and_waits_for_the_subvolume_nowhere() -> None:
    assert (
        reached(WriteState.ANALYSED_BY_MAIN)
        & {WriteState.GIVEN_UP, WriteState.ASKING_MAIN, WriteState.STANDING_BY}
        == set()
    )
    assert WriteState.CONFLICT not in reached(WriteState.COMMANDING)


def test_the_ways_of_the_figure() -> None:
    state = WriteState.ANALYSED
    for event in (
        WriteEvent.EXCLUSIVE,
        WriteEvent.RELEASED,
        WriteEvent.FREE,
        WriteEvent.MAIN_EXCLUSIVE,
        WriteEvent.MAIN_TAKEN,
    ):
        state = next_state(state, event)
    assert next_state(state, WriteEvent.TRANSFERRED) is WriteState.ENDED
    state = WriteState.ANALYSED_BY_MAIN
    for event in (WriteEvent.FREE, WriteEvent.SUBVOLUME_TAKEN, WriteEvent.TRANSFERRED):
        state = next_state(state, event)
    assert state is WriteState.ENDED
