"""The quorum grant, to go on alone: the rule by which two hosts and a witness never make two primaries.

The witness keeps one record for the filesystem: the host that may go on without the other, or nobody. Every
change of it is a compare-and-swap on its revision. With a witness configured, on both hosts:

1. A host acknowledges changes without the other only while it *holds* the record: it has itself written its
   name there, and has not begun to give it back since. So a primary that lost its backup asks first, once the
   backup's lease to read is over. A backup that lost its primary asks after twice `peer_timeout`, so that a
   primary that can ask is first, and becomes the primary if it gets the record and its copy is whole.
2. A record is written by a host only where it names nobody, or that host.
3. The holder gives it back (writes nobody) only where the mirror state is normal. It gives up what it holds
   in its own memory before the word leaves.
4. A record counts only in the witness that both hosts went by when they met last: each notes which one that
   is, by what it says of itself, and hosts that go by two refuse each other.
5. A primary that has no backup bound to it and does not hold the record shows nothing to its programs either:
   they wait, and get a check report. Its backup is bound to it for as long as a lease says: as that by which
   the backup reads, but given by the backup, with each heartbeat that it answers. A backup that takes over
   changes nothing before every lease that it gave is over.

Why there are never two. By 1 both would have to hold the record. Of two swaps on one revision one fails; and
by 2 and 3 the other can write its name only after this host gave the record back, which takes its own memory
of it first. A swap that was delayed, by the network or a dead process, changes nothing once another has: each
swap makes a new revision, also that by which a holder asks anew, and nothing is ever deleted.

Why nothing acknowledged is lost. If the record names nobody, everything acknowledged is in both copies: that
is so in the mirror state normal, and nothing is acknowledged by one host alone until it is named. If it names
a host, that host has everything acknowledged: nobody else may acknowledge alone.

Why the record has no lease of its own. It would lapse when its holder dies, or loses the witness, after it
has acknowledged changes alone; and the other host, which has none of them, would win. So the record stays,
and the rule above needs no clock but for 5. The price: where the holder is lost, a person decides
(`takeover --force`), as one must who goes on without changes that were acknowledged.

Why a host that was lost before it acknowledged anything keeps the record too. A second word in it, written
before the first acknowledgement or look alone, would let the other host have a record without that word,
soundly and without a clock. But who gets the record acknowledges at once what waits in its programs: the
second word would follow the first by one exchange with the witness, help only a host that is lost within
that, and make every time alone begin later by as much.

The witness itself must not forget: etcd says so only after a majority of its members has a change on disk.
Sources: etcd's transactions (etcd.io, "API guarantees"); the fencing of DRBD's quorum; design.md G1, G2.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from fusemirror.errors import WitnessUnreachable
from fusemirror.witness.interface import Witness, WitnessRecord

log = logging.getLogger(__name__)


class QuorumGrant:
    """Whether this host may go on alone. Without a witness it always may."""

    def __init__(self, witness: Witness | None = None, host: str = "", timeout_s: float = 0.0) -> None:
        self._witness = witness
        self._host = host
        self._timeout_s = timeout_s
        self._lock = trio.Lock()
        self._holder: str | None = None  # as the witness said last
        self.agreed = ""
        """Which witness both hosts went by when they met last: its identity, or empty where none was told."""
        self._unreachable: str | None = None
        self.held = False
        """The record names this host, which wrote it and has not begun to give it back."""
        self.overridden = False
        """A person has said that this host goes on, whatever the witness says, until the mirror state is
        normal again."""

    @property
    def identity(self) -> str:
        """Of the witness, as it was found last; empty where there is none, or it is not known."""
        return "" if self._witness is None else self._witness.identity

    @property
    def _is_another(self) -> bool:
        """The witness is not the one that the other host goes by, so its word is worth nothing."""
        return self.agreed != "" and self.identity not in ("", self.agreed)

    @property
    def needed(self) -> bool:
        return self._witness is not None

    @property
    def granted(self) -> bool:
        """This host may acknowledge changes alone."""
        # By own memory alone, and never by what the record said last: rule 1.
        return self._witness is None or self.held or self.overridden

    async def ask(self, *, seize: bool = False) -> bool:
        """Write this host's name; whether it holds the record now. `seize`: also where the other does.

        Within the timeout. Cancelled, this host does not hold it, and the record may name it all the same.
        """
        async with self._lock:
            with self._asking() as witness:
                record = self._seen(await witness.look())
                # Rule 2. A person who seizes says that the other host is lost for good.
                if (record.holder not in ("", self._host) or self._is_another) and not seize:
                    return False
                # Also where it names this host already: an earlier process may have been about to give it
                # back.
                if await witness.swap(self._host, record.revision):
                    self._seen(WitnessRecord(self._host, record.revision))
                    self.held = True
                    log.info("the witness says: this host may go on alone")
                    return True
        return False

    async def move(self, witness: Witness) -> bool:
        """Go by the record of `witness` from now on; True where this host holds both, so that nobody who
        goes by the one before gets that. False, and nothing is moved, where it does not.

        For a host that goes on alone, and whose next peer goes by the new one.
        """
        if not self.overridden and not await self.ask(seize=True):
            return False
        # The old record stays held: whoever goes by that gets no answer but "held".
        before, holder, held = self._witness, self._holder, self.held
        self._witness, self._holder, self.held = witness, None, False
        if await self.ask() or self.overridden:
            return True
        self._witness, self._holder, self.held = before, holder, held
        return False

    async def give_back(self, may: Callable[[], bool]) -> None:
        """See what the record says; where it names this host, and `may` says so, name nobody."""
        async with self._lock:
            with self._asking() as witness:
                record = self._seen(await witness.look())
                if not may():
                    return
                # Rule 3: given up here before the word leaves. A word that is lost then costs one more
                # question.
                self.held = False
                if record.holder == self._host and await witness.swap("", record.revision):
                    self._seen(WitnessRecord("", record.revision))
                    log.info("the witness says: either host may go on alone")

    @contextmanager
    def _asking(self) -> Iterator[Witness]:
        """What is asked inside ends with the timeout, and with the first question that has no answer."""
        assert self._witness is not None, "only who needs a grant asks for it"
        with trio.move_on_after(self._timeout_s) as limit:
            try:
                yield self._witness
            # No second try in here: whoever asks does so again in a moment, and something else may be known
            # by then.
            except WitnessUnreachable as error:
                self._lost(str(error.args[0]))
        if limit.cancelled_caught:
            self._lost(f"no answer within {self._timeout_s:g} s")

    def _lost(self, why: str) -> None:
        if self._unreachable is None:
            log.warning("%s", WitnessUnreachable(why))
        self._unreachable = why

    def _seen(self, record: WitnessRecord) -> WitnessRecord:
        if self._unreachable is not None:
            log.info("the witness is there again")
        self._unreachable = None
        self._holder = record.holder
        return record

    @property
    def state(self) -> str:
        if self._unreachable is not None:
            return "unreachable"
        if self._holder is None:
            return "unknown"
        if not self._holder:
            return "free"
        return "held here" if self._holder == self._host else "held by the peer"

    @property
    def reason(self) -> str | None:
        """Why this host may not go on alone, for people; None where it may, or nothing speaks against it."""
        if self.granted:
            return None
        if self._unreachable is not None:
            return f"the witness cannot be asked: {self._unreachable}"
        if self._is_another:
            return (
                "the witness is not the one that both hosts went by when they met last; set `witness` so "
                "that both reach the same one"
            )
        if self.state == "held by the peer":
            return "the witness says that the other host goes on without this one"
        return None

    def status(self) -> dict[str, Any] | None:
        """The field `witness` of the status; None where there is none."""
        return {"state": self.state, "reason": self.reason or self._unreachable} if self.needed else None
