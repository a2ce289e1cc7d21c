"""One small filesystem on one host: a flat directory of a few names, which moves, and files of whole blocks.

Written from the manual pages, not from the product. A directory and each file are independent
objects, because a name leads to an inode number, inode numbers are never given twice, and what is in a
file is asked through a descriptor, whatever becomes of its name. So a history falls into one part
about names and one per file, and each is checked for itself.

Names: create, open_or_create, unlink, rename, lookup. Files, by inode number: write, append,
truncate, read, read_block, page_block, size; counted in blocks, a block stands for the unique tag that
fills it. `page_block` is one that went by the pages of a kernel.
"""

import errno
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tests.linearizability.checker import Model, Undecided, Violation, check
from tests.linearizability.history import Operation

READ_BLOCKS = 16
"""How much a `read` asks for."""

READS = frozenset({"read", "read_block", "page_block"})
LOOKS_AT_CONTENT = READS | {"size"}
OBSERVERS = LOOKS_AT_CONTENT | {"lookup"}

LATE_NS = 1_000_000_000
"""For so long after a change of the other host a kernel may still hear of it: half a second (fusemirror(7)),
and as much for a machine that is busy with tests."""

HOLE = 0
UNSEEN = -1
"""The inode number of a file that nobody has looked at yet, and whoever created it was not told."""

Blocks = tuple[int, ...]


class File:
    """The content of one file."""

    initial: Blocks = ()

    def observes(self, operation: Operation) -> bool:
        return operation.call in OBSERVERS

    def steps(self, state: Blocks, operation: Operation) -> Iterator[Blocks]:
        after, result = _FILE_CALLS[operation.call](state, *operation.arguments[1:])
        if operation.returned is None or (operation.error == 0 and operation.result == result):
            yield after

    def forget(self, state: Blocks, _since: int, _now: int) -> Blocks:
        return state


def _write(state: Blocks, block: int, tag: int) -> tuple[Blocks, None]:
    before = state[:block] + (HOLE,) * (block - len(state))
    return (*before, tag, *state[block + 1 :]), None


def _read_block(state: Blocks, block: int) -> tuple[Blocks, int | None]:
    return state, state[block] if block < len(state) else None


_FILE_CALLS: dict[str, Callable[..., tuple[Blocks, Any]]] = {
    "write": _write,
    "append": lambda state, tag: ((*state, tag), None),
    "truncate": lambda state, size: (state[:size] + (HOLE,) * (size - len(state)), None),
    "read": lambda state: (state, state[:READ_BLOCKS]),
    "read_block": _read_block,
    "page_block": _read_block,
    "size": lambda state: (state, len(state)),
}


class Entry(NamedTuple):
    """What a name stands for."""

    inode: int
    trail: tuple[tuple[str, float], ...] = ()
    """The names it had before, each with the time by which the rename away from it had returned."""


TRAIL_MAX = 4

Directory = tuple[frozenset[tuple[str, Entry]], frozenset[int]]
"""The names, and those of `Names.unclaimed` that were given already."""


class Names:
    """The directory. `history` is all that will be asked about names."""

    initial: Directory = (frozenset(), frozenset())

    def __init__(self, history: Sequence[Operation]) -> None:
        seen = {each.result for each in history if isinstance(each.result, int)}
        created = Counter(each.result for each in history if each.call == "create")
        self._twice = frozenset(inode for inode, count in created.items() if inode and count > 1)
        # Whoever created these was not told that it did.
        self.unclaimed: frozenset[int] = frozenset(seen - created.keys())
        self._last_seen: dict[int, int] = {}
        for each in history:
            if isinstance(each.result, int):
                self._last_seen[each.result] = max(each.returned or 0, self._last_seen.get(each.result, 0))

    def observes(self, operation: Operation) -> bool:
        return operation.call in OBSERVERS or operation.error != 0

    def steps(self, state: Directory, operation: Operation) -> Iterator[Directory]:
        call: Callable[..., Iterator[Directory]] = getattr(self, f"_{operation.call}")
        return call(state, operation, *operation.arguments)

    def forget(self, state: Directory, since: int, now: int) -> Directory:
        names, given = state
        names = frozenset((name, _forget(entry, since, now)) for name, entry in names)
        return names, frozenset(inode for inode in given if self._last_seen[inode] >= since)

    def _lookup(self, state: Directory, operation: Operation, name: str) -> Iterator[Directory]:
        entry = _entry(state, name)
        if operation.error:
            if entry is None and operation.error == errno.ENOENT:
                yield state
        elif entry is not None:
            yield from self._seen(state, operation, name, entry)

    def _seen(self, state: Directory, operation: Operation, name: str, entry: Entry) -> Iterator[Directory]:
        """The name stands for `entry`; if nobody saw its inode number before, this is it."""
        names, given = state
        if operation.result in (entry.inode, None):
            yield state
        elif entry.inode == UNSEEN and operation.result in self.unclaimed and operation.result not in given:
            known = entry._replace(inode=operation.result)
            yield names - {(name, entry)} | {(name, known)}, given | {operation.result}

    def _create(self, state: Directory, operation: Operation, name: str) -> Iterator[Directory]:
        entry = _entry(state, name)
        if operation.error:
            if entry is not None and operation.error == errno.EEXIST:
                yield state
        elif entry is None:
            yield from self._created(state, operation, name)

    def _open_or_create(self, state: Directory, operation: Operation, name: str) -> Iterator[Directory]:
        entry = _entry(state, name)
        if operation.error:
            return
        if entry is None:
            yield from self._created(state, operation, name)
        else:
            yield from self._seen(state, operation, name, entry)

    def _created(self, state: Directory, operation: Operation, name: str) -> Iterator[Directory]:
        names, given = state
        if operation.result in self._twice:
            return
        if operation.result is None:
            yield names | {(name, Entry(UNSEEN))}, given
        elif operation.call == "create":
            yield names | {(name, Entry(operation.result))}, given
        elif operation.result in self.unclaimed and operation.result not in given:
            yield names | {(name, Entry(operation.result))}, given | {operation.result}

    def _unlink(self, state: Directory, operation: Operation, name: str) -> Iterator[Directory]:
        entry = _entry(state, name)
        if operation.error:
            if entry is None and operation.error == errno.ENOENT:
                yield state
        elif entry is not None:
            yield state[0] - {(name, entry)}, state[1]

    def _rename(self, state: Directory, operation: Operation, name: str, new: str) -> Iterator[Directory]:
        names, given = state
        entry, replaced = _entry(state, name), _entry(state, new)
        if operation.error:
            if entry is None and operation.error == errno.ENOENT:
                yield state
            return
        if entry is not None:
            end = float("inf") if operation.returned is None else operation.returned
            moved = Entry(entry.inode, (*entry.trail, (name, end))[-TRAIL_MAX:])
            yield names - {(name, entry), (new, replaced)} | {(new, moved)}, given
        if replaced is not None and _was_just(replaced, name, operation):
            yield state


def _was_just(entry: Entry, name: str, operation: Operation) -> bool:
    """Whether it may have had this name when the operation had begun.

    The kernel looks up the old name, then the new one. Where the other host renames the one to the other
    in between, both lead to the same inode, and between two names of one file rename(2) does nothing
    and succeeds: the filesystem is not asked. Every filesystem of several hosts has this.
    """
    return any(former == name and end >= operation.invoked for former, end in entry.trail)


def _forget(entry: Entry, since: int, now: int) -> Entry:
    trail = ((name, min(end, now)) for name, end in entry.trail)
    return entry._replace(trail=tuple((name, end) for name, end in trail if end >= since))


def _entry(state: Directory, name: str) -> Entry | None:
    return next((entry for other, entry in state[0] if other == name), None)


# --- a whole history ----------------------------------------------------------------------------------

NAME_CALLS = frozenset({"create", "lookup", "open_or_create", "rename", "unlink"})


def parts(history: Iterable[Operation]) -> dict[Hashable, tuple[Model, list[Operation]]]:
    """The independent parts, by what they are about: "names", "places", or an inode number.

    A place is where the directory of all those names may be.
    """
    found: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        found[_part(operation)].append(operation)
    return {
        key: (Names(part), part) if isinstance(key, str) else (File(), judged(part))
        for key, part in found.items()
    }


def _part(operation: Operation) -> Hashable:
    subject: Hashable = operation.arguments[0]
    if operation.call in NAME_CALLS:
        return "places" if "/" in str(subject) else "names"
    return subject


def judged(operations: Sequence[Operation]) -> list[Operation]:
    """Those of one file's that must fit an order: all but what fusemirror(7) leaves open.

    What went by the pages of a kernel may be late: it is as if it had begun so much earlier. And a read
    beside a truncation may show zeros for what is cut off, because the kernel fills up an answer that is
    shorter than the file was when it asked. So may one beside a change that follows: that makes the kernel
    throw away the answer about the size that it waits for, and go by the one that it knew.
    """
    changes = [each for each in operations if each.call not in OBSERVERS and not each.error]
    cuts = [each for each in changes if each.call == "truncate"]
    return [
        replace(each, invoked=each.invoked - LATE_NS) if each.call == "page_block" else each
        for each in operations
        if not any(_may_show_zeros(each, cut, changes, operations) for cut in cuts)
    ]


def _may_show_zeros(
    read: Operation, cut: Operation, changes: Sequence[Operation], operations: Sequence[Operation]
) -> bool:
    if read.call not in READS or read.error or read.returned is None or read.returned < cut.invoked:
        return False
    size = cut.arguments[1]
    if read.call == "read":
        if HOLE not in read.result[size:]:
            return False
    elif read.arguments[1] < size or read.result != HOLE:
        return False
    if _is_beside(read, cut, 0):
        return True
    since = [each for each in changes if each is cut or each.returned is None or each.returned > cut.invoked]
    return any(_is_beside(read, change, LATE_NS) for change in since) and not any(
        _asked_at_rest(each, read, cut, changes) for each in operations
    )


def _asked_at_rest(ask: Operation, read: Operation, cut: Operation, changes: Sequence[Operation]) -> bool:
    """Whether the kernel of who reads knew from then on what was cut off."""
    return (
        ask.call == "size"
        and _host(ask) == _host(read)
        and cut.returned is not None
        and ask.returned is not None
        and cut.returned < ask.invoked
        and ask.returned < read.invoked
        and not any(_is_beside(ask, change, LATE_NS) for change in changes)
    )


def _is_beside(look: Operation, change: Operation, late_ns: int) -> bool:
    """Whether a change was under way meanwhile, or had returned no longer before."""
    assert look.returned is not None
    ended_before = change.returned is not None and change.returned + late_ns < look.invoked
    return not ended_before and change.invoked <= look.returned


def _host(operation: Operation) -> str:
    return operation.process.partition("-")[0]


def violations(history: Sequence[Operation]) -> dict[Hashable, Violation | Undecided]:
    """The parts that are not linearizable, or could not be judged; empty for a history that is right."""
    found: dict[Hashable, Violation | Undecided] = {}
    for key, (model, operations) in parts(history).items():
        try:
            violation = check(operations, model)
        except Undecided as undecided:
            found[key] = undecided
        else:
            if violation is not None:
                found[key] = violation
    return found
