"""The states in the life of a role: from when this host has it until it has the other one. One table.

A role is served by one unit, which ends with it. While a change of the role is prepared, requests wait before
the unit (`PARKED`); once the change is durable the unit retires, and requests are made anew to the next one.
"""

from enum import Enum, auto

from fusemirror.errors import IllegalTransition


class RoleState(Enum):
    """Where a role stands."""

    __hash__ = object.__hash__  # Enum's own is slow, and each request asks for it

    BEGINNING = auto()
    """A primary that serves nothing yet. Not before the other host was met, or this one goes on alone: the
    other may have taken over meanwhile, or hold changes that an earlier process of this one has lost."""
    SERVING = auto()
    """Requests are served."""
    HANDING_OVER = auto()
    """A primary that gives its role away: what it decided now, neither host would ever have."""
    SUSPENDED_AT_BEGINNING = auto()
    """As `SUSPENDED`, and it goes back to `BEGINNING`."""
    SUSPENDED = auto()
    """What this host changed since the fork point is copied to quarantine, so nothing is changed."""
    RETIRED = auto()
    """This host has the other role now."""


class RoleEvent(Enum):
    """What a role meets."""

    READY = auto()
    """The peer was met, or this host goes on alone."""
    HAND_OVER = auto()
    SUSPEND = auto()
    STAY = auto()
    """The change that was prepared does not come about."""
    RETIRE = auto()


_S, _E = RoleState, RoleEvent

TRANSITIONS: dict[RoleState, dict[RoleEvent, RoleState]] = {
    # No HAND_OVER: only what has met its backup, and mirrors, is handed over.
    _S.BEGINNING: {
        _E.READY: _S.SERVING,
        _E.SUSPEND: _S.SUSPENDED_AT_BEGINNING,
        _E.STAY: _S.BEGINNING,
        _E.RETIRE: _S.RETIRED,
    },
    # No READY: it serves already, and whoever waited for that has gone on.
    _S.SERVING: {
        _E.HAND_OVER: _S.HANDING_OVER,
        _E.SUSPEND: _S.SUSPENDED,
        _E.STAY: _S.SERVING,
        _E.RETIRE: _S.RETIRED,
    },
    # It is prepared by one task, which prepares no other change meanwhile: no SUSPEND in these.
    _S.HANDING_OVER: {_E.STAY: _S.SERVING, _E.RETIRE: _S.RETIRED},
    _S.SUSPENDED_AT_BEGINNING: {_E.STAY: _S.BEGINNING, _E.RETIRE: _S.RETIRED},
    # They go back to where they came from. One that was not ready must not serve because a change of its
    # role came to nothing.
    _S.SUSPENDED: {_E.STAY: _S.SERVING, _E.RETIRE: _S.RETIRED},
    # Nothing leads back: what this unit knew of the order of changes is the other host's to continue. When
    # this host has the role again it gets another unit, with another life.
    _S.RETIRED: {},
}

# To answer them now would be to decide for a role that may be gone with the next step.
PARKED = frozenset({_S.HANDING_OVER, _S.SUSPENDED_AT_BEGINNING, _S.SUSPENDED})
"""Whoever asks now waits until it is known which role this host goes on with."""

# Not HANDING_OVER: what is decided already is brought to its end there, before the role goes.
REFUSING = frozenset({_S.SUSPENDED_AT_BEGINNING, _S.SUSPENDED, _S.RETIRED})
"""Whoever is in the unit already, and would change or show something, gets `RoleChanged` and asks anew."""

# What it decided before that could stand beside what the other host has decided since, as the primary (G6).
BEFORE_READY = frozenset({_S.BEGINNING, _S.SUSPENDED_AT_BEGINNING})


def next_role_state(state: RoleState, event: RoleEvent) -> RoleState:
    """The state after `event`; `IllegalTransition` where the table has no such pair."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state.name, event.name) from None
