"""The steps of a write under exclusive access: Fig. 17 of the source as two tables, one for each volume.

Seed [0074]-[0076]. The priority is main's [0073]: a write of the backup that finds main exclusive gives
up the subvolume's exclusive status and stands by; one of the primary, once it holds main's, is always
carried out. So whoever waits holds nothing that the one it waits for needs.
"""

from enum import Enum, auto

from fusemirror.errors import IllegalTransition


class Step(Enum):
    """Where a write stands. Numbers are steps of Fig. 17, the subvolume's first."""

    ANALYSED = auto()
    """857, 858: what is asked and of which volume is known; the volume is to be checked."""
    STANDING_BY = auto()
    """836, 850: a write of this host holds the range, and others wait before this one."""
    TRANSFERRING = auto()
    """861-862, 844-845: this host's volume is exclusive; the data is on its way to the other."""
    GIVEN_UP = auto()
    """851, 833: main is exclusive. The subvolume's status is given up; main has the data, and carries
    the write out in its turn."""
    CONFLICT = auto()
    """834-835, 837-839, 848-849: the other host's reservation forbids it."""
    ENDED = auto()
    """853-855, 840-841, 846-847: both volumes hold it, or it met an error; the status is reset."""


class Found(Enum):
    """What a step meets."""

    RESERVED = auto()  # 859, 842, 837
    EXCLUSIVE = auto()  # 860, 843
    FREE = auto()  # neither
    RELEASED = auto()  # it is this write's turn
    MAIN_EXCLUSIVE = auto()  # 832
    TRANSFERRED = auto()  # neither: both volumes hold it
    FAILED = auto()  # an ordinary error of a filesystem, or a check report


Table = dict[Step, dict[Found, Step]]

_S, _F = Step, Found

SUBVOLUME: Table = {
    _S.ANALYSED: {_F.RESERVED: _S.CONFLICT, _F.EXCLUSIVE: _S.STANDING_BY, _F.FREE: _S.TRANSFERRING},
    # A reservation may have been made meanwhile, so the check begins anew.
    _S.STANDING_BY: {_F.RELEASED: _S.ANALYSED, _F.FAILED: _S.ENDED},
    _S.TRANSFERRING: {
        _F.RESERVED: _S.CONFLICT,
        _F.MAIN_EXCLUSIVE: _S.GIVEN_UP,
        _F.TRANSFERRED: _S.ENDED,
        _F.FAILED: _S.ENDED,
    },
    _S.GIVEN_UP: {_F.RESERVED: _S.CONFLICT, _F.TRANSFERRED: _S.ENDED, _F.FAILED: _S.ENDED},
    _S.CONFLICT: {},
    _S.ENDED: {},
}

MAIN: Table = {
    _S.ANALYSED: {_F.RESERVED: _S.CONFLICT, _F.EXCLUSIVE: _S.STANDING_BY, _F.FREE: _S.TRANSFERRING},
    _S.STANDING_BY: {_F.RELEASED: _S.ANALYSED, _F.FAILED: _S.ENDED},
    # 845: the processor always terminates the transfer. The subvolume is never asked for leave.
    _S.TRANSFERRING: {_F.TRANSFERRED: _S.ENDED, _F.FAILED: _S.ENDED},
    _S.GIVEN_UP: {},
    _S.CONFLICT: {},
    _S.ENDED: {},
}

RESETS = frozenset({_S.GIVEN_UP, _S.CONFLICT, _S.ENDED})
"""Steps that reset the exclusive status of the host's volume: 851, 852, 854, 855."""


def next_step(table: Table, step: Step, found: Found) -> Step:
    """The step that follows; `IllegalTransition` where the table has no such pair."""
    try:
        return table[step][found]
    except KeyError:
        raise IllegalTransition(step.name, found.name) from None
