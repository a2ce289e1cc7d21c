"""The table of a connection decides every pair of state and event."""

import itertools

import pytest

from fusemirror.errors import IllegalTransition
from fusemirror.protocol.states import TRANSITIONS, ConnectionEvent, ConnectionState, next_state


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(ConnectionState)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(ConnectionState, ConnectionEvent)), ids=str
)
def test_every_pair_is_decided(state: ConnectionState, event: ConnectionEvent) -> None:
    if event in TRANSITIONS[state]:
        assert next_state(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.name}.*{event.name}"):
            next_state(state, event)


@pytest.mark.parametrize("state", ConnectionState)
def test_every_state_can_end(state: ConnectionState) -> None:
    assert next_state(state, ConnectionEvent.END) is ConnectionState.CLOSED


def test_nothing_leads_out_of_closed() -> None:
    assert set(TRANSITIONS[ConnectionState.CLOSED].values()) == {ConnectionState.CLOSED}


def test_only_a_hello_of_both_sides_opens() -> None:
    into_open = {
        (state, event)
        for state, row in TRANSITIONS.items()
        for event, following in row.items()
        if following is ConnectionState.OPEN and state is not ConnectionState.OPEN
    }
    assert into_open == {
        (ConnectionState.CALLED, ConnectionEvent.RECEIVE_HELLO),
        (ConnectionState.ASKED, ConnectionEvent.SEND_HELLO),
    }
