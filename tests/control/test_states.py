"""The table of the life of a role decides every pair of state and event, and says what it refuses."""

import itertools

import pytest

from fusemirror.control.states import (
    BEFORE_READY,
    PARKED,
    REFUSING,
    TRANSITIONS,
    RoleEvent,
    RoleState,
    next_role_state,
)
from fusemirror.errors import IllegalTransition


@pytest.mark.parametrize(("state", "event"), list(itertools.product(RoleState, RoleEvent)), ids=str)
def test_every_pair_is_decided(state: RoleState, event: RoleEvent) -> None:
    if event in TRANSITIONS[state]:
        assert next_role_state(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.name}.*{event.name}"):
            next_role_state(state, event)


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, new = set(), {RoleState.BEGINNING}
    while new:
        reached |= new
        new = {following for state in new for following in TRANSITIONS[state].values()} - reached
    assert reached == set(RoleState)


def test_whatever_is_prepared_ends_one_way_or_the_other() -> None:
    for state in PARKED:
        assert set(TRANSITIONS[state]) == {RoleEvent.STAY, RoleEvent.RETIRE}
        assert TRANSITIONS[state][RoleEvent.STAY] not in PARKED | REFUSING


def test_a_role_that_stays_is_what_it_was() -> None:
    for state in (RoleState.BEGINNING, RoleState.SERVING):
        suspended = next_role_state(state, RoleEvent.SUSPEND)
        assert next_role_state(suspended, RoleEvent.STAY) is state
        assert (suspended in BEFORE_READY) == (state in BEFORE_READY)


def test_who_has_retired_serves_nobody_for_ever() -> None:
    assert RoleState.RETIRED in REFUSING - PARKED
    assert not TRANSITIONS[RoleState.RETIRED]
