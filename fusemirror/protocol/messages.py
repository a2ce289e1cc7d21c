"""Every message of the two paths, as plain values.

The **mirror path** runs from the primary to the backup: changes in their order, and what keeps the
subvolume a prefix of main. The **forward path** runs from the backup to the primary: its requests.
Replies travel back on the path of their request. A frame (`framing.py`) holds one message and,
beside it, raw data where the message says so.

New fields have defaults and stand last; a type is never changed, only replaced under a new tag.
Tags 1-3 are those of `change.py`, whose values are messages of the mirror path as they are.
"""

from typing import NamedTuple

import msgspec

from fusemirror.change import NamespaceChange, Row, TruncateChange, WriteChange
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.operations import AnyOperation
from fusemirror.settings import Access


class Generation(msgspec.Struct, frozen=True, array_like=True):
    """A line of changes: its identity, and the number of its first change."""

    identity: bytes
    first_change: ChangeNumber


class History(msgspec.Struct, frozen=True, array_like=True):
    """Where a volume stands in the order of changes; what two hosts compare when they meet."""

    generations: tuple[Generation, ...]  # newest first
    journal_number: ChangeNumber  # last namespace change that the volume holds
    journal_first: ChangeNumber  # first namespace change that its journal still holds
    complete: bool  # False while a first copy, or a catalog copy, has not ended
    compare_all: bool  # after a power cut or a repair every image and row is suspect
    number: ChangeNumber = ChangeNumber(0)  # last change of any kind that it holds
    checkpoint_begun: int = 0  # the last checkpoint of the pair that it heard of
    checkpoint: int = 0  # the last one up to which it is durable


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

    protocol: int
    protocol_min: int
    path: str  # "mirror" or "forward": which way requests travel on this connection
    filesystem: bytes
    host: bytes
    peer: bytes  # the host that the sender means to talk to
    instance: bytes  # of the process: a restarted peer has another one
    role: str
    history: History
    version: str = ""
    peer_timeout_s: float = 5.0  # the sender goes on alone so long after it answered a Ping
    call: bytes = b""  # names a dial of the mirror path; the answering dial of the forward path says the same
    term: int = 0  # how often a role was taken or given, as far as the sender knows
    handed_over: bool = False  # the sender is a backup because it gave the role of primary away, at `term`
    consistent: bool = True  # False while images of the sender are older than its names
    keep: bytes = b""  # the host whose copy a person chose in a split brain
    keep_at: bytes = b""  # the sender's newest generation when that was said
    host_name: str = ""  # what people call the sender
    takes_rows: bool = False  # of data changes too; earlier versions would leave them out
    clock_ns: int = 0  # the sender's time of day; 0 from an earlier version
    takes_holes: bool = False  # the message `Hole`
    file_bytes_max: int = 0  # the longest file that the sender's disk takes; 0: it does not say

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


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """In place of a Hello: why there will be none. The connection ends."""

    reason: str


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=18, gc=False):
    serial: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=19, gc=False):
    serial: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The sender stops in good order; it serves no reads from now on.

    `mounted`: its kernel may do so, of what it was told, until the lease is over.
    """

    reason: str
    mounted: bool = False


# --- mirror path, primary to backup ------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """The stream begins. `copy_catalog`: rows follow that replace the whole catalog; else missed records.

    `generations` are the primary's; the backup takes them over when it has caught up.
    """

    copy_catalog: bool
    generations: tuple[Generation, ...]
    number: ChangeNumber


class CatalogRows(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """Rows of the primary's catalog as they are at this place of the stream."""

    rows: tuple[Row, ...]


class OutOfSync(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """Images that the backup must not read from until `ImageCopied`; may come several times."""

    inodes: tuple[InodeNumber, ...]


class CaughtUp(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """The namespace is complete up to `number`; every change after it follows live.

    `journal_number` is the last record up to there: numbers of data changes may be given again. Inodes below
    `next_inode` were given already, also where no row tells of them any more.
    """

    number: ChangeNumber
    journal_number: ChangeNumber
    next_inode: InodeNumber = InodeNumber(0)


class HandOver(msgspec.Struct, frozen=True, array_like=True, tag=45):
    """The sender is the backup from here on, durably; the receiver becomes the primary under `term`."""

    term: int


class Digests(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """Checksums of regions of an image as it is at this place of the stream; the answer names what differs.

    `size` is the image's length in bytes. With `mend` the backup first makes its image that long.
    """

    token: int
    inode: InodeNumber
    size: int
    first_region: int
    digests: tuple[int, ...]
    mend: bool


class Hole(msgspec.Struct, frozen=True, array_like=True, tag=59, gc=False):
    """Regions of an image that hold no data, however many. The answer's values: the region before which the
    backup has looked, and what differs before that one. With `mend` the backup first makes its image as long
    as that, and makes a hole of what it looks at.

    Only for a peer that has said that it takes it.
    """

    token: int
    inode: InodeNumber
    size: int
    first_region: int
    end_region: int  # the one behind the last
    mend: bool


class RegionData(msgspec.Struct, frozen=True, array_like=True, tag=37, gc=False):
    """Content of an image at this place of the stream; the bytes travel beside."""

    inode: InodeNumber
    offset: int


class ImageCopied(msgspec.Struct, frozen=True, array_like=True, tag=38, gc=False):
    """The backup's image is again the same as the primary's."""

    inode: InodeNumber


class Normal(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """Resync has ended: both volumes are the same up to this place of the stream."""

    number: ChangeNumber


class FlushImage(msgspec.Struct, frozen=True, array_like=True, tag=40, gc=False):
    """Make an image and the journal durable as they are at this place of the stream."""

    token: int
    inode: InodeNumber


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """Make everything up to this place of the stream durable, and keep the number of the checkpoint with it.
    `durable` is what the primary has so.
    """

    token: int
    durable: ChangeNumber
    checkpoint: int = 0  # counts those of the pair, over all processes


class ForgetMarks(msgspec.Struct, frozen=True, array_like=True, tag=42, gc=False):
    """Both volumes hold durably what stood before the checkpoint `token`: its marks may go."""

    token: int


class PurgeOffer(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """May these unlinked inodes go? The answer lists those still open at the backup."""

    token: int
    inodes: tuple[InodeNumber, ...]


class RowsDigest(msgspec.Struct, frozen=True, array_like=True, tag=44):
    """Checksum of the catalog rows with first <= key <= last, at this place of the stream."""

    token: int
    table: int
    first: bytes
    last: bytes
    count: int
    digest: int


class Resync(msgspec.Struct, frozen=True, array_like=True, tag=58, gc=False):
    """How far the resync is, for the status of the backup. Sizes in bytes."""

    done_bytes: int
    total_bytes: int
    sent_bytes: int
    bytes_per_second: int
    seconds_left: float | None
    paused: bool
    rate_limit_bytes: int


class ReplaceRows(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """A repair: from here on `rows` are all that the catalog has with first <= key <= last."""

    table: int
    first: bytes
    last: bytes
    rows: tuple[Row, ...]


class FetchRows(msgspec.Struct, frozen=True, array_like=True, tag=53):
    """A repair: which rows has the backup with first <= key <= last? Answered with `Fetched`."""

    token: int
    table: int
    first: bytes
    last: bytes


class FetchRegion(msgspec.Struct, frozen=True, array_like=True, tag=54):
    """A repair: what has the backup there in an image? Answered with `Fetched`."""

    token: int
    inode: InodeNumber
    offset: int
    length: int


class AccessInEffect(msgspec.Struct, frozen=True, array_like=True, tag=62):
    """Which access the primary has in effect from here on; the backup follows."""

    access: Access


class LendNames(msgspec.Struct, frozen=True, array_like=True, tag=46, gc=False):
    """From here on the backup holds a directory (`control/names.py`)."""

    directory: InodeNumber


class HoldNames(msgspec.Struct, frozen=True, array_like=True, tag=47, gc=False):
    """The primary wants to hold a directory. Where the answer is no error it does, from here on."""

    token: int
    directory: InodeNumber


class ShareNames(msgspec.Struct, frozen=True, array_like=True, tag=50, gc=False):
    """Both hosts would share a directory, whoever holds it now. Where the answer is no error they do."""

    token: int
    directory: InodeNumber


class RecallNames(msgspec.Struct, frozen=True, array_like=True, tag=48, gc=False):
    """From here on the backup keeps nothing of what it holds, or of what is `shared`. It answers when
    its kernel does not either.
    """

    token: int
    shared: bool


class FreeNames(msgspec.Struct, frozen=True, array_like=True, tag=49, gc=False):
    """From here on the primary holds nothing; or nothing is `shared`."""

    shared: bool


# --- mirror path, backup to primary --------------------------------------------------------------------


class Applied(msgspec.Struct, frozen=True, array_like=True, tag=64, gc=False):
    """The subvolume holds every change up to `number`."""

    number: ChangeNumber


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=65, gc=False):
    """Answer to the message with this token. `value` is as the message says."""

    token: int
    errno: int = 0
    number: ChangeNumber = ChangeNumber(0)
    values: tuple[int, ...] = ()


class Suspects(msgspec.Struct, frozen=True, array_like=True, tag=66):
    """What the backup's own marks hold when a stream begins; may come several times.

    `marks` are single regions, and -1 - n for all regions from n on. `ranges` say the same more exactly
    where they are given: (first, the one behind the last) of one range after the other. Programs before
    ranges go by `marks`, which then say no less.
    """

    marks: tuple[tuple[InodeNumber, tuple[int, ...]], ...]
    last: bool
    ranges: tuple[tuple[InodeNumber, tuple[int, ...]], ...] | None = None


class Room(msgspec.Struct, frozen=True, array_like=True, tag=70, gc=False):
    """How far the primary may go before the subvolume's disk is full: changes since `CaughtUp` may take
    `limit` bytes in all, as `volume.space.space_of` counts them; below 0 nothing is said of that.
    `full`: the backup takes nothing now.
    """

    limit: int
    full: bool = False


class Fetched(msgspec.Struct, frozen=True, array_like=True, tag=71):
    """Answer to `FetchRows` or `FetchRegion`; `size` is the length of the file, -1 where there is none."""

    token: int
    size: int = -1
    data: bytes = b""
    rows: tuple[Row, ...] = ()


# --- forward path ---------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, array_like=True, tag=80):
    """An operation of the backup, named for ever by `identity`; a write's bytes travel beside.

    `kept`: it was, or will be, acknowledged before its answer; a restarted backup sends it again.
    """

    identity: RequestId
    operation: AnyOperation
    kept: bool = False


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=82, gc=False):
    """Every request that the backup staged before `oldest_live` has ended, and is never sent again."""

    oldest_live: RequestId


class WantNames(msgspec.Struct, frozen=True, array_like=True, tag=83, gc=False):
    """The backup would keep the names of a directory. Answered by `LendNames`, `ShareNames`, or not."""

    directory: InodeNumber


class WantBack(msgspec.Struct, frozen=True, array_like=True, tag=84, gc=False):
    """A program of the backup looks into a directory that the primary holds, or changes one that it holds
    or shares. Answered by `ShareNames` or `FreeNames`.
    """

    directory: InodeNumber
    of_change: bool


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=81):
    """The end of a request that made no change, or that was found done already.

    It counts only once the backup has applied change `after`. `inode` is that of a change found done.
    A read's bytes travel beside.
    """

    identity: RequestId
    errno: int = 0
    after: ChangeNumber = ChangeNumber(0)
    inode: InodeNumber = InodeNumber(0)
    value: bytes = b""


class Excluded(msgspec.Struct, frozen=True, array_like=True, tag=90, gc=False):
    """Main is exclusive where the request writes: the request stands by there, and comes in its turn."""

    identity: RequestId


# --- between two hosts whose lines are apart, on any path ------------------------------------------------


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """One name of the sender, and what happened there since the lines parted (`control.apart.Kind`).

    `was` is the name before, of what was renamed. Sizes in bytes.
    """

    path: bytes
    kinds: tuple[str, ...]
    was: bytes = b""
    size: int = 0
    mtime_ns: int = 0


class CountApart(msgspec.Struct, frozen=True, array_like=True, tag=100, gc=False):
    """How many files the sender changed since the lines parted, as far as it has counted."""

    count: int


class AskApart(msgspec.Struct, frozen=True, array_like=True, tag=101, gc=False):
    """What has the receiver changed? Answered with `Apart`, once or several times."""

    token: int


class Apart(msgspec.Struct, frozen=True, array_like=True, tag=102):
    """Some of what the sender changed. With the last of them it says how much that is in all, and whether
    its journal reached back to where the lines parted."""

    token: int
    differences: tuple[Difference, ...]
    last: bool = False
    count: int = 0
    whole: bool = True


AnyMessage = (
    NamespaceChange
    | WriteChange
    | TruncateChange
    | Hello
    | Refused
    | Ping
    | Pong
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
    | Reply
    | Suspects
    | Room
    | Fetched
    | Request
    | Answer
    | Excluded
    | AccessInEffect
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
)
