"""The tables of the mirror decide every pair of state and event, and say what they refuse."""

import itertools

import pytest

from fusemirror.errors import IllegalTransition
from fusemirror.mirror.states import (
    BACKUP_SERVES,
    BACKUP_TRANSITIONS,
    PRIMARY_ACKNOWLEDGES_ALONE,
    PRIMARY_STREAMING,
    PRIMARY_TRANSITIONS,
    TAKING_TRANSITIONS,
    WORDS,
    BackupEvent,
    BackupState,
    MirrorWord,
    PrimaryEvent,
    PrimaryState,
    Taking,
    TakingEvent,
    next_backup_state,
    next_primary_state,
    next_taking,
)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(PrimaryState, PrimaryEvent)), ids=str)
def test_every_pair_of_the_primary_is_decided(state: PrimaryState, event: PrimaryEvent) -> None:
    if event in PRIMARY_TRANSITIONS[state]:
        assert next_primary_state(state, event) is PRIMARY_TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.name}.*{event.name}"):
            next_primary_state(state, event)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(BackupState, BackupEvent)), ids=str)
def test_every_pair_of_the_backup_is_decided(state: BackupState, event: BackupEvent) -> None:
    if event in BACKUP_TRANSITIONS[state]:
        assert next_backup_state(state, event) is BACKUP_TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.name}.*{event.name}"):
            next_backup_state(state, event)


def test_every_state_has_a_row_and_a_word() -> None:
    assert set(PRIMARY_TRANSITIONS) == set(PrimaryState)
    assert set(BACKUP_TRANSITIONS) == set(BackupState)
    assert set(WORDS) == {*PrimaryState, *BackupState}


def test_every_state_can_be_reached_from_the_first() -> None:
    assert _reachable(PRIMARY_TRANSITIONS, PrimaryState.HOLDING) == set(PrimaryState)
    assert _reachable(BACKUP_TRANSITIONS, BackupState.DISCONNECTED) == set(BackupState)


def _reachable(table: dict, first: object) -> set[object]:  # type: ignore[type-arg]
    reached: set[object] = set()
    new = {first}
    while new:
        reached |= new
        new = {following for state in new for following in table[state].values()} - reached
    return reached


@pytest.mark.parametrize("state", [state for state in PrimaryState if state in PRIMARY_STREAMING])
def test_a_primary_that_loses_a_serving_backup_waits_for_the_end_of_its_lease(state: PrimaryState) -> None:
    lost = next_primary_state(state, PrimaryEvent.LOST)
    assert lost is PrimaryState.HOLDING
    assert next_primary_state(lost, PrimaryEvent.LEASE_OVER) is PrimaryState.ALONE


@pytest.mark.parametrize(
    "state", [state for state in PrimaryState if PrimaryEvent.SAID_BYE in PRIMARY_TRANSITIONS[state]]
)
def test_after_a_goodbye_the_primary_goes_on_alone_at_once(state: PrimaryState) -> None:
    assert next_primary_state(state, PrimaryEvent.SAID_BYE) in PRIMARY_ACKNOWLEDGES_ALONE


def test_no_state_both_streams_and_acknowledges_alone() -> None:
    assert not PRIMARY_STREAMING & PRIMARY_ACKNOWLEDGES_ALONE


def test_waiting_changes_are_never_acknowledged_alone_because_of_a_cut() -> None:
    waiting = set(PrimaryState) - PRIMARY_ACKNOWLEDGES_ALONE
    into_alone = {
        (state, event)
        for state in waiting
        for event, following in PRIMARY_TRANSITIONS[state].items()
        if following in PRIMARY_ACKNOWLEDGES_ALONE - {PrimaryState.DIVERGED}
    }
    assert {event for _, event in into_alone} == {PrimaryEvent.LEASE_OVER, PrimaryEvent.SAID_BYE}


@pytest.mark.parametrize("state", BackupState)
def test_a_backup_that_lost_its_primary_serves_nothing(state: BackupState) -> None:
    assert next_backup_state(state, BackupEvent.LOST) not in BACKUP_SERVES


def test_only_a_caught_up_backup_serves() -> None:
    into_serving = {
        (state, event)
        for state, row in BACKUP_TRANSITIONS.items()
        for event, following in row.items()
        if following in BACKUP_SERVES and state not in BACKUP_SERVES
    }
    assert into_serving == {(BackupState.CATCHING_UP, BackupEvent.CAUGHT_UP)}


def test_status_says_normal_only_where_both_volumes_are_the_same() -> None:
    assert {state for state, word in WORDS.items() if word is MirrorWord.NORMAL} == {
        PrimaryState.NORMAL,
        BackupState.NORMAL,
    }


@pytest.mark.parametrize(("taking", "event"), list(itertools.product(Taking, TakingEvent)), ids=str)
def test_every_pair_of_what_a_backup_takes_is_decided(taking: Taking, event: TakingEvent) -> None:
    if event in TAKING_TRANSITIONS[taking]:
        assert next_taking(taking, event) is TAKING_TRANSITIONS[taking][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{taking.name}.*{event.name}"):
            next_taking(taking, event)
    assert next_taking(taking, TakingEvent.ENDED) is Taking.TAKES, "the next link begins as any does"
