"""Every bound of the program, with its reason, and assertions that relate them.

A bound that an administrator may want to move is a setting (`settings.py`); the ones here are
part of a format or of an argument, and moving one means reading its reason again.
"""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- names and values: those of Linux, so that nothing a local filesystem takes is refused -------
NAME_BYTES_MAX = 255
HOST_NAME_BYTES_MAX = 240  # it names a directory, and a number behind it must fit; DNS ends at 253
SYMLINK_BYTES_MAX = 4095  # PATH_MAX less its terminating zero
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 64 * KIB  # XATTR_SIZE_MAX
XATTR_NAMES_BYTES_MAX = 64 * KIB  # XATTR_LIST_MAX: of one inode with their zeros, or listxattr(2) would fail
ANCESTORS_MAX = 16_384  # of where a directory is moved to: each is looked at, in about 5 us
LINKS_MAX = 65_000  # ext4's; programs that probe for EMLINK expect one
FILE_BYTES_MAX = (1 << 63) - 1  # off_t
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1  # the years 1677 to 2262, in an inode's row

# --- numbers: what a peer may say is less than what fits, so that what this host makes next fits too ---
INODE_NUMBER_MAX = (1 << 63) - 1  # stands beside a region's mark in an i64
INODE_NUMBER_RECEIVED_MAX = 1 << 62
CHANGE_NUMBER_MAX = (1 << 61) - 1  # cookies are twice as large, and below 2**62
CHANGE_NUMBER_RECEIVED_MAX = 1 << 60
CHANGE_NUMBER_CLAIMED_MAX = 1 << 56  # of a peer whose number the primary goes on from
CHANGE_TIME_NS_MAX = TIME_NS_MAX
CHANGE_TIME_NS_RECEIVED_MAX = TIME_NS_MAX - (1 << 56)  # each later change is a nanosecond later at least
COUNTER_MAX = 1 << 62  # of terms, checkpoints, tokens; the next one fits into i64
COUNTER_SKIPPED_MAX = 1 << 32  # a peer is ahead by less: a checkpoint takes seconds, a term longer
ERRNO_MAX = 511  # the kernel takes no answer with a higher one (fs/fuse/dev.c)
IDENTITY_BYTES_MAX = 64  # of a host, a process, a call, a generation: eight to twenty-four bytes by now
REQUEST_ID_BYTES = 16  # `identifiers.RequestId`
HOST_NAME_CHARACTERS_MAX = 255
KEY_BYTES_MAX = 511  # LMDB's longest

# --- image files ----------------------------------------------------------------------------------
WRITE_BYTES_MAX = MIB  # the most that the kernel hands over in one FUSE write (256 pages)
REGION_BYTES = 64 * KIB  # what one mark of the changed-region map stands for
RANGES_PER_IMAGE_MAX = 16_384  # of marked regions: 256 KiB; beyond, small gaps are marked too
RANGES_PER_IMAGE_MIN = 8  # where very many images are marked
RANGES_MAX = 131_072  # of all images: written within some 0.2 s where a checkpoint keeps them
OPEN_IMAGES_MAX = 512  # descriptors held by the image cache, within the usual soft limit of 1,024
SPARE_IMAGES_MAX = 4_096  # empty images kept for new files: a MiB of inodes
CUT_EXTENTS_MAX = 32  # freed at once: 0.2 ms on ext4, 20 ms where each is told to the disk (`discard`)
CUT_SHORT_BYTES = CUT_EXTENTS_MAX * 4 * KIB  # no more extents than that, where blocks have 4 KiB
CUT_BYTES_MAX = 256 * MIB  # cut at once: as pages in memory they are freed within 20 ms
IMAGES_PER_DIRECTORY = 4_096  # keeps each directory of image files at a size every host likes

# --- catalog and journal --------------------------------------------------------------------------
CATALOG_MAP_BYTES = 256 * GIB  # address space, not disk; LMDB needs a ceiling
CATALOG_CHANGES_PER_COMMIT_MAX = 4_096  # bounds the dirty pages held in memory (about 3 a change)
CATALOG_BYTES_PER_CHANGE = 12 * KIB  # three pages: of a change with longer rows as many count as it fills
INODES_CACHED_MAX = 16_384  # decoded inodes; another costs about 3 us from LMDB
JOURNAL_SEGMENT_BYTES = 4 * MIB  # a segment is removed whole; small enough to come often
JOURNAL_BYTES_MAX = 64 * MIB  # a peer that missed more gets the catalogs compared; bounds start-up
JOURNAL_RECORD_BYTES_MAX = 512 * KIB
ROW_BYTES_PER_RECORD = 64 * KIB  # of a change that can be cut anywhere: some 2,000 rows, 10 ms of work
COMMIT_INTERVAL_S = 5.0  # ext4 commits its journal as often
CHECKPOINT_INTERVAL_S = 10.0  # how long a mark may outlive the moment both copies are durable
INODES_SKIPPED = 1 << 32  # by a take-over: more than the other host gives on its own until they meet
PURGE_AFTER_S = 2.0  # a file unlinked on one host may just have been looked up on the other
PURGE_BATCH_MAX = 1_024  # inodes that the backup is asked about at once
PURGE_LOOKS_PER_S = 100_000  # at inodes that may be open at a backup which is away: 3 % of the loop's time
PURGE_RECORDS_MAX = 8  # made in one turn, without a wait: what a backup opens meanwhile nobody hears of
NAMELESS_SUMMED_MAX = 10_000  # files without names whose sizes `status` adds up: some 30 ms

# --- space on the disk ----------------------------------------------------------------------------
SPACE_RESERVE_PART = 8  # at most this part of a small disk is kept free
SPACE_RESERVE_BYTES_MAX = 64 * MIB  # two journal segments, catalog pages, and what others write meanwhile
SPACE_RESERVE_INODES = 64  # images made between two looks at the disk
SPACE_GROWN_INODES = 8  # so many more free ones, or WRITE_BYTES_MAX, and what did not fit is tried again
SPACE_PER_CHANGE_BYTES = 4 * KIB  # a block for the record, the rows or the end of an image
SPACE_ANSWER_BYTES_MAX = 16 * MIB  # taken before the disk is asked again; well within the full reserve
SPACE_TOLD_STEP_BYTES = GIB  # of more room than this, one more or less of it is news to the primary
SPACE_TOLD_INODES_MAX = 1 << 18  # more inodes are none: as many as SPACE_TOLD_STEP_BYTES has room for changes
SPACE_LOOK_INTERVAL_S = 1.0  # others fill and free a disk without a word
CATALOG_CHANGES_PER_COMMIT_SHORT = 64  # on a full disk: about 1 MiB of new pages in each commit

# --- clocks ---------------------------------------------------------------------------------------
# Hosts that keep time agree within milliseconds, and a step of a leap second or of ntpd is one second at
# most. A handshake, in which the two compare their clocks, takes no longer than HANDSHAKE_TIMEOUT_S.
CLOCK_DIFFERENCE_MAX_S = 10.0

# --- protocol -------------------------------------------------------------------------------------
PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1
INODES_SENT_AT_ONCE = 1_000  # attributes of images out of sync, in one turn of the loop: 5 ms
INODES_SENDINGS_MAX = 8  # of those before, and of what was written meanwhile; each is much less than the last
SUSPECT_INTS_PER_MESSAGE = 40_000  # of 9 bytes each: 352 KiB
MESSAGE_BYTES_MAX = MIB  # the encoded part of a frame, without its data
DATA_BYTES_MAX = 4 * MIB  # the raw data beside it
HANDSHAKE_BYTES_MAX = 64 * KIB  # what a stranger may make us hold
HANDSHAKE_TIMEOUT_S = 10.0  # for a stranger; our own dials wait less, see `channel/link.py`
PEER_HANDSHAKES_MAX = 8  # at once, from the peer's addresses: one for each path, and those it gave up
PEER_HANDSHAKES_PER_S = 40.0  # a peer dials each path ten times a second at most (RECONNECT_FIRST_S)
ADDRESSES_MAX = 8  # of one host, as set; a host has a few networks, and each has a line of the status
PEER_ADDRESSES_MAX = 32  # the newest; a name may stand for several
STRANGERS_MAX = 16  # handshakes at once with all others; a further one takes the place of one of them
STRANGER_HANDSHAKES_PER_S = 10.0  # each takes about a millisecond of the loop that serves reads and writes
CERTIFICATE_BYTES_MAX = 16 * KIB  # as PEM; ours have less than one, those of others some
KEY_DIGEST_BYTES = 32  # SHA-256
KEYS_COMING_MAX = 2  # of the other host: a renewal may begin before this host heard of the last one's end
REPLACED_HOSTS_MAX = 16  # are told so when they come back: the newest
AWAY_LOG_INTERVAL_S = 60.0  # between two lines of the log about a peer that is away; `status` has the newest
REFUSALS_LOGGED_MAX = 16  # lines in each interval; what is refused beyond is counted
REFUSALS_INTERVAL_S = 60.0
REFUSED_HOSTS_MAX = 1_024  # addresses told apart in that count

# --- channel --------------------------------------------------------------------------------------
RECEIVE_BYTES = 64 * KIB  # one recv: more would leave the nearest cache before it is decrypted and copied
READ_AHEAD_BYTES_MAX = 64 * KIB  # of a session that makes no link yet: its peer begins with less
GATHERED_BYTES_MAX = 64 * KIB  # of requests that nobody waits for, kept back to go together
BACKLOG_BYTES_MAX = 8 * MIB  # unsent bytes of one path; at it, those who send wait
STATUS_AHEAD_BYTES = 32 * KIB  # of data: less is a command by itself, as it is there as soon as one would be
RECONNECT_FIRST_S = 0.1
CONNECT_TIMEOUT_S = 2.0  # two packets were lost by then, and further ones would come ever later (tcp(7))
CONNECT_STAGGER_S = 0.25  # between dials of two addresses (RFC 8305): one that is slow keeps none waiting
PARTNER_TIMEOUT_MIN_S = 3.0  # the peer may just have begun to dial, and dials anew
RECONNECT_MAX_S = 1.0  # between two dials: a peer that comes back is met soon
ACCEPTS_PER_TURN = 32  # connections taken before others have their turn
ACCEPT_PAUSE_S = 0.005  # after so many at once: a flood gets a tenth of the loop (20 us each), not all of it
TURNED_AWAY_MAX = 200  # strangers in an interval: 2 % of the loop (90 us each, most of it the system's)
TURNED_AWAY_MIN = 40  # fewer, and more are let through again
SHEDDING_INTERVAL_S = 1.0
SHEDDING_STEP = 4
SHEDDING_MAX = 1_024  # one of so many calls of strangers is taken: more than 200,000 a second are no matter
THREADS_MAX = 40
"""Calls that block on a disk at once; as many as trio lets run. A disk has long been busy by then."""

assert TURNED_AWAY_MIN * SHEDDING_STEP < TURNED_AWAY_MAX, "or it would go to and fro"
LISTEN_BACKLOG = 1_024  # what waits meanwhile, so that the peer is not the one whose packets are dropped
REFUSED_REST_MAX_S = 30.0  # after links that ended by a bad message: one that lies is not met at once
ACCEPT_RETRY_S = 0.1  # when descriptors or memory ran out; trio's listeners wait as long
LOOKS_PER_PATIENCE = 8  # at what a peer takes of what the system has taken: silence is seen an eighth late
UNSENT_BYTES = 1 * MIB  # what the system takes of one path before it has sent it: a whole large write
PROBE_BYTES = 16 * KIB  # more than the largest packets of a network (jumbo frames: 9,000)
BEFORE_PROBE_BYTES_MAX = READ_AHEAD_BYTES_MAX + PROBE_BYTES  # a peer sends its Probe before anything else
PONGS_UNSENT_MAX = 1_000  # those of minutes: every lease is over by then
PROBE_TIMEOUT_S = 2.0  # so much takes a second of 128 kbit/s
RECEIVED_TOLD_BYTES = 1 * MIB  # after so many the other end hears that it need not keep them any more
RESENT_BYTES_MAX = 64 * MIB  # kept of a session: sockets hold some 10 MiB (tcp(7)), long lines more
RESENT_SENDS_MAX = 262_144  # of some 300 bytes beside what is sent; sockets hold fewer of small messages
TALKS_MAX = 8  # with a peer of the same role: one that each host dialed, and some that it gave up since
LINES_MAX = 16  # spare connections of one session: one for each of PEER_ADDRESSES_MAX / 2
DIALS_PER_PATH_TIMEOUT = 2  # a spare that does not answer is dialed so often: one that is back is found soon
LISTEN_RETRY_S = 0.5  # at an address that is not there yet: a system call; the peer dials as often
REDIAL_FIRST_S = 0.02  # after a loss, doubled at each failure: a process that dies closes its listener last
LOOK_UP_INTERVAL_S = 10.0  # what a name stands for changes seldom, and spares are of what it stood for
# A lost packet is sent again after 0.2 s and a round trip, and once more after twice as long (RFC 6298; 0.2 s
# is Linux's): two in succession take 0.6 s and three round trips, and where hosts are within 50 ms they
# are no reason to move. A third would come after 1.4 s. Silence is seen an eighth late, and a move takes some
# 0.1 s on a busy machine: no program waits for a second.
PATH_TIMEOUT_S = 0.75
PINGS_PER_PATH_TIMEOUT = 4
LOOKS_PER_PATH_TIMEOUT = 8  # at the progress of a path
QUEUED_BEFORE_ANSWER_BYTES = 4 * KIB  # more than Pings: an answer to them may take a while
MOVES_PATIENCE_MAX = 8  # times path_timeout: a peer that is slow at every address is not moved to and fro
SEND_BUFFERS_MAX = 256  # written by one call; Linux takes 1,024
HEARTBEATS_PER_TIMEOUT = 5  # lost heartbeats before a peer is held dead
LEASE_CLOCK_MARGIN = 0.01  # a lease ends so much earlier for its holder: no two clocks run at the same rate

# --- control --------------------------------------------------------------------------------------
ERROR_REPEATED_S = 60.0  # the same error of a request is logged so seldom, whoever asks for it in a loop
ERRORS_LOGGED_MAX = 256  # different ones within that: where so much is wrong, further lines tell nothing new
REQUESTS_MAX = 64  # FUSE requests served at once: each may hold one write in memory
KERNEL_DELAY_S = 0.5  # within this a kernel has taken an answer that was given to it
KERNEL_STEADY_S = 1.5  # and within this even where many more programs want to run than can
REST_S = 1.0  # a file that did not change for so long is read through the page cache
APPLIED_DELAY_S = 0.004  # of what the backup's own programs wrote: some small writes, and one word for all
NOTIFICATION_TIMEOUT_S = 1.0  # a kernel that takes longer to hear of a change is freeing the inode
NAME_DROPPED_S = 0.5  # so long a look waits until the kernel has dropped a name; it tries again by itself
MOVED_LOOK_DELAY_S = 0.01  # so long after a move here a kernel has let go of a directory that nobody uses
MOVED_LOOKS_MAX = 100  # where renames of this host are in its way each time; the next call begins anew
PAGES_TIMEOUT_S = 0.005  # a thread takes a tenth of that; what takes longer may wait for a read
PAGES_TIMEOUTS_MAX = 100  # where it does not, the machine is busy: half a second
MAPPING_DELAY_S = 0.25  # so long after a change by the other host a mapping may show what was before
NAME_LIFETIME_S = 1.0  # how long a kernel keeps a name; the other host may have to wait for that
SHARED_NAME_LIFETIME_S = 0.25  # here both hosts may: shorter, and long enough for most of the gain
LOOKS_TO_KEEP = 16  # so many a second: keeping the names of a directory pays
DIRECTORY_REST_S = 5.0  # a directory that the other host used so recently is left to both
DIRECTORY_BACK_OFF_MAX_S = 600.0  # and one that was wanted back again and again for so long
DIRECTORIES_KEPT_MAX = 4_096
DIRECTORIES_TOLD_MAX = 65_536  # the kernel looks a name up just before it asks to remove it
DIRECTORIES_USED_MAX = 65_536  # beyond, all count as used
REQUESTS_SEARCHED_MAX = 1_024  # with more pending, a directory may be in any of them
REQUESTS_BESIDE_MAX = 4_096  # of a peer's, under way at once beside the stream: 64 programs ask, some gave up
ANSWERS_PER_TURN = 256  # of a host that took over, to its own programs: less than a ms
REQUESTS_DONE_MAX = 1_048_576  # of a peer's, remembered while it may ask again: more than an honest one's
REQUESTS_DONE_BYTES_MAX = 128 * MIB  # of their file, with what a repair finds in the journal
REFUSALS_UNRECORDED_MAX = 65_536  # of a backup's writes, while the disk takes no record: some MiB
REFUSALS_PER_TURN = 256  # recorded, where no change has come that must wait for them all
CALLS_MAX = 1_024  # of a backup, without an answer: as many as its kernel session lets wait (below)
CHECKPOINTS_OPEN_MAX = 64  # whose marks wait to be forgotten: the primary begins one after the other
REQUESTS_IDLE = 16  # tasks kept ready for the next request; fewer are ended and begun again and again
ROOT_PATIENCE_S = 0.5  # df asks twice, and who watches mounts gives it a few seconds
ROOT_LOOKS = 120  # a minute: most peer_timeouts; a look after that ends by io_timeout
REQUESTS_PER_TURN = 64  # answered by the kernel session before all other tasks have their turn
TURNS_PER_LOOK = 8  # of one request; in every eighth the kernel session looks whether there are more again
HOT_CALLS_PER_TURN = 64  # as many, before trio's loop has its turn
SYNCS_UNDER_WAY_MAX = (
    64  # by the kernel alone; the programs of a host ask for few at once, and a thread does others
)
HOT_EVENTS = 16  # taken by one poll: the kernel, two paths and trio are four
REQUESTS_WAITING_MAX = 1_024  # of the kernel session, each about 10 KiB; the kernel holds the others
REQUESTS_WAITING_BYTES_MAX = 64 * MIB  # that those hold: as much as with REQUESTS_MAX large writes
CALLER_LOOK_S = 0.5  # how late a program that waits hears that it was killed, if the kernel does not tell
CONFIG_BYTES_MAX = 64 * KIB  # every key with its comment: some three are used
JOIN_FILE_BYTES_MAX = 64 * KIB  # a key and two certificates: some three are used
BACKGROUND_PAUSE_FIRST_S = 1.0  # before a background task that failed is tried again
BACKGROUND_PAUSE_MAX_S = 30.0  # and at last: what came right by itself, or by a person, is noticed soon
ADMIN_REQUEST_BYTES_MAX = 64 * KIB
RESERVED_PATH_BYTES_MAX = 64 * KIB  # a path may be longer than PATH_MAX; a row must fit into a record
RESERVATIONS_MAX = 1_024  # each is a row that is held in memory too; ending all of them is one change
DESTAGE_AFTER_S = 0.01  # a request answered sooner never needs LMDB
COMMIT_DELAY_S = 0.001  # a commit waits so long for as many writes as were made durable by the one before
DESTAGE_BATCH_BYTES_MAX = 8 * MIB
COMMUNICATION_BYTES_DEFAULT = 1 * GIB
COMMUNICATION_MEMORY_DEFAULT = 128 * MIB
COMMUNICATION_MEMORY_MIN = 16 * MIB  # two batches of the store: one is written while the next gathers
STAGED_REQUESTS_MAX = 262_144  # reads of a file look at all that are pending of it: some 20 ms
# Of a backup behind one that it may ask again: the primary remembers each, in 0.2 KiB and 30 bytes of a file.
STAGED_SINCE_OLDEST_MAX = 2 * STAGED_REQUESTS_MAX
STAGED_REQUEST_BYTES = KIB  # of memory, beside its data: 0.7 KiB were counted
STAGED_DATA_PART = 0.5  # of that memory; beyond it what the store has is let go of, to have room for more
STAGING_SEGMENT_BYTES = 16 * MIB  # a file of the subvolume's own staging; removed whole
MARK_BYTES_MAX = 4 * KIB  # of a communication volume in a place of its own: some 150 are used
PAGES_LOOKED_AT_BYTES = 8 * MIB  # of a mapped file: some 100 us to let go of them
STORE_RETRY_S = 1.0  # between two attempts of a communication volume whose disk is full
PRIMARY_AWAY_PATIENCE_S = 1.0  # of an unmount, while the primary is away: two dials of it
ENDED_INTERVAL_S = 0.5  # how long the primary remembers a request that has ended
WITNESS_LOOK_S = 10.0  # how late `status` may know that the witness has gone
WITNESS_ANSWER_BYTES_MAX = 64 * KIB  # two records of some 200 bytes each are asked for
DIVERGENT_KNOWN_MAX = 262_144  # divergent names and inodes that are remembered; some 200 bytes each
DIVERGENT_LOOK_INTERVAL_S = 1.0  # how late `status` may count a divergent change, where they are few
DIVERGENT_LOOKS_PER_S = 10_000  # where they are many: each costs some 10 us, a tenth of the time then
DIFFERENCES_TOLD_MAX = 10_000  # of a host's divergent changes; a person looks at fewer
DIFFERENCES_TOLD_BYTES_MAX = MIB  # of their paths: an answer that a command takes
DIFFERENCES_PER_MESSAGE = 64
DIFFERENCE_PATH_BYTES_MAX = 4 * KIB  # PATH_MAX
COPY_PIECE_BYTES = 8 * MIB  # copied in a thread between two checkpoints
COPY_BYTES_MAX = 64 * MIB  # by one copy_file_range(2), which may copy less than it was asked for
ACCESSED_INTERVAL_S = 5.0  # how late both volumes hear of what was read, with relatime
ACCESSED_AGAIN_S = 86_400  # as the kernel has it (fs/inode.c): a time of access is at most a day old
ACCESSED_NOTED_MAX = 65_536  # inodes read between two words of it; a few MiB
ACCESSED_PER_CHANGE = 64  # rows of 80 bytes, one for each inode; but a symbolic link has its target in it
COPY_LOOKS = 16  # at the end of the source, which another program may have cut before each of the copies
COPY_STEP_BYTES = 8 * MIB  # by one change: some ms of each host's loop, if the disk is not slow
FAILED_WRITES_MAX = 1_024  # inodes whose lost writes are remembered until somebody asks

# --- locks ----------------------------------------------------------------------------------------
# Whoever takes one finds what is in its way, and what it joins, by bisection.
LOCKS_PER_USER_MAX = 4_096  # at each host
LOCKS_PER_HOST_MAX = 65_536  # each takes 500 to 800 bytes; ENOLCK beyond, as for a user
# Each request under way may be granted and cut a range in three, and the next unlock cut what it took.
LOCKS_UNDER_WAY_EACH = 3
# A backup of an earlier version does not count these when one of its programs cuts a range by an unlock.
# Beyond this it breaks the protocol.
LOCKS_PER_PEER_MAX = LOCKS_PER_HOST_MAX + LOCKS_UNDER_WAY_EACH * REQUESTS_WAITING_MAX
LOCKS_WAITING_PER_USER_MAX = 128  # each is a request of the kernel that waits, and a task
LOCKS_WAITING_PER_HOST_MAX = 512  # half of REQUESTS_WAITING_MAX: the others can still be served
LOCKS_LISTED_MAX = 2_048  # by `fusemirror locks`: some 500 KiB
LOCKS_PER_MESSAGE = 2_048  # of at most some 80 bytes each
DEADLOCK_OWNERS_MAX = 64  # looked at; Linux gives up after ten (MAX_DEADLK_ITERATIONS)

# --- resync and verify ----------------------------------------------------------------------------
DIGESTS_PER_MESSAGE = 16  # 1 MiB of an image is read and hashed between two requests
ROWS_PER_MESSAGE = 512
ROW_BYTES_PER_MESSAGE = 256 * KIB  # rows are read, sent and compared in pieces of this
HOLE_PIECE_BYTES = GIB  # of an image that becomes a hole at once, if it lies in few places (CUT_EXTENTS_MAX)
ROWS_RECEIVED_MAX = 16_384  # in one message: attributes of many small files are short rows
INODES_PER_MESSAGE = 8_192
GENERATIONS_MAX = 64  # a peer that missed more lines than these is told apart by hand
RESYNC_WINDOW_BYTES = 8 * MIB  # regions under comparison
DECLINED_RETRY_S = 10.0  # an image that the backup's disk does not take: a person may have to look at it
RESYNC_BACKLOG_BYTES_MAX = 1 * MIB  # a resync waits while more is unsent, since live changes queue behind it
VERIFY_WINDOW_MESSAGES = 8
VERIFY_ROUNDS_MAX = 4  # of repairing what programs write to meanwhile
DIFFERENCES_LISTED_MAX = 1_000
DIFFERENCES_LISTED_BYTES_MAX = 256 * KIB  # as JSON, which one answer to the backup holds

# Quartz errs by up to 200 ppm and ntpd slews by up to 500 more, at each host.
assert LEASE_CLOCK_MARGIN > 5 * 2 * 700e-6
assert KERNEL_STEADY_S >= KERNEL_DELAY_S
assert CLOCK_DIFFERENCE_MAX_S >= HANDSHAKE_TIMEOUT_S
assert CHANGE_NUMBER_CLAIMED_MAX < CHANGE_NUMBER_RECEIVED_MAX < CHANGE_NUMBER_MAX
assert CHANGE_TIME_NS_RECEIVED_MAX < CHANGE_TIME_NS_MAX
assert INODE_NUMBER_RECEIVED_MAX < INODE_NUMBER_MAX
assert REGION_BYTES * DIGESTS_PER_MESSAGE <= DATA_BYTES_MAX
assert WRITE_BYTES_MAX <= DATA_BYTES_MAX
assert STAGED_REQUESTS_MAX < STAGED_SINCE_OLDEST_MAX < REQUESTS_DONE_MAX, "no honest backup comes to the last"
assert (REQUESTS_DONE_MAX + JOURNAL_BYTES_MAX // 64) * 50 <= REQUESTS_DONE_BYTES_MAX, "a row has 42 bytes"
assert WRITE_BYTES_MAX <= UNSENT_BYTES <= RESYNC_BACKLOG_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX + SYMLINK_BYTES_MAX + 4 * KIB <= JOURNAL_RECORD_BYTES_MAX
assert JOURNAL_RECORD_BYTES_MAX <= MESSAGE_BYTES_MAX, "a record travels as one message"
assert ROW_BYTES_PER_RECORD + XATTR_VALUE_BYTES_MAX + 4 * KIB <= JOURNAL_RECORD_BYTES_MAX, "one row too many"
assert ROW_BYTES_PER_MESSAGE + XATTR_VALUE_BYTES_MAX + 4 * KIB <= MESSAGE_BYTES_MAX
assert ROW_BYTES_PER_MESSAGE >= 2 * (XATTR_VALUE_BYTES_MAX + 4 * KIB), "a range of rows can be halved"
assert DIFFERENCES_PER_MESSAGE * (2 * DIFFERENCE_PATH_BYTES_MAX + 256) <= MESSAGE_BYTES_MAX
assert DIFFERENCES_LISTED_BYTES_MAX + 4 * KIB <= MESSAGE_BYTES_MAX
assert COPY_STEP_BYTES <= COPY_BYTES_MAX
assert ACCESSED_PER_CHANGE * (SYMLINK_BYTES_MAX + 128) <= JOURNAL_RECORD_BYTES_MAX
assert JOURNAL_SEGMENT_BYTES * 4 <= JOURNAL_BYTES_MAX
assert ROWS_PER_MESSAGE * (8 + NAME_BYTES_MAX + 64) <= MESSAGE_BYTES_MAX
assert RESERVED_PATH_BYTES_MAX + 4 * KIB <= JOURNAL_RECORD_BYTES_MAX
assert RESERVATIONS_MAX * 128 <= JOURNAL_RECORD_BYTES_MAX
assert RANGES_PER_IMAGE_MAX * 2 + 3 <= SUSPECT_INTS_PER_MESSAGE <= MESSAGE_BYTES_MAX // 2 // 9
assert RANGES_PER_IMAGE_MIN <= RANGES_PER_IMAGE_MAX <= RANGES_MAX
assert 2 * ADDRESSES_MAX <= PEER_ADDRESSES_MAX, "those that it is dialed at, and those that it dials from"
assert PATH_TIMEOUT_S * (1 + 1 / LOOKS_PER_PATH_TIMEOUT) < 0.9, "and a move within a second"
assert RECEIVED_TOLD_BYTES < RESENT_BYTES_MAX
assert BACKLOG_BYTES_MAX < RESENT_BYTES_MAX
assert CONNECT_TIMEOUT_S + RECONNECT_MAX_S <= PARTNER_TIMEOUT_MIN_S <= HANDSHAKE_TIMEOUT_S
assert LOCKS_WAITING_PER_HOST_MAX * 2 <= REQUESTS_WAITING_MAX
assert LOCKS_PER_MESSAGE * 128 <= MESSAGE_BYTES_MAX
assert RESYNC_BACKLOG_BYTES_MAX <= BACKLOG_BYTES_MAX
assert SPACE_ANSWER_BYTES_MAX * 2 <= SPACE_RESERVE_BYTES_MAX
assert 2 * DESTAGE_BATCH_BYTES_MAX <= COMMUNICATION_MEMORY_MIN <= COMMUNICATION_MEMORY_DEFAULT
assert WRITE_BYTES_MAX + STAGED_REQUEST_BYTES <= COMMUNICATION_MEMORY_MIN * STAGED_DATA_PART
assert REQUESTS_MAX * WRITE_BYTES_MAX <= 64 * MIB, "memory of a mount with every request a large write"
