"""Directory leases: of which directories a host's kernel may keep the looked-up dentries, not asking again.

A kernel shows a dentry that it keeps until the call that removes the name has returned there, while the
other host may have seen the removal already. And to invalidate a dentry is to wait for the lock of its
directory, which a call may hold that waits for the other host. So nothing is invalidated. Dentries are kept
for a short time, in directories of which there is

- an **exclusive** lease of one host. Its programs may change names in them: its kernel knows. Before a
  program of the other host looks into the directory or changes it, the holder gives up;
- a **shared** lease of both. Before a program of either host changes a name, both give up. A directory is
  not shared while one of the hosts changed it a moment ago: what its kernel kept then has expired.

To give up is to let the kernel keep no more, and to wait until what it keeps has expired. Nothing that is
under way is waited for, so that ends by itself. The primary grants and recalls, and says so in the stream
of changes. Each recall of a directory makes the back-off longer, in which nobody is granted a lease of it.
"""

import errno
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from fusemirror.channel.session import Session
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import BadChange, ChannelError, ConnectionLost
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIRECTORIES_KEPT_MAX,
    DIRECTORIES_USED_MAX,
    DIRECTORY_BACK_OFF_MAX_S,
    DIRECTORY_REST_S,
    KERNEL_DELAY_S,
    LOOKS_TO_KEEP,
    NAME_LIFETIME_S,
    REQUESTS_SEARCHED_MAX,
    SHARED_NAME_LIFETIME_S,
)
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PrimaryState
from fusemirror.mirror.stream import Question, Stream
from fusemirror.operations import Operation
from fusemirror.promise import Promise
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    FreeNames,
    HoldNames,
    LendNames,
    RecallNames,
    Reply,
    ShareNames,
    WantBack,
    WantNames,
)
from fusemirror.recent import Recent

_NEVER = -math.inf


class DirectoryLeases:
    """What one host knows of both hosts' leases, whichever role it has. Times are trio's."""

    def __init__(self) -> None:
        self.exclusive: set[InodeNumber] = set()
        """Directories of which this host has the exclusive lease."""
        self.shared: set[InodeNumber] = set()
        """Directories of which both hosts have a shared lease, or have yet to give it up."""
        # "Or may have": it stands here from before the other host can know of it until that has said that
        # it gave it up. So an error costs a question, and never shows a name that is gone.
        self.theirs: set[InodeNumber] = set()
        """Directories of which the other host has the exclusive lease, or may have."""
        # Where programs of this host worked a moment ago.
        self.used = Recent[InodeNumber](DIRECTORY_REST_S, DIRECTORIES_USED_MAX)
        self.changed = Recent[InodeNumber](DIRECTORY_REST_S, DIRECTORIES_USED_MAX)
        self.looked_up = 0
        self.granted = 0
        # Tells lookups that began before a recall from those after it: `keeping`.
        self._given_up = 0  # how often
        self._sharing = True  # what is shared is kept
        # One time for all directories of a kind: a recall waits for the longest, and the table need not
        # know which dentries the kernel still has.
        self._exclusive_until = self._shared_until = _NEVER  # what the kernel keeps of them has run out then
        self._looks: Counter[InodeNumber] = Counter()
        self._looks_until = _NEVER

    def look(self, directory: InodeNumber) -> bool:
        """A program of this host looks for a name; whether it is one of so many that keeping them pays."""
        now = trio.current_time()
        # Counted over the lifetime of a name: looks further apart than that would each find it expired, lease
        # or not.
        if now >= self._looks_until:
            self._looks.clear()
            self._looks_until = now + NAME_LIFETIME_S
        self.looked_up += 1
        self._looks[directory] += 1
        self.used.add(directory)
        # Exactly so many, and not more: a lease that was refused is not asked for again with each look.
        return self._looks[directory] == LOOKS_TO_KEEP and not self.is_known(directory)

    def change(self, operation: Operation) -> None:
        """A program of this host changes names: called before that, and when it is done."""
        # Before and after: a change on its way is seen by neither host's catalog, and must keep a lease
        # away.
        for directory, _ in operation.touched_names():
            self.used.add(directory)
            self.changed.add(directory)

    def is_known(self, directory: InodeNumber) -> bool:
        return directory in self.exclusive or directory in self.shared or directory in self.theirs

    def is_in_the_way(self, directory: InodeNumber, *, of_change: bool) -> bool:
        """Whether a program must wait that looks into the directory, or changes a name in it."""
        # A shared lease is in the way of changes alone, those of its own host too: the other kernel keeps
        # the name.
        return directory in self.theirs or (of_change and directory in self.shared)

    def keeping(self, directory: InodeNumber) -> int | None:
        """Tells apart the times for which names of the directory may be kept; None if they may not now."""
        # Not once a shared lease is being given up: a name kept from then on would outlast the wait for it.
        may = directory in self.exclusive or (self._sharing and directory in self.shared)
        return self._given_up if may else None

    def lifetime_s(self, directory: InodeNumber, limit_s: float) -> float:
        """How long the kernel may keep a name that it is told now, `limit_s` at most."""
        if limit_s <= 0:
            return 0.0
        self.granted += 1
        # The kernel begins to count when it has taken the answer.
        # So the time is taken too long here rather than too short: whoever gives up waits for it.
        now = trio.current_time() + KERNEL_DELAY_S
        if directory in self.exclusive:
            lifetime_s = min(NAME_LIFETIME_S, limit_s)
            self._exclusive_until = max(self._exclusive_until, now + lifetime_s)
        else:
            # Shorter than by an exclusive lease, as programs of both hosts may have to wait for its end.
            lifetime_s = min(SHARED_NAME_LIFETIME_S, limit_s)
            self._shared_until = max(self._shared_until, now + lifetime_s)
        return lifetime_s

    def share(self, directory: InodeNumber) -> None:
        """Both hosts share the directory from now on, whoever had one."""
        self.theirs.discard(directory)
        self.exclusive.discard(directory)
        # What was kept by the exclusive lease, which is longer, lasts on in the kernel: to end sharing
        # waits for it.
        self._shared_until = max(self._shared_until, self._exclusive_until)
        self.shared.add(directory)

    async def give_up_exclusive(self) -> None:
        """Give up all exclusive leases. On return this host's kernel keeps nothing by one."""
        # First the kernel gets nothing new, then what it has runs out: in the other order this would not
        # end.
        self._given_up += 1
        self.exclusive.clear()
        await _until(self._exclusive_until)

    async def give_up_shared(self) -> None:
        """Keep nothing of what is shared. On return this host's kernel does not; the other's may."""
        self._given_up += 1
        # The set stays until the other host has given up as well: changes wait for both.
        self._sharing = False
        await _until(self._shared_until)

    def end_sharing(self) -> None:
        """Both hosts have given up what they shared."""
        self.shared.clear()
        self._sharing = True

    def forget_link(self) -> None:
        """Hold and share nothing; the other host gives up by itself before there is another link."""
        self._given_up += 1
        self.exclusive.clear()
        self.theirs.clear()
        self.end_sharing()

    async def run_out(self) -> None:
        """On return this host's kernel keeps nothing that it was told before `forget_link`."""
        await _until(max(self._exclusive_until, self._shared_until))

    def counters(self) -> dict[str, int]:
        """For `fusemirror status`. Looks that the kernel answers by itself nobody counts."""
        return {
            "names_looked_up": self.looked_up,
            "names_granted": self.granted,
            "directories_held": len(self.exclusive),
            "directories_shared": len(self.shared),
        }


async def _until(time: float) -> None:
    if time > trio.current_time():
        await trio.sleep_until(time)


def _check_few(directories: set[InodeNumber]) -> None:
    """The primary, which decides, gives and takes no more than so many."""
    if len(directories) > DIRECTORIES_KEPT_MAX:
        raise BadChange(f"more than {DIRECTORIES_KEPT_MAX} directories")


class LeaseGrants:
    """The primary's half: who keeps the names of which directory is decided here, one after the other."""

    def __init__(self, leases: DirectoryLeases, mirror: Mirror, replica: Replica) -> None:
        self.leases = leases
        self._mirror = mirror
        self._replica = replica
        # One decision after the other: each asks the backup, and two answers for one directory could
        # contradict.
        self._deciding = trio.Lock()
        self._backed_off: dict[InodeNumber, tuple[float, float]] = {}  # until when, and for how long, by both

    def _is_free(self, directory: InodeNumber) -> bool:
        until = self._backed_off.get(directory, (_NEVER, 0.0))[0]
        return not self.leases.is_known(directory) and trio.current_time() >= until

    def _back_off(self, directory: InodeNumber) -> None:
        """The hosts were in each other's way."""
        now = trio.current_time()
        # Popped and put again, so that the oldest is the first and goes when there are too many.
        until, back_off_s = self._backed_off.pop(directory, (_NEVER, 0.0))
        again = now < until + DIRECTORY_BACK_OFF_MAX_S
        back_off_s = min(2 * back_off_s, DIRECTORY_BACK_OFF_MAX_S) if again else DIRECTORY_REST_S
        self._backed_off[directory] = now + back_off_s, back_off_s
        # To forget a back-off costs a recall; to keep all would cost memory that any program can take.
        if len(self._backed_off) > DIRECTORIES_KEPT_MAX:
            del self._backed_off[next(iter(self._backed_off))]

    # --- keeping ------------------------------------------------------------------------------------------

    async def grant(self, directory: InodeNumber) -> None:
        """The backup asks for a lease of a directory: it gets one of either kind, or it hears nothing."""
        leases = self.leases
        async with self._deciding:
            stream = self._normal_stream()
            # No answer is needed: nobody waits for a lease, which only spares the backup's later looks.
            if stream is None or not self._is_free(directory):
                return
            # Both hosts look there: an exclusive lease would only be recalled by the next look.
            if directory in leases.used:
                await self._share(stream, directory)
            elif len(leases.theirs) < DIRECTORIES_KEPT_MAX:
                # In the stream, behind every change that was made: what the backup's kernel is told from
                # then on is so.
                with suppress(ConnectionLost):
                    stream.send(LendNames(directory))
                    leases.theirs.add(directory)

    async def take(self, directory: InodeNumber) -> None:
        """This host would have a lease of a directory."""
        leases = self.leases
        async with self._deciding:
            # All at once: to choose one would take a clock for each, and a full table is rare.
            if len(leases.exclusive) >= DIRECTORIES_KEPT_MAX:
                await self._free_exclusive(self._replica.stream)
            stream = self._normal_stream()
            if not self._is_free(directory):
                return
            if stream is None:
                # Alone nobody else changes a name; before the other host's lease is over it still might
                # show one.
                if self._replica.stream is None and self._mirror.authority.acknowledges_alone:
                    leases.exclusive.add(directory)
            # The backup knows before this kernel keeps anything: else a program there would change a name
            # unasked (G2).
            elif await self._agrees(stream, partial(HoldNames, directory=directory)):
                leases.exclusive.add(directory)
            else:
                await self._share(stream, directory)

    def _normal_stream(self) -> Stream | None:
        return self._replica.stream if self._replica.state is PrimaryState.NORMAL else None

    async def _share(self, stream: Stream, directory: InodeNumber) -> bool:
        """Share the directory if neither host changed it a moment ago; else this host does not hold it."""
        leases = self.leases
        if directory in leases.changed or len(leases.shared) >= DIRECTORIES_KEPT_MAX:
            return False
        # Remembered, as the answer may be no: then whoever had it has it still.
        were_theirs = directory in leases.theirs
        leases.exclusive.discard(directory)
        leases.theirs.add(directory)  # nobody here looks or changes before the answer
        agreed = await self._agrees(stream, partial(ShareNames, directory=directory))
        if agreed:
            leases.share(directory)
        elif not were_theirs:
            # Also where the answer was lost with the link, and may have been yes: a change that is made here
            # now waits until the backup has caught up, which begins with its kernel keeping nothing
            # (`run_out`), or for the end of its lease, which no kept name outlasts.
            leases.theirs.discard(directory)
        return agreed

    async def _agrees(self, stream: Stream, question: Question) -> bool:
        return await _agreed(self._ask(stream, question))

    def _ask(self, stream: Stream, question: Question) -> Promise[Reply] | None:
        """The backup's answer to come; None where the link was lost."""
        if stream is self._replica.stream:  # else nobody answers any more
            with suppress(ConnectionLost):
                return stream.ask(question)
        return None

    # --- giving up ----------------------------------------------------------------------------------------

    async def free(self, directory: InodeNumber, *, of_change: bool) -> None:
        """On return the backup is not in the way of a program of this host. `RoleChanged`."""
        mirror, replica, leases = self._mirror, self._replica, self.leases
        # After each wait anew: once the decision is free again another one may grant the directory before
        # this goes on.
        while leases.is_in_the_way(directory, of_change=of_change):
            async with self._deciding:
                stream = replica.stream
                if stream is not None and await self._free(stream, directory, of_change=of_change):
                    continue
            if stream is None:
                # The backup says nothing now: its lease runs out, or both begin anew with another link.
                await mirror.authority.until_decided()
                if not replica.streams:
                    leases.forget_link()  # the backup's lease is over, and with it all that its kernel kept
            elif stream is replica.stream:
                await mirror.changed.wait()  # the link is ending

    async def _free(self, stream: Stream, directory: InodeNumber, *, of_change: bool) -> bool:
        """False if the link was lost meanwhile."""
        leases = self.leases
        if not leases.is_in_the_way(directory, of_change=of_change):
            return True
        if directory in leases.shared:
            self._back_off(directory)
            return await self._end_sharing(stream)
        # A look needs no more than to share; to recall would put the other host to a question for each of
        # its own.
        if not of_change and await self._share(stream, directory):
            return True
        self._back_off(directory)
        # All of them at once, as they are given up: what expires together is waited for once.
        if not await self._agrees(stream, partial(RecallNames, shared=False)):
            return False
        leases.theirs.clear()
        return True

    async def free_for_peer(self, directory: InodeNumber, *, of_change: bool) -> None:
        """On return the backup has heard that this host is not in the way of its programs."""
        async with self._deciding:
            stream = self._replica.stream
            if stream is None:
                return
            is_exclusive = directory in self.leases.exclusive
            if is_exclusive and not of_change and await self._share(stream, directory):
                return
            self._back_off(directory)
            if directory in self.leases.shared:
                await self._end_sharing(stream)
            else:
                await self._free_exclusive(stream)

    async def _free_exclusive(self, stream: Stream | None) -> None:
        # First it is so, and then it is said: the backup's program goes on at the word.
        await self.leases.give_up_exclusive()
        if stream is not None:
            with suppress(ConnectionLost):
                stream.send(FreeNames(shared=False))

    async def _end_sharing(self, stream: Stream) -> bool:
        """False if the link was lost meanwhile."""
        answer = self._ask(stream, partial(RecallNames, shared=True))
        await self.leases.give_up_shared()  # both hosts at the same time
        # Over another link both hosts have begun without any lease (`begin_link`), and this one's end is no
        # news there.
        if not await _agreed(answer) or stream is not self._replica.stream:
            return False
        self.leases.end_sharing()
        with suppress(ConnectionLost):
            stream.send(FreeNames(shared=True))
        return True

    async def recall_all(self) -> None:
        """On return neither host's kernel keeps any name, unless the link was lost."""
        async with self._deciding:
            stream = self._replica.stream
            if stream is None:
                return
            # Asked first and waited for last: both hosts' kernels forget at the same time.
            answer = self._ask(stream, partial(RecallNames, shared=False))
            await self._end_sharing(stream)
            await self._free_exclusive(stream)
            if await _agreed(answer):
                self.leases.theirs.clear()

    async def begin_link(self) -> None:
        """On return this host's kernel keeps nothing that the backup would not know of."""
        async with self._deciding:
            # The backup knows of no lease of the time before, so its programs would not wait for one.
            self.leases.forget_link()
            await self.leases.run_out()


async def _agreed(answer: Promise[Reply] | None) -> bool:
    """Whether the backup's answer is no error; False, too, where the link is lost."""
    with suppress(ChannelError):
        return answer is not None and not (await answer.wait()).errno
    return False


class LeaseRequests:
    """The backup's half: it asks, and takes what the primary says in the order of the stream."""

    def __init__(self, leases: DirectoryLeases, communication: CommunicationVolume) -> None:
        self.leases = leases
        self._communication = communication
        self._changed = trio.Event()

    def request(self, forward: Session, directory: InodeNumber) -> None:
        """Ask for a lease of a directory; there may be no answer."""
        with suppress(ConnectionLost):
            forward.send(WantNames(directory))

    async def free(self, forward: Session, directory: InodeNumber, *, of_change: bool) -> None:
        """Return when the primary is not in the way of a program of this host. ConnectionLost."""
        # Asked once; the answer comes by the mirror path, in its place among the changes.
        if self.leases.is_in_the_way(directory, of_change=of_change):
            forward.send(WantBack(directory, of_change))
        while self.leases.is_in_the_way(directory, of_change=of_change):
            await self._changed.wait()

    def link_lost(self) -> None:
        self.leases.forget_link()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _refuses(self, directory: InodeNumber, recent: Recent[InodeNumber]) -> bool:
        return directory in recent or self._is_changing(directory)

    def _is_changing(self, directory: InodeNumber) -> bool:
        """Whether a change of this host may be on its way."""
        # Refusing is always right, and to look through a long queue for each question is not.
        if len(self._communication) > REQUESTS_SEARCHED_MAX:
            return True
        pending = self._communication.pending()
        names = (name for staged in pending for name in staged.operation.touched_names())
        return any(parent == directory for parent, _ in names)

    # --- what the primary says: handlers of the stream ------------------------------------------------------

    def granted(self, message: LendNames, _: Buffer, __: Session) -> None:
        _check_few(self.leases.exclusive)
        self.leases.exclusive.add(message.directory)

    def taken(self, message: HoldNames, _: Buffer, session: Session) -> None:
        directory = message.directory
        # Whoever looked there a moment ago would ask for it back with the next look.
        refused = self._refuses(directory, self.leases.used)
        if not refused:
            _check_few(self.leases.theirs)
            self.leases.theirs.add(directory)
        session.send(Reply(message.token, errno=errno.EBUSY if refused else 0))

    def shared(self, message: ShareNames, _: Buffer, session: Session) -> None:
        directory = message.directory
        refused = self._refuses(directory, self.leases.changed)
        if not refused:
            _check_few(self.leases.shared)
            self.leases.share(directory)
            self._tell()
        session.send(Reply(message.token, errno=errno.EBUSY if refused else 0))

    def recalled(self, message: RecallNames, _: Buffer, session: Session) -> Callable[[], Awaitable[None]]:
        give_up = self.leases.give_up_shared if message.shared else self.leases.give_up_exclusive

        # Beside the stream: what is kept takes its time to expire, and changes must be applied meanwhile.
        async def answer() -> None:
            await give_up()
            with suppress(ConnectionLost):
                session.send(Reply(message.token))

        return answer

    def freed(self, message: FreeNames, _: Buffer, __: Session) -> None:
        if message.shared:
            self.leases.end_sharing()
        else:
            self.leases.theirs.clear()
        self._tell()
