"""The steps of a write under exclusive access: Fig. 17 of the source as one table.

Each row is a state of a write; each of its events goes to another state by the figure's steps, whose
numbers stand beside. Seed [0074]-[0078]. The priority is main's [0073]: a write of the backup that finds
main exclusive gives up the subvolume's exclusive status and stands by; one of the primary, once it has
main's, always gets the subvolume's. So whoever waits holds nothing that the one it waits for needs.
"""

from enum import Enum, auto
from typing import NamedTuple

from fusemirror.errors import IllegalTransition


class WriteState(Enum):
    """Where a write stands, at the host whose volume's status it takes first."""

    ANALYSED = auto()
    """Of a program of the backup: it is known what is asked; the subvolume is to be checked."""
    STANDING_BY = auto()
    """Another write of this host, or of main, has the subvolume's status, or is before this one."""
    ASKING_MAIN = auto()
    """The subvolume is exclusive for it; the command and the data are on their way to main."""
    GIVEN_UP = auto()
    """Main is exclusive for another. The subvolume's status is given up; main has this one in its turn."""
    ANALYSED_BY_MAIN = auto()
    """Main is to be checked: for a program of the primary, or for one of the backup that asks."""
    STANDING_BY_AT_MAIN = auto()
    """Another write has main's status, or is before this one."""
    COMMANDING = auto()
    """Main is exclusive for it. The command takes the subvolume's status, the data goes beside it."""
    LANDING = auto()
    """Both volumes are exclusive for it; the data is written to either."""
    CONFLICT = auto()
    """The other host's reservation forbids it."""
    ENDED = auto()
    """Both volumes hold it, or it met an error."""


class WriteEvent(Enum):
    """What a write meets."""

    RESERVED = auto()
    EXCLUSIVE = auto()
    FREE = auto()  # neither
    RELEASED = auto()  # it is this write's turn
    MAIN_EXCLUSIVE = auto()  # main says so, or a command of main comes for the same bytes
    MAIN_TAKEN = auto()  # main is exclusive for this one
    SUBVOLUME_TAKEN = auto()  # the other host says so
    TRANSFERRED = auto()  # both volumes hold it
    FAILED = auto()  # an ordinary error of a filesystem, a check report, or the link is lost


class Go(NamedTuple):
    """To which state, and by which steps of Fig. 17."""

    to: WriteState
    steps: tuple[int, ...] = ()


_S, _E = WriteState, WriteEvent

TABLE: dict[WriteState, dict[WriteEvent, Go]] = {
    # JOB 856 of the backup: 857 analyses, 858 finds that its volume is the exclusive subvolume.
    _S.ANALYSED: {
        _E.RESERVED: Go(_S.CONFLICT, (859, 834, 835)),
        _E.EXCLUSIVE: Go(_S.STANDING_BY, (860, 836)),
        _E.FREE: Go(_S.ASKING_MAIN, (861, 862)),
    },
    # A reservation may have been made meanwhile, so the check begins anew.
    _S.STANDING_BY: {_E.RELEASED: Go(_S.ANALYSED, (856, 857, 858)), _E.FAILED: Go(_S.ENDED)},
    # Main has the last word [0073]: it may be reserved, exclusive for another, or this write's.
    _S.ASKING_MAIN: {
        _E.RESERVED: Go(_S.CONFLICT, (837, 852, 838, 839)),
        _E.MAIN_EXCLUSIVE: Go(_S.GIVEN_UP, (832, 851, 833)),
        _E.MAIN_TAKEN: Go(_S.LANDING, (853,)),
        _E.TRANSFERRED: Go(_S.ENDED),  # it had been carried out before it was asked again
        _E.FAILED: Go(_S.ENDED),
    },
    # From 833 it goes on at main's word, with 861 anew: the subvolume is free for what main is exclusive for.
    _S.GIVEN_UP: {
        _E.RESERVED: Go(_S.CONFLICT),
        _E.MAIN_EXCLUSIVE: Go(_S.GIVEN_UP),
        _E.MAIN_TAKEN: Go(_S.LANDING),
        _E.TRANSFERRED: Go(_S.ENDED),
        _E.FAILED: Go(_S.ENDED),
    },
    _S.ANALYSED_BY_MAIN: {
        _E.RESERVED: Go(_S.CONFLICT, (842, 848, 849)),
        _E.EXCLUSIVE: Go(_S.STANDING_BY_AT_MAIN, (843, 850)),
        _E.FREE: Go(_S.COMMANDING, (844, 845)),
    },
    # As at the subvolume: a reservation may have been made meanwhile.
    _S.STANDING_BY_AT_MAIN: {_E.RELEASED: Go(_S.ANALYSED_BY_MAIN), _E.FAILED: Go(_S.ENDED)},
    # The subvolume is never asked for leave: whoever has its status for less gives it up.
    _S.COMMANDING: {
        _E.SUBVOLUME_TAKEN: Go(_S.LANDING),
        _E.TRANSFERRED: Go(_S.ENDED, (855, 846, 847)),
        _E.FAILED: Go(_S.ENDED),
    },
    # Both statuses last until either volume holds all of the data: a read that came between would be shown
    # the write on one host and not on the other [0079].
    _S.LANDING: {_E.TRANSFERRED: Go(_S.ENDED, (854, 840, 841)), _E.FAILED: Go(_S.ENDED)},
    _S.CONFLICT: {},
    _S.ENDED: {},
}

RESETS = frozenset({_S.GIVEN_UP, _S.CONFLICT, _S.ENDED})
"""States in which a write has no exclusive status of the host's volume: by 851, 852, 854, 855."""


def next_state(state: WriteState, event: WriteEvent) -> WriteState:
    """The state that follows; `IllegalTransition` where the table has no such pair."""
    try:
        return TABLE[state][event].to
    except KeyError:
        raise IllegalTransition(state.name, event.name) from None
