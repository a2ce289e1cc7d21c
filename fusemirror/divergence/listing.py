"""What this host changed since the fork point: its journal and its marked regions tell.

The journal has every change of a name and of attributes, the changed-region map the images that this
host's programs wrote to. What a name stood for at the fork point is known from the first record that
touches it, whose rows are those that its operation decided. Nothing is compared here: a file that both
hosts changed alike is listed too, and one whose last change the other host has is not.
"""

import logging
from enum import StrEnum

import trio

from fusemirror.change import AnyChange, NamespaceChange, Table, decode_change
from fusemirror.identifiers import ChangeNumber, InodeNumber, NameKey
from fusemirror.limits import (
    DIFFERENCE_PATH_BYTES_MAX,
    DIFFERENCES_TOLD_BYTES_MAX,
    DIFFERENCES_TOLD_MAX,
    DIVERGENT_KNOWN_MAX,
)
from fusemirror.mirror.histories import generations_of
from fusemirror.pieces import first_piece
from fusemirror.printable import shortened
from fusemirror.protocol.messages import Difference, History
from fusemirror.volume.entries import key_inode, unpack_entry
from fusemirror.volume.inode import Inode
from fusemirror.volume.paths import Tree, name_of
from fusemirror.volume.rows import SET_BACK_KEY
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

_PER_TURN = 256  # records, rows or names between two checkpoints: about a millisecond
_BEFORE_FORK = 10_000  # changes among which the last record before the fork point is looked for


class Kind(StrEnum):
    """What happened to a name, or to what it stands for."""

    CREATED = "created"
    CONTENT = "content"
    ATTRIBUTES = "attributes"
    RENAMED = "renamed"
    DELETED = "deleted"


# By whether content changed, and attributes. Shared by all files, of which there may be very many.
_ALTERED: dict[tuple[bool, bool], frozenset[Kind]] = {
    (False, False): frozenset(),
    (False, True): frozenset({Kind.ATTRIBUTES}),
    (True, False): frozenset({Kind.CONTENT}),
    (True, True): frozenset({Kind.CONTENT, Kind.ATTRIBUTES}),
}


def fork_point(volume: Volume, theirs: History | None) -> ChangeNumber:
    """The first change of this volume that the other does not have, as far as the two histories tell.

    Where this host began a line of its own later than the other did, that is where the other began: what
    was under way then was acknowledged here alone.
    """
    ours = generations_of(volume)
    known = {generation.identity for generation in theirs.generations} if theirs is not None else set()
    shared = next((generation.identity for generation in ours if generation.identity in known), None)
    # The other host may lack all of it. Too much in quarantine costs room, too little a version (G6).
    if theirs is None or shared is None:
        return ChangeNumber(1)
    first = volume.number + 1
    # Either host may have gone on first, and what the one had from then on the other lacks.
    for generations in (ours, theirs.generations):
        for generation in generations:
            if generation.identity == shared:
                break
            first = min(first, generation.first_change)
    return ChangeNumber(first)


class DivergentChanges:
    """The changes of this host's volume from `first` on; `scan` takes in what has come since."""

    def __init__(self, volume: Volume, first: ChangeNumber) -> None:
        self.first = first
        self.whole = volume.journal.first_number <= first
        """All of them are known: the journal reached back to the fork point, and there were not too many."""
        self._volume = volume
        self._scanned = ChangeNumber(first - 1)
        self._lock = trio.Lock()
        self._known_ns = -1
        self._content: set[InodeNumber] = set()
        self._attributes: set[InodeNumber] = set()
        self._created: set[InodeNumber] = set()
        self._names: dict[NameKey, InodeNumber | None] = {}
        """What each name that was touched stood for at the fork point."""
        self._counted: tuple[tuple[int, ...], int] | None = None
        self.looked_up = 0
        """How much the last `count` asked the catalog for, to pace the next one by."""

    # --- what the journal tells ---------------------------------------------------------------------------

    def _last_time_before(self) -> int:
        """Whatever this volume changed at this time or earlier, the other has. 0 where that is not known."""
        last = None
        for number, payload in self._volume.journal.records(max(0, self._scanned - _BEFORE_FORK)):
            if number > self._scanned:
                break
            last = payload
        return 0 if last is None else decode_change(last).time_ns

    async def scan(self) -> None:
        """Take in what came into the journal since. Cancelled, it goes on at the next call."""
        async with self._lock:
            if self._volume.journal.first_number > self._scanned + 1:
                self.whole = False  # it was trimmed meanwhile
            try:
                if self._known_ns < 0:
                    self._known_ns = self._last_time_before()
                await self._scan()
            except OSError as error:  # also where it is trimmed now
                log.info("the divergent changes are not all known: %s", error)
                self.whole = False

    async def _scan(self) -> None:
        for index, (number, payload) in enumerate(self._volume.journal.records(self._scanned)):
            if len(self._names) + len(self._attributes) + len(self._content) > DIVERGENT_KNOWN_MAX:
                self.whole = False
                return
            self._take(decode_change(payload))
            self._scanned = number
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    def _take(self, change: AnyChange) -> None:
        if any(key == SET_BACK_KEY for table, key, _ in change.rows if table == Table.META):
            self._known_ns = 0  # times of before say nothing any more
        if not isinstance(change, NamespaceChange):
            self._content.add(change.inode)
            return
        entries = [(name_of(key), value) for table, key, value in change.rows if table == Table.ENTRIES]
        puts = [(name, unpack_entry(value).inode) for name, value in entries if value is not None]
        removed = [name for name, value in entries if value is None]
        inodes = {key_inode(key): value for table, key, value in change.rows if table == Table.INODES}
        if not entries:
            # Of an inode that was purged nothing is left to be listed.
            self._attributes.update(number for number, row in inodes.items() if row is not None)
        elif len(puts) == 2:  # an exchange
            (one, in_one), (other, in_other) = puts
            self._touch(one, in_other)
            self._touch(other, in_one)
        elif removed:
            self._touch(removed[0], change.inode)
            for name, inode in puts:  # of a rename, which may replace a file
                parents = {name[0], removed[0][0]}
                self._touch(name, next((each for each in inodes if each not in {inode, *parents}), None))
        else:
            for name, number in puts:
                self._touch(name, None)
                row = inodes.get(number)
                if row is not None and _is_new(Inode.unpack(number, row)):
                    self._created.add(number)

    def _touch(self, name: NameKey, before: InodeNumber | None) -> None:
        self._names.setdefault(name, before)

    # --- what stands now ----------------------------------------------------------------------------------

    def _now(self, name: NameKey) -> InodeNumber | None:
        entry = self._volume.catalog.entry(*name)
        return None if entry is None else entry.inode

    async def _by_name(
        self,
    ) -> tuple[dict[NameKey, set[Kind]], dict[NameKey, NameKey], dict[NameKey, InodeNumber | None]]:
        """Names that stand for something else now, with what happened; the old name of each new one; and what
        each name that was touched stands for now."""
        kinds: dict[NameKey, set[Kind]] = {}
        lost: dict[InodeNumber, list[NameKey]] = {}
        was: dict[NameKey, NameKey] = {}
        now: dict[NameKey, InodeNumber | None] = {}
        for index, (name, before) in enumerate(list(self._names.items())):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            now[name] = self._now(name)
            if before is not None and now[name] != before:
                lost.setdefault(before, []).append(name)
        for index, (name, inode) in enumerate(now.items()):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            before = self._names[name]
            if inode is None or inode == before:
                continue
            kinds[name] = set() if before is None else {Kind.CONTENT}
            if inode not in self._created and lost.get(inode):
                was[name] = lost[inode].pop()
                kinds[name].add(Kind.RENAMED)
            elif before is None:
                kinds[name].add(Kind.CREATED)
        for names in lost.values():
            kinds.update({name: {Kind.DELETED} for name in names if now[name] is None})
        return kinds, was, now

    async def _altered(self) -> dict[InodeNumber, frozenset[Kind]]:
        """Inodes that existed before and have a name now, with what happened to them."""
        marked = self._volume.regions.inodes()
        found: dict[InodeNumber, frozenset[Kind]] = {}
        for index, number in enumerate((self._content | self._attributes | marked) - self._created):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            inode = self._volume.catalog.inode(number)
            if inode is None or not inode.nlink:
                continue
            written = number in self._content or (number in marked and self._is_written(inode))
            if kinds := _ALTERED[written, number in self._attributes]:
                found[number] = kinds
        return found

    def _is_written(self, inode: Inode) -> bool:
        """Whether a file that is marked was written to since, but for what the other is known to have."""
        # A write sets both times; a program may set the first back, which is a change of attributes.
        changed_ns = inode.ctime_ns if inode.number in self._attributes else inode.mtime_ns
        return changed_ns > self._known_ns

    async def count(self) -> int:
        """How many files and names there are to list; one with several names may be listed more often."""
        await self.scan()
        self.looked_up = 0
        # A file that was marked before the fork point is written to without a record, and without a mark that
        # is new. But nothing changes here without a number.
        known = self._volume.number, self._scanned, self._known_ns
        if self._counted is None or self._counted[0] != known:
            self.looked_up = len(self._names) + len(self._volume.regions.inodes())
            self._counted = known, await self._count()
        return self._counted[1]

    async def _count(self) -> int:
        kinds, _, now = await self._by_name()
        named = {now[name] for name in kinds}
        return len(kinds) + sum(number not in named for number in await self._altered())

    async def differences(self) -> list[Difference]:
        """What was changed, by path, as far as it is told."""
        return (await self.told())[0]

    async def told(self) -> tuple[list[Difference], int]:
        """The first of what was changed, by path, as much as an answer holds; and how much that is in all."""
        await self.scan()
        kinds, was, _ = await self._by_name()
        altered = await self._altered()
        tree = Tree(self._volume)
        await tree.walk(set(altered))
        for number, more in altered.items():
            for name in tree.names.get(number, ()):
                kinds.setdefault(name, set()).update(more)
        then = {before: name for name, before in self._names.items() if before is not None}
        listed: list[Difference] = []
        count = 0
        for index, (name, happened) in enumerate(kinds.items()):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            path = tree.path(name, then if Kind.DELETED in happened else {}, DIFFERENCE_PATH_BYTES_MAX)
            old = tree.path(was[name], then, DIFFERENCE_PATH_BYTES_MAX) if name in was else []
            listed.append(self._difference(name, happened, path, old))
            count += 1
            if len(listed) >= 2 * DIFFERENCES_TOLD_MAX:
                listed = _first(listed)
        return _first(listed), count

    def _difference(self, name: NameKey, kinds: set[Kind], path: list[bytes], old: list[bytes]) -> Difference:
        number = self._now(name)
        inode = None if number is None else self._volume.catalog.inode(number)
        return Difference(
            path=_shown(path),
            kinds=tuple(kind.value for kind in Kind if kind in kinds),
            was=_shown(old) if old else b"",
            size=inode.size if inode is not None and not inode.is_directory else 0,
            mtime_ns=inode.mtime_ns if inode is not None else 0,
        )

    async def _inodes(self) -> set[InodeNumber] | None:
        """None where it may be anything. More than what is listed: only the contents tell what differs."""
        await self.scan()
        if not self.whole:
            return None
        kinds, _, now = await self._by_name()
        named: set[InodeNumber] = set()
        for index, name in enumerate(kinds):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            inode = now[name]
            if inode is not None and self._is_file(inode):
                named.add(inode)
        return named | self._content | self._attributes | self._created | self._volume.regions.inodes()

    async def files(self) -> dict[InodeNumber, list[list[bytes]]]:
        """What this host must keep where it gives way: inodes, and their paths."""
        tree = Tree(self._volume)
        await tree.walk(await self._inodes())
        found: dict[InodeNumber, list[list[bytes]]] = {}
        for index, (number, names) in enumerate(tree.names.items()):
            if index % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            paths = [tree.path(name, {}) for name in names]
            if kept := [path for path in paths if path[0]]:
                found[number] = kept
        return found

    def _is_file(self, number: InodeNumber) -> bool:
        inode = self._volume.catalog.inode(number)
        return inode is not None and not inode.is_directory


def _is_new(inode: Inode) -> bool:
    """Of an inode that got a name without losing one: whether it is the first."""
    return inode.is_directory or inode.nlink == 1


def _shown(path: list[bytes]) -> bytes:
    """The path from the root; only the end of one that is too long."""
    return shortened(b"/" + b"/".join(path), DIFFERENCE_PATH_BYTES_MAX)


def bytes_of(difference: Difference) -> int:
    """Of its paths, which are what is long of it."""
    return len(difference.path) + len(difference.was)


def _first(differences: list[Difference]) -> list[Difference]:
    by_path = sorted(differences, key=lambda difference: difference.path)
    return first_piece(by_path, bytes_of, DIFFERENCES_TOLD_BYTES_MAX, DIFFERENCES_TOLD_MAX)
