"""Every message of the two paths, as plain values.

The **mirror path** runs from the primary to the backup: changes in their order, and what keeps the
subvolume a prefix of main. The **forward path** runs from the backup to the primary: its requests.
Replies travel back on the path of their request. A frame (`framing.py`) holds one message and,
beside it, raw data where the message says so.

The type of a field says what may stand in it (`bounds.py`); `checks.py` says what its fields, and the data
beside it, must be to each other. `codec.py` lets nothing pass that does not fit.

New fields have defaults and stand last; a type is never changed, only replaced under a new tag.
Tags 1-4 are those of `change.py`, whose values are messages of the mirror path as they are.
"""

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from fusemirror.bounds import (
    AnyChangeNumber,
    AnyIdentity,
    AnyInode,
    ARequest,
    Bytes,
    Checksum,
    ClaimedChangeNumber,
    Counter,
    EndRegion,
    Errno,
    FileBytes,
    FirstRegion,
    HostName,
    KeyBytes,
    LockOwner,
    LockSpace,
    Mark,
    OwnTime,
    ProcessNumber,
    Text,
    UserNumber,
    Word,
)
from fusemirror.change import (
    AllocateChange,
    CopyChange,
    NamespaceChange,
    Row,
    Table,
    TruncateChange,
    WriteChange,
)
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import (
    COUNTER_MAX,
    DATA_BYTES_MAX,
    DIFFERENCE_PATH_BYTES_MAX,
    DIFFERENCES_PER_MESSAGE,
    DIGESTS_PER_MESSAGE,
    FILE_BYTES_MAX,
    GENERATIONS_MAX,
    INODES_PER_MESSAGE,
    KEY_DIGEST_BYTES,
    LOCKS_PER_MESSAGE,
    PURGE_BATCH_MAX,
    REGION_BYTES,
    ROWS_RECEIVED_MAX,
    TIME_NS_MAX,
    TIME_NS_MIN,
)
from fusemirror.operations import AnyOperation
from fusemirror.protocol.calls import AnyCall
from fusemirror.settings import Access, Communication, Fence

Rows = Annotated[tuple[Row, ...], Meta(max_length=ROWS_RECEIVED_MAX)]
ShownPath = Annotated[bytes, Meta(max_length=DIFFERENCE_PATH_BYTES_MAX)]
PeerTimeout = Annotated[float, Meta(gt=0, le=3600)]
KeyDigest = Annotated[bytes, Meta(min_length=KEY_DIGEST_BYTES, max_length=KEY_DIGEST_BYTES)]
ReplyValue = Annotated[int, Meta(ge=-1)]  # `checks.check_reply` knows what was asked


class Generation(msgspec.Struct, frozen=True, array_like=True):
    """A line of changes: its identity, and the number of its first change."""

    identity: AnyIdentity
    first_change: AnyChangeNumber


class History(msgspec.Struct, frozen=True, array_like=True):
    """Where a volume stands in the order of changes; what two hosts compare when they meet."""

    generations: Annotated[tuple[Generation, ...], Meta(max_length=GENERATIONS_MAX)]  # newest first
    journal_number: ClaimedChangeNumber  # last namespace change that the volume holds
    journal_first: ClaimedChangeNumber  # first namespace change that its journal still holds
    complete: bool  # False while a first copy, or a catalog copy, has not ended
    compare_all: bool  # after a power cut or a repair every image and row is suspect
    number: ClaimedChangeNumber = ChangeNumber(0)  # last change of any kind that it holds
    checkpoint_begun: Counter = 0  # the last checkpoint of all volumes that it heard of
    checkpoint: Counter = 0  # the last one up to which it is durable


class Claim(NamedTuple):
    """What a host says of its role and its copy when two meet; `mirror.histories.meet` compares two."""

    host: bytes
    role: str
    term: int
    handed_over: bool
    consistent: bool
    keep: bytes
    keep_at: bytes
    history: History


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """First message of both sides of a connection."""

    protocol: Counter
    protocol_min: Counter
    path: Word  # "mirror" or "forward": which way requests travel on this connection
    filesystem: AnyIdentity
    host: AnyIdentity
    peer: AnyIdentity  # the host that the sender means to talk to
    instance: AnyIdentity  # of the process: a restarted peer has another one
    role: Word
    history: History
    version: Text = ""
    peer_timeout_s: PeerTimeout = 5.0  # the sender goes on alone so long after it answered a Ping
    call: AnyIdentity = (
        b""  # names a dial of the mirror path; the answering dial of the forward path says the same
    )
    term: Counter = 0  # how often a role was taken or given, as far as the sender knows
    handed_over: bool = False  # the sender is a backup because it gave the role of primary away, at `term`
    consistent: bool = True  # False while images of the sender are older than its names
    keep: AnyIdentity = b""  # the host whose copy a person chose in a split brain
    keep_at: AnyIdentity = b""  # the sender's newest generation when that was said
    host_name: HostName = ""  # what people call the sender
    takes_rows: bool = False  # of data changes too; earlier versions would leave them out
    clock_ns: OwnTime = 0  # the sender's time of day; 0 from an earlier version
    takes_holes: bool = False  # the message `Hole`
    file_bytes_max: FileBytes = 0  # the longest file that the sender's disk takes; 0: it does not say
    takes_seeks: bool = False  # the call `Seek`
    takes_disk_space: bool = False  # the message `DiskSpace`
    name: Text = ""  # of the filesystem, as the sender has it; "" from an earlier version
    witness: Text | None = None  # as it is set; None from an earlier version
    pairing: Counter = 0  # how many invitations were made up to the one that made these two a pair
    takes_keys: bool = False  # the message `KeyNews`
    takes_allocations: bool = False  # the operation `Allocate`, and its change; its disk can do them
    takes_locks: bool = False  # locks bind both hosts, and the sender's kernel asks for them
    witness_identity: Text = ""  # of the witness that the sender goes by; "" where it does not know that yet
    takes_unnamed: bool = False  # the operations `CreateUnnamed` and `LinkUnnamed`
    takes_copies: bool = False  # the operation `Copy`, and its change
    takes_flags: bool = False  # the operation `SetFlags`, and what flags forbid
    takes_accesses: bool = False  # the operation `Accessed`
    takes_moves: bool = False  # of a path to another connection (`channel/moving.py`)
    session: AnyIdentity = b""  # names what the dialer's Hello begins
    line: AnyIdentity = b""  # the connection begins nothing, and is a spare of this session
    forgot_requests: bool = False  # a repair of the sender's journal lost which requests it carried out
    takes_statuses: bool = False  # the messages by which exclusive statuses are taken ahead of the data
    takes_modes: bool = False  # the message `Modes`
    takes_declines: bool = False  # the message `Declined`
    owes_writes: bool = False  # its programs were told of some under main's status; `Ended` follows them
    takes_refusals: bool = False  # `errno` of a change
    takes_delays: bool = False  # of `Applied`, as it asks with `WantApplied`

    @property
    def claim(self) -> Claim:
        """What decides who is the primary."""
        return Claim(
            self.host,
            self.role,
            self.term,
            self.handed_over,
            self.consistent,
            self.keep,
            self.keep_at,
            self.history,
        )


TAKEN: dict[str, Any] = {field: True for field in Hello.__struct_fields__ if field.startswith("takes_")}
"""What this version takes of its peer. Some of it a host's disk or settings may lack."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """In place of a Hello: why there will be none. The connection ends."""

    reason: Text
    replaced_by: AnyIdentity = b""  # the sender, where it has another peer now in the receiver's place


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    serial: Counter


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=19, gc=False):
    serial: Counter


class Over(msgspec.Struct, frozen=True, array_like=True, tag=120, gc=False):
    """The sender has ended the session: its connection is not to be replaced."""


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag=121, gc=False):
    """So many bytes of the session have arrived at the sender, over all of its connections."""

    count: Counter


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=122, gc=False):
    """Is sent with data of full size beside it, and sent back as it is: a network that loses large packets,
    and no small ones, is found out before anything depends on it."""

    serial: Counter


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=123, gc=False):
    """On a spare connection: the session goes on over it. `count` as in `Arrived`."""

    count: Counter
    attempt: Counter = 0  # grows with each: one given up may come late; 0 from an earlier version


class Resumed(msgspec.Struct, frozen=True, array_like=True, tag=124, gc=False):
    """The answer; what follows it is the session."""

    count: Counter


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The sender stops in good order; it serves no reads from now on.

    `mounted`: its kernel may do so, of what it was told, until the lease is over.
    """

    reason: Text
    mounted: bool = False


# --- mirror path, primary to backup ------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """The stream begins. `copy_catalog`: rows follow that replace the whole catalog; else missed records.

    `generations` are the primary's; the backup takes them over when it has caught up.
    """

    copy_catalog: bool
    generations: Annotated[tuple[Generation, ...], Meta(max_length=GENERATIONS_MAX)]
    number: AnyChangeNumber


class CatalogRows(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """Rows of the primary's catalog as they are at this place of the stream."""

    rows: Rows


class OutOfSync(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """Images that the backup must not read from until `ImageCopied`; may come several times."""

    inodes: Annotated[tuple[AnyInode, ...], Meta(max_length=INODES_PER_MESSAGE)]


class CaughtUp(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """The namespace is complete up to `number`; every change after it follows live.

    `journal_number` is the last record up to there: numbers of data changes may be given again. Inodes below
    `next_inode` were given already, also where no row tells of them any more. `time_ns` is the time of change
    `number`, which no row tells either; 0 from an earlier version.
    """

    number: AnyChangeNumber
    journal_number: AnyChangeNumber
    next_inode: AnyInode = InodeNumber(0)
    time_ns: OwnTime = 0


class HandOver(msgspec.Struct, frozen=True, array_like=True, tag=45):
    """The sender is the backup from here on, durably; the receiver becomes the primary under `term`."""

    term: Counter


class Digests(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """Checksums of regions of an image as it is at this place of the stream; the answer names what differs.

    `size` is the image's length in bytes. With `repair` the backup first makes its image that long.
    """

    token: Counter
    inode: AnyInode
    size: FileBytes
    first_region: FirstRegion
    digests: Annotated[tuple[Checksum, ...], Meta(max_length=DIGESTS_PER_MESSAGE)]
    repair: bool


class Hole(msgspec.Struct, frozen=True, array_like=True, tag=59, gc=False):
    """Regions of an image that hold no data, however many. The answer's values: the region before which the
    backup has looked, and what differs before that one. With `repair` the backup first makes its image as
    long as that, and makes a hole of what it looks at.

    Only for a peer that has said that it takes it.
    """

    token: Counter
    inode: AnyInode
    size: FileBytes
    first_region: FirstRegion
    end_region: EndRegion  # the one behind the last
    repair: bool


class RegionData(msgspec.Struct, frozen=True, array_like=True, tag=37, gc=False):
    """Content of an image at this place of the stream; the bytes travel beside."""

    inode: AnyInode
    offset: FileBytes


class ImageCopied(msgspec.Struct, frozen=True, array_like=True, tag=38, gc=False):
    """The backup's image is again the same as the primary's."""

    inode: AnyInode


class Normal(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """Resync has ended: both volumes are the same up to this place of the stream."""

    number: AnyChangeNumber


class FlushImage(msgspec.Struct, frozen=True, array_like=True, tag=40, gc=False):
    """Make an image and the journal durable as they are at this place of the stream."""

    token: Counter
    inode: AnyInode


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """Make everything up to this place of the stream durable, and keep the number of the checkpoint with it.
    `durable` is what the primary has so.
    """

    token: Counter
    durable: AnyChangeNumber
    checkpoint: Counter = 0  # counts those of all volumes, over all processes


class ForgetMarks(msgspec.Struct, frozen=True, array_like=True, tag=42, gc=False):
    """All volumes hold durably what stood before the checkpoint `token`: its marks may go."""

    token: Counter


class PurgeOffer(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """May these unlinked inodes go? The answer lists those still open at the backup."""

    token: Counter
    inodes: Annotated[tuple[AnyInode, ...], Meta(max_length=PURGE_BATCH_MAX)]


class RowsDigest(msgspec.Struct, frozen=True, array_like=True, tag=44):
    """Checksum of the catalog rows with first <= key <= last, at this place of the stream."""

    token: Counter
    table: Table
    first: KeyBytes
    last: KeyBytes
    count: Counter
    digest: Checksum


class Resync(msgspec.Struct, frozen=True, array_like=True, tag=58, gc=False):
    """How far the resync is, for the status of the backup. Sizes in bytes."""

    done_bytes: Bytes
    total_bytes: Bytes
    sent_bytes: Bytes
    bytes_per_second: Bytes
    seconds_left: float | None
    paused: bool
    rate_limit_bytes: Bytes


class ReplaceRows(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """A repair: from here on `rows` are all that the catalog has with first <= key <= last."""

    table: Table
    first: KeyBytes
    last: KeyBytes
    rows: Rows


class FetchRows(msgspec.Struct, frozen=True, array_like=True, tag=53):
    """A repair: which rows has the backup with first <= key <= last? Answered with `Fetched`."""

    token: Counter
    table: Table
    first: KeyBytes
    last: KeyBytes


class FetchRegion(msgspec.Struct, frozen=True, array_like=True, tag=54):
    """A repair: what has the backup there in an image? Answered with `Fetched`."""

    token: Counter
    inode: AnyInode
    offset: FileBytes
    length: Annotated[int, Meta(ge=0, le=REGION_BYTES)]


class AccessInEffect(msgspec.Struct, frozen=True, array_like=True, tag=62):
    """Which access the primary has in effect from here on; the backup follows."""

    access: Access


class WantApplied(msgspec.Struct, frozen=True, array_like=True, tag=60, gc=False):
    """Somebody waits at the primary: the backup says at once what it has applied, where that was delayed."""


class TakeStatus(msgspec.Struct, frozen=True, array_like=True, tag=63, gc=False):
    """C of Fig. 19: main is exclusive for change `number`, whose data comes next; so is the subvolume now."""

    number: AnyChangeNumber
    inode: AnyInode
    start: FileBytes
    end: FileBytes
    answers: bool = False  # `StatusTaken` is waited for


class LendNames(msgspec.Struct, frozen=True, array_like=True, tag=46, gc=False):
    """From here on the backup has an exclusive lease of a directory (`coherence/directory_leases.py`)."""

    directory: AnyInode


class HoldNames(msgspec.Struct, frozen=True, array_like=True, tag=47, gc=False):
    """The primary wants to hold a directory. Where the answer is no error it does, from here on."""

    token: Counter
    directory: AnyInode


class ShareNames(msgspec.Struct, frozen=True, array_like=True, tag=50, gc=False):
    """Both hosts would share a directory, whoever holds it now. Where the answer is no error they do."""

    token: Counter
    directory: AnyInode


class RecallNames(msgspec.Struct, frozen=True, array_like=True, tag=48, gc=False):
    """From here on the backup keeps nothing of what it holds, or of what is `shared`. It answers when
    its kernel does not either.
    """

    token: Counter
    shared: bool


class FreeNames(msgspec.Struct, frozen=True, array_like=True, tag=49, gc=False):
    """From here on the primary holds nothing; or nothing is `shared`."""

    shared: bool


class HeldLock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A range that an owner at some host holds, or would hold (`coherence/lock_table.py`)."""

    inode: AnyInode
    space: LockSpace
    owner: LockOwner
    start: FileBytes
    end: FileBytes  # the last byte
    exclusive: bool
    pid: ProcessNumber = 0
    uid: UserNumber = 0
    since_ns: OwnTime = 0


class LockAnswer(msgspec.Struct, frozen=True, array_like=True, tag=114, gc=False):
    """The end of the backup's `AskLock` with this token. It counts where it stands in the stream: granted,
    the backup has applied change `after` by then. `conflict` is what is in the way of a lock that was asked
    about; a process of the sender's host is 0 there.
    """

    token: Counter
    errno: Errno = 0
    after: AnyChangeNumber = ChangeNumber(0)
    conflict: HeldLock | None = None


class LocksReclaimed(msgspec.Struct, frozen=True, array_like=True, tag=115, gc=False):
    """The end of the backup's `ReclaimLocks`. `kept`: it holds what it reclaimed; else none of that, because
    others may have held it since. What is granted from here on is of `epoch`.
    """

    epoch: AnyIdentity
    kept: bool


class LocksListed(msgspec.Struct, frozen=True, array_like=True, tag=117):
    """The end of the backup's `ListLocks` with this token: what programs of the sender hold, and what they
    wait for, the first of `total` locks.
    """

    token: Counter
    total: Counter
    held: Annotated[tuple[HeldLock, ...], Meta(max_length=LOCKS_PER_MESSAGE)]
    waiting: Annotated[tuple[HeldLock, ...], Meta(max_length=LOCKS_PER_MESSAGE)]


# --- mirror path, backup to primary --------------------------------------------------------------------


class Applied(msgspec.Struct, frozen=True, array_like=True, tag=64, gc=False):
    """The subvolume holds every change up to `number`."""

    number: AnyChangeNumber


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=74):
    """The disk of the sender did not take what change `number` writes to an image, or with 0 what a resync
    brings of it: the image differs. The stream goes on (seed step 710).
    """

    number: AnyChangeNumber
    inode: AnyInode
    errno: Errno
    reason: Text


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=65, gc=False):
    """Answer to the message with this token. `value` is as the message says."""

    token: Counter
    errno: Errno = 0
    number: AnyChangeNumber = ChangeNumber(0)
    values: Annotated[tuple[ReplyValue, ...], Meta(max_length=PURGE_BATCH_MAX)] = ()


class Suspects(msgspec.Struct, frozen=True, array_like=True, tag=66):
    """What the backup's own marks hold when a stream begins; may come several times.

    `marks` are single regions, and -1 - n for all regions from n on. `ranges` say the same more exactly
    where they are given: (first, the one behind the last) of one range after the other. Programs before
    ranges go by `marks`, which then say no less.
    """

    marks: tuple[tuple[AnyInode, tuple[Mark, ...]], ...]
    last: bool
    ranges: tuple[tuple[AnyInode, tuple[EndRegion, ...]], ...] | None = None


class StatusTaken(msgspec.Struct, frozen=True, array_like=True, tag=67, gc=False):
    """The subvolume is exclusive for this change, and nobody is shown what it writes before it has landed."""

    number: AnyChangeNumber


class Room(msgspec.Struct, frozen=True, array_like=True, tag=70, gc=False):
    """How far the primary may go before the subvolume's disk is full: changes since `CaughtUp` may take
    `limit` bytes in all, as `volume.space.room_of` counts them; below 0 nothing is said of that.
    `full`: the backup takes nothing now. `inodes`: likewise how many inodes of the disk they may take, as
    the same counts them; below 0 nothing is said of that, as by an earlier version.
    """

    limit: Annotated[int, Meta(ge=-1, le=COUNTER_MAX)]
    full: bool = False
    inodes: Annotated[int, Meta(ge=-1, le=COUNTER_MAX)] = -1


class DiskSpace(msgspec.Struct, frozen=True, array_like=True, tag=72, gc=False):
    """What the disk of the sender's volume has room for, less what is kept in reserve. Either host says it.

    `full`: what needs room is refused. A disk that makes inodes as they are needed counts none.
    """

    size_bytes: Counter
    free_bytes: Counter
    available_bytes: Counter
    inodes: Counter = 0
    inodes_available: Counter = 0
    full: bool = False


class Modes(msgspec.Struct, frozen=True, array_like=True, tag=73):
    """What the sender goes by, when a link begins and whenever that changes. Either host says it.

    The receiver shows it: of the fence the primary's counts for both, of the communication the backup's.
    """

    fence: Fence
    communication: Communication


class KeyNews(msgspec.Struct, frozen=True, array_like=True, tag=79, gc=False):
    """What the sender's keys are, when a link begins and whenever that changes. Either host says it.

    `shows`: the digest of the certificate that it shows; `next`: the one (PEM) that it is to show once the
    receiver knows it, or ""; `knows`: the digest of the newest certificate of the receiver that it lets in.
    """

    shows: KeyDigest
    knows: KeyDigest
    next: Text = ""


class Fetched(msgspec.Struct, frozen=True, array_like=True, tag=71):
    """Answer to `FetchRows` or `FetchRegion`; `size` is the length of the file, -1 where there is none."""

    token: Counter
    size: Annotated[int, Meta(ge=-1, le=FILE_BYTES_MAX)] = -1
    data: Annotated[bytes, Meta(max_length=REGION_BYTES)] = b""
    rows: Rows = ()


# --- forward path ---------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, array_like=True, tag=80):
    """An operation or a call of the backup, named for ever by `identity`; a write's bytes travel beside.

    `kept`: it was, or will be, acknowledged before its answer; a restarted backup sends it again.
    """

    identity: ARequest
    operation: AnyOperation | AnyCall
    kept: bool = False


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=82, gc=False):
    """Every request that the backup staged before `oldest_live` has ended, and is never sent again."""

    oldest_live: ARequest


class WantNames(msgspec.Struct, frozen=True, array_like=True, tag=83, gc=False):
    """The backup would keep the names of a directory. Answered by `LendNames`, `ShareNames`, or not."""

    directory: AnyInode


class WantBack(msgspec.Struct, frozen=True, array_like=True, tag=84, gc=False):
    """A program of the backup looks into a directory that the primary holds, or changes one that it holds
    or shares. Answered by `ShareNames` or `FreeNames`.
    """

    directory: AnyInode
    of_change: bool


class AskLock(msgspec.Struct, frozen=True, array_like=True, tag=110, gc=False):
    """A program of the backup wants a lock, and waits for it where it `waits`; or it only asks what would be
    in the way (`asks_only`). Answered with `LockAnswer`, but for what a `ReleaseLock` ends before.
    """

    token: Counter
    lock: HeldLock
    waits: bool = False
    may_deadlock: bool = False
    asks_only: bool = False


class CancelLock(msgspec.Struct, frozen=True, array_like=True, tag=111, gc=False):
    """The backup waits no more for an `AskLock`. Its answer is EINTR, or it was on its way before."""

    token: Counter


class ReleaseLock(msgspec.Struct, frozen=True, array_like=True, tag=112, gc=False):
    """An owner at the backup holds nothing of the range any more. `waiting`: it waits for nothing, either.

    With a `token` the primary says by a `LockAnswer` that it has heard of it.
    """

    inode: AnyInode
    space: LockSpace
    owner: LockOwner
    start: FileBytes
    end: FileBytes
    waiting: bool = False
    token: Counter = 0


class ReclaimLocks(msgspec.Struct, frozen=True, array_like=True, tag=113):
    """All that programs of the backup hold, granted in `epoch`; once over each link, before any other message
    about locks, in several pieces perhaps. Answered with `LocksReclaimed`.
    """

    epoch: AnyIdentity
    locks: Annotated[tuple[HeldLock, ...], Meta(max_length=LOCKS_PER_MESSAGE)]
    last: bool


class ListLocks(msgspec.Struct, frozen=True, array_like=True, tag=116, gc=False):
    """The backup wants to show what programs of the primary's host hold and wait for."""

    token: Counter


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=81):
    """The end of a request that made no change, or that was found done already.

    It counts only once the backup has applied change `after`. `inode` is that of a change found done.
    A read's bytes travel beside.
    """

    identity: ARequest
    errno: Errno = 0
    after: AnyChangeNumber = ChangeNumber(0)
    inode: AnyInode = InodeNumber(0)
    value: bytes = b""


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=91, gc=False):
    """C of Fig. 20: main's exclusive status is wanted for a write, whose request comes next.

    Answered with `StatusGranted`, after `Excluded` where it is another's; not at all where none can be given.
    """

    identity: ARequest
    inode: AnyInode
    offset: FileBytes
    length: Annotated[int, Meta(ge=1, le=DATA_BYTES_MAX)]


class StatusGranted(msgspec.Struct, frozen=True, array_like=True, tag=92, gc=False):
    """Main is exclusive for a write, and nobody is shown what it writes before it has landed there."""

    identity: ARequest


class Excluded(msgspec.Struct, frozen=True, array_like=True, tag=90, gc=False):
    """Main is exclusive where the request writes: the request stands by there, and comes in its turn."""

    identity: ARequest


# --- between two hosts whose histories diverged, on any path ---------------------------------------------


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """One name of the sender, and what happened there since the fork point (`divergence.listing.Kind`).

    `was` is the name before, of what was renamed. Sizes in bytes.
    """

    path: ShownPath
    kinds: Annotated[tuple[Word, ...], Meta(max_length=8)]
    was: ShownPath = b""
    size: FileBytes = 0
    mtime_ns: Annotated[int, Meta(ge=TIME_NS_MIN, le=TIME_NS_MAX)] = 0


class CountApart(msgspec.Struct, frozen=True, array_like=True, tag=100, gc=False):
    """How many files the sender changed since the fork point, as far as it has counted."""

    count: Counter


class AskApart(msgspec.Struct, frozen=True, array_like=True, tag=101, gc=False):
    """What has the receiver changed? Answered with `Apart`, once or several times."""

    token: Counter


class Apart(msgspec.Struct, frozen=True, array_like=True, tag=102):
    """Some of what the sender changed. With the last of them it says how much that is in all, and whether
    its journal reached back to the fork point."""

    token: Counter
    differences: Annotated[tuple[Difference, ...], Meta(max_length=DIFFERENCES_PER_MESSAGE)]
    last: bool = False
    count: Counter = 0
    whole: bool = True


AnyMessage = (
    NamespaceChange
    | WriteChange
    | TruncateChange
    | AllocateChange
    | CopyChange
    | Hello
    | Refused
    | Ping
    | Pong
    | Over
    | Arrived
    | Probe
    | Resume
    | Resumed
    | Bye
    | Begin
    | CatalogRows
    | OutOfSync
    | CaughtUp
    | Digests
    | Hole
    | RegionData
    | ImageCopied
    | Normal
    | FlushImage
    | Checkpoint
    | ForgetMarks
    | PurgeOffer
    | RowsDigest
    | Resync
    | HandOver
    | ReplaceRows
    | FetchRows
    | FetchRegion
    | Applied
    | Declined
    | Reply
    | Suspects
    | Room
    | DiskSpace
    | Modes
    | KeyNews
    | Fetched
    | Request
    | Answer
    | Excluded
    | AccessInEffect
    | WantApplied
    | TakeStatus
    | StatusTaken
    | AskStatus
    | StatusGranted
    | LendNames
    | HoldNames
    | ShareNames
    | RecallNames
    | FreeNames
    | Ended
    | CountApart
    | AskApart
    | Apart
    | WantNames
    | WantBack
    | LockAnswer
    | LocksReclaimed
    | AskLock
    | CancelLock
    | ReleaseLock
    | ReclaimLocks
    | ListLocks
    | LocksListed
)
