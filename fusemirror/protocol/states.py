"""The one table of a connection: which state follows which event.

    dialer    CALLING -> CALLED ------------------> OPEN -> CLOSED
    acceptor  LISTENING -> ASKED (theirs is checked) -> OPEN -> CLOSED

Each side says Hello once. Either may refuse the other's Hello; then the connection ends.
"""

from enum import Enum, auto

from fusemirror.errors import IllegalTransition


class ConnectionState(Enum):
    CALLING = auto()  # we dialed, and say Hello first
    CALLED = auto()  # we said Hello, and wait for theirs
    LISTENING = auto()  # they dialed: their Hello comes first
    ASKED = auto()  # they said Hello, and wait for ours
    OPEN = auto()
    CLOSED = auto()


class ConnectionEvent(Enum):
    SEND_HELLO = auto()
    RECEIVE_HELLO = auto()
    SEND_REFUSED = auto()
    RECEIVE_REFUSED = auto()
    SEND_MESSAGE = auto()
    RECEIVE_MESSAGE = auto()
    END = auto()  # the stream ended, or carried what is no protocol


S = ConnectionState
E = ConnectionEvent

TRANSITIONS: dict[ConnectionState, dict[ConnectionEvent, ConnectionState]] = {
    S.CALLING: {E.SEND_HELLO: S.CALLED, E.END: S.CLOSED},
    S.CALLED: {
        E.RECEIVE_HELLO: S.OPEN,
        E.RECEIVE_REFUSED: S.CLOSED,
        E.END: S.CLOSED,
    },
    # No SEND_REFUSED: whoever has not said who it is hears nothing, and learns nothing of this host (G7).
    S.LISTENING: {E.RECEIVE_HELLO: S.ASKED, E.END: S.CLOSED},
    S.ASKED: {E.SEND_HELLO: S.OPEN, E.SEND_REFUSED: S.CLOSED, E.END: S.CLOSED},
    S.OPEN: {
        E.SEND_MESSAGE: S.OPEN,
        E.RECEIVE_MESSAGE: S.OPEN,
        # The dialer refuses an answer to its Hello when the acceptor holds the connection open.
        E.SEND_REFUSED: S.CLOSED,
        E.RECEIVE_REFUSED: S.CLOSED,
        E.END: S.CLOSED,
    },
    # A stream may end once more behind a refusal, and that is no news.
    S.CLOSED: {E.END: S.CLOSED},
}


def next_state(state: ConnectionState, event: ConnectionEvent) -> ConnectionState:
    """The state after `event`; `IllegalTransition` if the table decides nothing for it."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state.name, event.name) from None
