"""What two volumes do when they meet: tables over where each stands in the order of changes.

A generation is a line of changes; a new one begins at the first change made without the peer. Each
volume knows its generations, newest first, with the number at which each began; they are a row of
its catalog, so that they travel as every row does.

Two comparisons, and both hosts compute the same: `relation` says how two histories stand to each
other, and `meet` says by it which of the hosts is the primary. A role is given away by the host that
has it, durably and under a higher term, and only then taken by the other: so a change of roles that
is cut short anywhere leaves a pair that meets again with one primary. Source: DRBD's generation
identifiers (drbd.conf(5)); the terms of Raft; design.md G5, G6.
"""

from enum import Enum, auto

import msgspec

from fusemirror.change import Row as CatalogRow
from fusemirror.change import Table
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import GENERATIONS_MAX
from fusemirror.protocol.messages import Claim, Generation, History
from fusemirror.volume.rows import GENERATIONS_KEY, TERM_KEY
from fusemirror.volume.volume import Volume

_generations = msgspec.msgpack.Decoder(tuple[Generation, ...])


# --- how two histories stand to each other ------------------------------------------------------------


class Relation(Enum):
    """Our history, seen from theirs."""

    SAME = auto()
    BEHIND = auto()
    AHEAD = auto()
    TAIL = auto()
    """We are behind, but for last changes that their line has left out, and began no line of our own."""
    AHEAD_OF_TAIL = auto()
    """The same the other way round: theirs is the tail that our line has left out."""
    DIVERGED = auto()
    """Both began a line of their own: split brain."""
    UNRELATED = auto()
    """No generation in common: not two copies of one filesystem."""


# The columns, each True, False, or None where it does not matter:
#   we known:    our newest generation is one of theirs
#   they known:  their newest generation is one of ours
#   we within:   our last change stands in their line: before they left our newest generation, and not
#                after their own last change
#   they within: the same of their last change in ours
#   shared:      there is a generation that both have
Columns = tuple[bool | None, bool | None, bool | None, bool | None, bool | None]

RELATIONS: tuple[tuple[Columns, Relation], ...] = (
    # One newest generation, so one line: the numbers alone tell who holds more of it.
    ((True, True, True, True, None), Relation.SAME),
    ((True, True, True, False, None), Relation.BEHIND),
    ((True, True, False, True, None), Relation.AHEAD),
    # They went on from a place that we have not passed.
    ((True, False, True, None, None), Relation.BEHIND),
    # They went on without us from before our last changes. Had anyone relied on those while we were
    # alone we would have begun a generation; so they were never acknowledged, or died in a power cut.
    ((True, False, False, None, None), Relation.TAIL),
    # The same two, seen from the other host: each acts by its own answer, so the two must fit.
    ((False, True, None, True, None), Relation.AHEAD),
    ((False, True, None, False, None), Relation.AHEAD_OF_TAIL),
    # Neither newest generation is in the other's past: both went on alone from what they share.
    ((False, False, None, None, True), Relation.DIVERGED),
    ((False, False, None, None, False), Relation.UNRELATED),
    # Two last changes of one line, each behind the other: no numbers are like that.
    ((True, True, False, False, None), Relation.UNRELATED),
)


def relation(ours: History, theirs: History) -> Relation:
    """How our history stands to theirs: exactly one row of the table matches."""
    facts = _facts(ours, theirs)
    for columns, found in RELATIONS:
        if all(expected is None or expected == fact for expected, fact in zip(columns, facts, strict=True)):
            return found
    raise AssertionError("every combination has its row")


def _facts(ours: History, theirs: History) -> tuple[bool, bool, bool, bool, bool]:
    we_within, they_within = _is_within(ours, theirs), _is_within(theirs, ours)
    shared = {g.identity for g in ours.generations} & {g.identity for g in theirs.generations}
    return (_is_known(ours, theirs), _is_known(theirs, ours), we_within, they_within, bool(shared))


def _is_known(one: History, other: History) -> bool:
    # By identity: two hosts that are alone give the same numbers to different changes.
    newest = one.generations[:1]
    return any(newest and generation.identity == newest[0].identity for generation in other.generations)


def _is_within(one: History, other: History) -> bool:
    return _is_known(one, other) and one.journal_number <= end_of(one.generations[0], other)


def end_of(generation: Generation, history: History) -> int:
    """The last change of `generation` in `history`, which holds it."""
    end = int(history.journal_number)
    for newer in history.generations:
        if newer.identity == generation.identity:
            return end
        end = newer.first_change - 1
    raise AssertionError("the caller checked that the history holds the generation")


# --- who is the primary -------------------------------------------------------------------------------


class Better(Enum):
    """Which volume the other is to be made equal to."""

    OURS = auto()
    THEIRS = auto()
    EITHER = auto()
    NEITHER = auto()
    """Only a person can say."""


class Action(Enum):
    """What this host does about a peer that it has met."""

    LINK = auto()
    """One is the primary and the other the backup, as it should be: mirror."""
    GIVE_WAY = auto()
    """Become the backup, and hand the role of primary to the peer, under a higher term."""
    YIELD = auto()
    """The same, after what differs here was put into quarantine: a person has chosen the peer."""
    ACCEPT = auto()
    """The peer has handed over the role: become the primary under its term."""
    WAIT = auto()
    """It is the peer that has to act."""
    DIVERGED = auto()
    """Serve as `fence` says, and wait for a person."""


def better(ours: Claim, theirs: Claim) -> Better:
    """Which copy is to stay. Both hosts find the same."""
    if not (_is_whole(ours) and _is_whole(theirs)):
        if _is_whole(ours) or _is_whole(theirs):
            # A copy that was being brought up to date is no better than one that lost some names.
            whole, which = (ours, Better.OURS) if _is_whole(ours) else (theirs, Better.THEIRS)
            return which if whole.consistent or whole.role == "primary" else Better.NEITHER
        return Better.NEITHER
    found = relation(ours.history, theirs.history)
    newer = _newer(ours, theirs)
    if found is Relation.SAME or newer is not Better.EITHER:
        return newer
    if found in (Relation.AHEAD, Relation.AHEAD_OF_TAIL, Relation.BEHIND, Relation.TAIL):
        ahead = found in (Relation.AHEAD, Relation.AHEAD_OF_TAIL)
        one, other = (ours, theirs) if ahead else (theirs, ours)
        # A backup that was getting images has names as new as can be over content that is not. What it is
        # ahead by in the same generation the primary lost in a power cut, and nobody had fsynced it.
        same_line = one.history.generations[0].identity == other.history.generations[0].identity
        if same_line and not one.consistent and other.consistent:
            ahead = not ahead
        return Better.OURS if ahead else Better.THEIRS
    return _chosen(ours, theirs)


def _newer(ours: Claim, theirs: Claim) -> Better:
    """Of two on one line: one that does not know of a checkpoint that the other ended was put back from an
    older copy, and lacks data that no record tells of. It may have more records all the same: the primary
    has one of each write that the backup asked for, and the backup has none of them.
    """
    if ours.history.generations[0].identity != theirs.history.generations[0].identity:
        return Better.EITHER
    if ours.history.checkpoint_begun < theirs.history.checkpoint and theirs.consistent:
        return Better.THEIRS
    if theirs.history.checkpoint_begun < ours.history.checkpoint and ours.consistent:
        return Better.OURS
    return Better.EITHER


def _is_whole(claim: Claim) -> bool:
    return claim.history.complete and bool(claim.history.generations)


def _chosen(ours: Claim, theirs: Claim) -> Better:
    """What a person said about this split brain, on either host; the later word counts."""
    words = sorted(
        (claim.term, claim.keep) for claim in (ours, theirs) if claim.keep and _is_about(claim, ours, theirs)
    )
    # Of one term and for both: each was said without knowing of the other, so neither is the later one.
    if not words or (len(words) == 2 and words[0][0] == words[1][0] and words[0][1] != words[1][1]):
        return Better.NEITHER
    return Better.OURS if words[-1][1] == ours.host else Better.THEIRS


def _is_about(claim: Claim, ours: Claim, theirs: Claim) -> bool:
    """Whether a word is about this split brain, and no earlier one: about the lines that there are now."""
    newest = claim.history.generations[0].identity
    return claim.keep_at == newest and claim.keep in (ours.host, theirs.host)


# The columns: we are primary; they are primary; which copy is better; a hand-over that is not done yet:
# they handed the role to us (True), we handed it to them (False), or neither (None is "does not matter").
MeetColumns = tuple[bool | None, bool | None, Better | None, str | None]

MEETINGS: tuple[tuple[MeetColumns, Action], ...] = (
    # One primary, one backup. A backup that holds more becomes the primary: what it holds was
    # acknowledged, or belongs to a line that it went on with alone.
    ((True, False, Better.OURS, None), Action.LINK),
    ((True, False, Better.EITHER, None), Action.LINK),
    ((True, False, Better.THEIRS, None), Action.GIVE_WAY),
    ((True, False, Better.NEITHER, None), Action.DIVERGED),
    ((False, True, Better.THEIRS, None), Action.LINK),
    ((False, True, Better.EITHER, None), Action.LINK),
    # Whoever has the role gives it away, durably, before the other takes it: so there is never a second
    # primary.
    ((False, True, Better.OURS, None), Action.WAIT),
    ((False, True, Better.NEITHER, None), Action.DIVERGED),
    # Two primaries, after a take-over: the one whose line went on stays; the other never had a word
    # of its own to acknowledge, and becomes the backup by itself.
    ((True, True, Better.OURS, None), Action.WAIT),
    ((True, True, Better.THEIRS, None), Action.GIVE_WAY),
    ((True, True, Better.NEITHER, None), Action.DIVERGED),
    # Two backups: a hand-over was cut short after its first half. It is carried to its end, or is void.
    ((False, False, None, "to us"), Action.ACCEPT),
    ((False, False, None, "to them"), Action.WAIT),
    # Without one, as after a volume was put back from a copy, the better one is to be the primary.
    ((False, False, Better.OURS, "none"), Action.WAIT),
    ((False, False, Better.THEIRS, "none"), Action.GIVE_WAY),
    ((False, False, Better.NEITHER, "none"), Action.DIVERGED),
)
# Where either copy is as good and both have the same role, the higher term decides, and then the host's
# identity: EITHER becomes OURS or THEIRS before the table is asked.


def meet(ours: Claim, theirs: Claim) -> Action:
    """The one decision on connect: exactly one row of the table matches."""
    same_role = ours.role == theirs.role
    copy = better(ours, theirs)
    # Before the tie is broken: who wins that by its name has lost nothing.
    handed_over = _handed_over(ours, theirs, copy)
    if copy is Better.EITHER and same_role:
        higher = (ours.term, ours.host) > (theirs.term, theirs.host)
        copy = Better.OURS if higher else Better.THEIRS
    facts = (ours.role == "primary", theirs.role == "primary", copy, handed_over)
    step = decide_meeting(facts)
    # Only what was acknowledged alone is worth keeping. Else the tail of one line gives way, on which nobody
    # has relied.
    return Action.YIELD if step is Action.GIVE_WAY and _is_split(ours, theirs) else step


def decide_meeting(facts: tuple[bool, bool, Better, str]) -> Action:
    for columns, step in MEETINGS:
        if all(expected is None or expected == fact for expected, fact in zip(columns, facts, strict=True)):
            return step
    raise AssertionError("every combination has its row")


def _handed_over(ours: Claim, theirs: Claim, copy: Better) -> str:
    """A hand-over is void where the host that is to have the role has lost changes since, which both had and
    which were acknowledged: it would begin a line without them."""
    if theirs.handed_over and theirs.term > ours.term:
        return "none" if copy is Better.THEIRS and _has_lost(ours, theirs) else "to us"
    if ours.handed_over and ours.term > theirs.term:
        return "none" if copy is Better.OURS and _has_lost(theirs, ours) else "to them"
    return "none"


def _has_lost(one: Claim, other: Claim) -> bool:
    """In a power cut, or as it was put back from an older copy."""
    return one.history.compare_all or one.history.checkpoint_begun < other.history.checkpoint


def _is_split(ours: Claim, theirs: Claim) -> bool:
    if not (_is_whole(ours) and _is_whole(theirs)):
        return False
    return relation(ours.history, theirs.history) in (Relation.DIVERGED, Relation.UNRELATED)


# --- how the backup is brought up to date -------------------------------------------------------------


class Missed(Enum):
    """What the primary sends first over a link."""

    RECORDS = auto()
    CATALOG = auto()


def missed(primary: History, backup: History) -> Missed:
    """Records, where the journal still holds all that the backup lacks and it has nothing else. For two
    that `meet` has joined.
    """
    whole = backup.complete and bool(backup.generations)
    # A backup with a tail that was left out has rows which no record takes back.
    if not whole or relation(primary, backup) not in (Relation.SAME, Relation.AHEAD):
        return Missed.CATALOG
    # After a power cut, and where the journal was trimmed or lost, rows are compared by copying them.
    # So they are where the backup is older than the last checkpoint: marks that it needs have been dropped.
    suspect = primary.compare_all or backup.compare_all or backup.checkpoint < primary.checkpoint
    held = backup.journal_number + 1 >= primary.journal_first
    return Missed.RECORDS if held and not suspect else Missed.CATALOG


# --- of one volume ------------------------------------------------------------------------------------


def generations_of(volume: Volume) -> tuple[Generation, ...]:
    """The volume's generations, newest first; none for a subvolume that was never copied to."""
    row = volume.catalog.meta.value(GENERATIONS_KEY)
    return () if row is None else _generations.decode(row)


def generation_row(volume: Volume, identity: bytes, first_change: ChangeNumber) -> CatalogRow:
    """The catalog row by which a new generation begins.

    It has nothing in common with the peer's where this volume lost records of what the peer has
    (`volume/salvage.py`): nothing that is done in it may be taken for newer than the peer's.
    """
    before = generations_of(volume) if volume.identity.complete else ()
    generations = (Generation(identity, first_change), *before)[:GENERATIONS_MAX]
    return (Table.META, GENERATIONS_KEY, msgspec.msgpack.encode(generations))


def term_row(term: int) -> CatalogRow:
    """The first record of a primary that was handed its role: it is ahead from then on."""
    return (Table.META, TERM_KEY, msgspec.msgpack.encode(term))


def history_of(volume: Volume) -> History:
    """Where the volume stands now."""
    # As far as images may hold anything, `rewind` or not: a primary that went on from lower would give their
    # numbers to other changes.
    return History(
        generations=generations_of(volume),
        journal_number=volume.journal.last_number,
        journal_first=ChangeNumber(volume.journal.first_number),
        complete=volume.identity.complete,
        compare_all=volume.identity.compare_all,
        number=volume.reached,
        checkpoint_begun=volume.catalog.checkpoints.begun,
        checkpoint=volume.catalog.checkpoints.ended,
    )


def claim_of(volume: Volume) -> Claim:
    """What this host says of itself when it meets the peer."""
    identity = volume.identity
    return Claim(
        host=bytes.fromhex(identity.host),
        role=identity.role,
        term=identity.term,
        handed_over=identity.handed_over,
        consistent=identity.consistent,
        keep=bytes.fromhex(identity.keep),
        keep_at=bytes.fromhex(identity.keep_at),
        history=history_of(volume),
    )
