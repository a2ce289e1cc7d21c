"""The states of the mirror, at the primary and at the backup: two tables, and one function each.

The words that people see (`MirrorWord`) are fewer than the states: the table at the end joins them.
Source: seed steps 702 and 709 (is the mirrored state normal?); design.md sections 2 and 4.
"""

from enum import Enum, IntEnum, auto

from fusemirror.change import AllocateChange, CopyChange, NamespaceChange, TruncateChange, WriteChange
from fusemirror.errors import IllegalTransition
from fusemirror.protocol import messages as m


class PrimaryState(Enum):
    """Where the primary stands with its backup."""

    __hash__ = object.__hash__  # Enum's own is slow, and each message asks for it

    ALONE = auto()
    """No backup serves reads: changes are acknowledged here and marked for later."""
    HOLDING = auto()
    """The link is lost, but the backup may still serve reads under its lease: changes wait."""
    REJOINING = auto()
    """Linked after having been alone; missed records travel, changes are still acknowledged alone."""
    RECOVERING = auto()
    """Linked again before the lease ended; missed records travel, changes wait."""
    RESYNCING = auto()
    """The namespace is equal and every change travels; images that differ are being copied."""
    NORMAL = auto()
    """Both volumes hold the same up to the changes under way."""
    DIVERGED = auto()
    """The histories split: nothing travels until a person decides."""


class PrimaryEvent(Enum):
    LINKED = auto()
    LEASE_OVER = auto()
    CAUGHT_UP = auto()
    COPIED = auto()
    LOST = auto()
    SAID_BYE = auto()
    DIFFERED = auto()


_P, _PE = PrimaryState, PrimaryEvent

PRIMARY_TRANSITIONS: dict[PrimaryState, dict[PrimaryEvent, PrimaryState]] = {
    # Not to RECOVERING: what was acknowledged alone is acknowledged, and nothing waits for the backup that
    # does not have it. No LOST: there is no link to lose.
    _P.ALONE: {_PE.LINKED: _P.REJOINING, _PE.DIFFERED: _P.DIVERGED},
    # The only state that waits for a time: a change that took effect alone before the lease is over would
    # make what the backup still shows old (G2).
    _P.HOLDING: {_PE.LINKED: _P.RECOVERING, _PE.LEASE_OVER: _P.ALONE, _PE.DIFFERED: _P.DIVERGED},
    # A backup that is catching up serves no reads, so losing it here needs no waiting.
    _P.REJOINING: {_PE.CAUGHT_UP: _P.RESYNCING, _PE.LOST: _P.ALONE, _PE.SAID_BYE: _P.ALONE},
    # The changes that wait were made while the backup was there; a cut only makes them wait on.
    _P.RECOVERING: {_PE.CAUGHT_UP: _P.RESYNCING, _PE.LOST: _P.HOLDING, _PE.SAID_BYE: _P.ALONE},
    # From here on it reads under a lease, so losing it is waited out: no way leads to ALONE but its own
    # goodbye, after which nobody reads there.
    _P.RESYNCING: {_PE.COPIED: _P.NORMAL, _PE.LOST: _P.HOLDING, _PE.SAID_BYE: _P.ALONE},
    _P.NORMAL: {_PE.LOST: _P.HOLDING, _PE.SAID_BYE: _P.ALONE},
    # A person has decided, and the hosts have met as primary and backup: what the backup changed gives way,
    # so it begins as one that was away. Until then the hosts meet, and differ, again and again.
    _P.DIVERGED: {_PE.LINKED: _P.REJOINING, _PE.DIFFERED: _P.DIVERGED},
}

PRIMARY_STREAMING = frozenset({_P.RESYNCING, _P.NORMAL})
"""States in which every change travels at once and is acknowledged by the backup."""

PRIMARY_TAKES: dict[type, frozenset[PrimaryState]] = {
    # It acknowledges what it was sent as it was made. While it catches up it gets records in bulk, and
    # CaughtUp counts for all of them.
    m.Applied: PRIMARY_STREAMING,
    m.Declined: PRIMARY_STREAMING,
    # Questions are asked in any state, as to give leases up, and the state may go on before the answer is
    # here. `stream.py` holds each answer against what was asked.
    m.Reply: frozenset(_P),
    m.Fetched: frozenset(_P),
    # It answers Begin, and what it suspects must be marked before anything counts as equal.
    m.Suspects: frozenset({_P.REJOINING, _P.RECOVERING}),
    # Of the host itself. No change depends on it, so it has no place among them.
    m.Room: frozenset(_P),
    m.DiskSpace: frozenset(_P),
    m.Modes: frozenset(_P),
    m.KeyNews: frozenset(_P),
    m.Bye: frozenset(_P),
    # The mirrored change is the answer, so without the stream there would be none.
    m.Request: PRIMARY_STREAMING,
    m.AskStatus: PRIMARY_STREAMING,
    m.StatusTaken: PRIMARY_STREAMING,
    # What has ended is never asked for again (G4), so it may be forgotten in any state.
    m.Ended: frozenset(_P),
    # A lease is granted only while the mirror is normal, and goes unanswered else: nobody waits for it. For
    # WantBack a program waits, and a lease is given up in every state.
    m.WantNames: frozenset(_P),
    m.WantBack: frozenset(_P),
    # A lock is granted with a number of the stream: the grantee waits until it has that change.
    m.ReclaimLocks: PRIMARY_STREAMING,
    m.AskLock: PRIMARY_STREAMING,
    m.CancelLock: PRIMARY_STREAMING,
    m.ReleaseLock: PRIMARY_STREAMING,
    m.ListLocks: PRIMARY_STREAMING,
}
"""Which messages of the backup the primary takes, and in which states."""

# In none of these does a backup read under a lease of this host's, so none shows what is old by now (G2).
PRIMARY_ACKNOWLEDGES_ALONE = frozenset({_P.ALONE, _P.REJOINING, _P.DIVERGED})


class Standing(IntEnum):
    """What the state of the mirror means for what this host may do alone. Of several replicas the highest
    counts: one that gets every change answers for the others as well.
    """

    APART = auto()
    """No link, and nothing is waited for."""
    REJOINS = auto()
    """Linked and behind; it serves no reads."""
    HOLDS = auto()
    """Lost, or linked again, while it may serve reads under its lease."""
    STREAMS = auto()
    """It gets every change at once, and acknowledges."""


PRIMARY_STANDINGS: dict[PrimaryState, Standing] = {
    _P.ALONE: Standing.APART,
    _P.HOLDING: Standing.HOLDS,
    # It is linked, but this host has acknowledged alone since, and goes on doing so until it has caught up.
    _P.REJOINING: Standing.REJOINS,
    # Nothing was acknowledged alone yet, and the lease of before may still run: it goes on waiting.
    _P.RECOVERING: Standing.HOLDS,
    _P.RESYNCING: Standing.STREAMS,
    _P.NORMAL: Standing.STREAMS,
    # The hosts may talk, to tell a person what each changed; but no change travels, so nothing is waited for.
    _P.DIVERGED: Standing.APART,
}


class Taking(Enum):
    """Whether a backup that is linked takes what it is sent."""

    TAKES = auto()
    FULL = auto()
    """Its disk is full; it goes on over this link, or over the next."""
    LEAVING = auto()
    """It has said goodbye; the link lasts as long as its kernel may show what it keeps."""
    LEFT = auto()
    """It has said goodbye, and nobody reads there: the primary goes on alone at once."""


class TakingEvent(Enum):
    FILLED = auto()
    EASED = auto()
    LEAVES = auto()
    LEFT = auto()
    ENDED = auto()
    """The link, by whatever."""


_T, _TE = Taking, TakingEvent

TAKING_TRANSITIONS: dict[Taking, dict[TakingEvent, Taking]] = {
    # A backup tells of its room again and again, so its word need not be news. It holds for one link: over
    # the next the backup tells anew.
    _T.TAKES: {
        _TE.FILLED: _T.FULL,
        _TE.EASED: _T.TAKES,
        _TE.LEAVES: _T.LEAVING,
        _TE.LEFT: _T.LEFT,
        _TE.ENDED: _T.TAKES,
    },
    # A backup whose disk is full for good says goodbye out of this state.
    _T.FULL: {
        _TE.FILLED: _T.FULL,
        _TE.EASED: _T.TAKES,
        _TE.LEAVES: _T.LEAVING,
        _TE.LEFT: _T.LEFT,
        _TE.ENDED: _T.TAKES,
    },
    # So no FILLED or EASED: a word about room that was sent before is read before.
    # Goodbye is the last message over a link: nothing is read after it.
    _T.LEAVING: {_TE.LEFT: _T.LEFT, _TE.ENDED: _T.TAKES},
    _T.LEFT: {_TE.ENDED: _T.TAKES},
}


class BackupState(Enum):
    """Where the backup stands with its primary."""

    __hash__ = object.__hash__  # Enum's own is slow, and each message asks for it

    DISCONNECTED = auto()
    """No stream: requests wait for one, then get a check report."""
    CATCHING_UP = auto()
    """The stream has begun; the namespace here is older than the primary's."""
    RESYNCING = auto()
    """The namespace is up to date; images that differ are read at the primary."""
    NORMAL = auto()
    """The subvolume is a prefix of main."""
    DIVERGED = auto()
    """The histories split, or neither host is the primary: nothing travels until a person decides."""


class BackupEvent(Enum):
    BEGUN = auto()
    CAUGHT_UP = auto()
    COPIED = auto()
    LOST = auto()
    DIFFERED = auto()


_B, _BE = BackupState, BackupEvent

BACKUP_TRANSITIONS: dict[BackupState, dict[BackupEvent, BackupState]] = {
    # LOST, too: a connection may end before the stream has begun.
    _B.DISCONNECTED: {
        _BE.BEGUN: _B.CATCHING_UP,
        _BE.LOST: _B.DISCONNECTED,
        _BE.DIFFERED: _B.DIVERGED,
    },
    # The names here are not what main shows now, so nothing is served, and losing the link costs no more
    # than time.
    # No DIFFERED from here on: the histories were compared before the stream began.
    _B.CATCHING_UP: {_BE.CAUGHT_UP: _B.RESYNCING, _BE.LOST: _B.DISCONNECTED},
    # No state is kept for the next link. How far this volume is it says when the hosts meet again, and what
    # may differ the primary has marked: what was under way over the lost link, too.
    _B.RESYNCING: {_BE.COPIED: _B.NORMAL, _BE.LOST: _B.DISCONNECTED},
    # No way back to RESYNCING: an image that this disk declines later is one that is read at the primary, and
    # the names and all other images are as good as before (seed step 710).
    _B.NORMAL: {_BE.LOST: _B.DISCONNECTED},
    # A link that ends without having begun changes nothing about that.
    _B.DIVERGED: {_BE.BEGUN: _B.CATCHING_UP, _BE.LOST: _B.DIVERGED, _BE.DIFFERED: _B.DIVERGED},
}

BACKUP_SERVES = frozenset({_B.RESYNCING, _B.NORMAL})
"""States in which the backup sends requests and, under its lease, serves reads."""

_ALWAYS = frozenset(_B)
_BEGUN = BACKUP_SERVES | {_B.CATCHING_UP}

BACKUP_TAKES: dict[type, frozenset[BackupState]] = {
    # Once over each link: a second one would throw away what the first has brought.
    m.Begin: frozenset({_B.DISCONNECTED, _B.DIVERGED}),
    m.AccessInEffect: _ALWAYS,
    m.Bye: _ALWAYS,
    m.DiskSpace: _ALWAYS,
    m.Modes: _ALWAYS,
    m.KeyNews: _ALWAYS,
    # While it catches up these are the records that it missed; beside a copy of the catalog, also what is
    # changed meanwhile.
    NamespaceChange: _BEGUN,
    WriteChange: _BEGUN,
    TruncateChange: _BEGUN,
    AllocateChange: _BEGUN,
    # It reads its source here, whose content is right only once the names are.
    CopyChange: BACKUP_SERVES,
    m.TakeStatus: _BEGUN,
    m.WantApplied: _ALWAYS,
    m.CatalogRows: _BEGUN,
    m.OutOfSync: _BEGUN,
    # Once: it acknowledges by number from here on, and a second one would let it acknowledge what it was
    # never sent (`Volume.advance`).
    m.CaughtUp: frozenset({_B.CATCHING_UP}),
    m.Normal: frozenset({_B.RESYNCING}),
    # A host that lacks anything may not become the primary: it would take the order of changes with it.
    m.HandOver: frozenset({_B.NORMAL}),
    # A lease is given up whatever else is: the other host waits for that.
    m.RecallNames: _ALWAYS,
    m.FreeNames: _ALWAYS,
    # Of single images, rows and leases, by their inodes: these mean nothing before the names here are main's.
    **dict.fromkeys(
        (
            m.Digests,
            m.Hole,
            m.RegionData,
            m.ImageCopied,
            m.Resync,
            m.FlushImage,
            m.Checkpoint,
            m.ForgetMarks,
            m.PurgeOffer,
            m.RowsDigest,
            m.ReplaceRows,
            m.FetchRows,
            m.FetchRegion,
            m.LendNames,
            m.HoldNames,
            m.ShareNames,
            m.LockAnswer,
            m.LocksReclaimed,
            m.LocksListed,
        ),
        BACKUP_SERVES,
    ),
}
"""Which messages of the primary the backup takes, and in which states: what was sent in a state of the
primary's arrives in the backup's that belongs to it. All others are for the primary."""


MIRROR_LOST = "the mirror is lost"
"""How the line of the log begins that says so, at either host."""


class MirrorWord(Enum):
    """What `status` says (conventions.md)."""

    NORMAL = "normal"
    RESYNCING = "resyncing"
    DEGRADED = "degraded"
    DIVERGED = "diverged"


WORDS: dict[PrimaryState | BackupState, MirrorWord] = {
    # By what it means for G1. While the primary holds, nothing is mirrored either: that changes wait does not
    # make the state any better, and the reason beside it says so.
    _P.ALONE: MirrorWord.DEGRADED,
    _P.HOLDING: MirrorWord.DEGRADED,
    _P.REJOINING: MirrorWord.RESYNCING,
    _P.RECOVERING: MirrorWord.RESYNCING,
    _P.RESYNCING: MirrorWord.RESYNCING,
    _P.NORMAL: MirrorWord.NORMAL,
    _P.DIVERGED: MirrorWord.DIVERGED,
    _B.DISCONNECTED: MirrorWord.DEGRADED,
    _B.CATCHING_UP: MirrorWord.RESYNCING,
    _B.RESYNCING: MirrorWord.RESYNCING,
    _B.NORMAL: MirrorWord.NORMAL,
    _B.DIVERGED: MirrorWord.DIVERGED,
}


def next_primary_state(state: PrimaryState, event: PrimaryEvent) -> PrimaryState:
    """The state after `event`; `IllegalTransition` where the table has no such pair."""
    try:
        return PRIMARY_TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state.name, event.name) from None


def next_backup_state(state: BackupState, event: BackupEvent) -> BackupState:
    """The state after `event`; `IllegalTransition` where the table has no such pair."""
    try:
        return BACKUP_TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state.name, event.name) from None


def next_taking(taking: Taking, event: TakingEvent) -> Taking:
    """The state after `event`; `IllegalTransition` where the table has no such pair."""
    try:
        return TAKING_TRANSITIONS[taking][event]
    except KeyError:
        raise IllegalTransition(taking.name, event.name) from None
