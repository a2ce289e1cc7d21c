"""One filesystem on one host, as simple as can be: what each operation must answer, and what is then there.

Written from the manual pages, not from the product. A state is immutable. `after` gives the state
that an operation leaves, or None where its result cannot be: so a run is right exactly where its
operations can be put into one order in which no `after` is None (`linearizable.py`).
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from fusemirror.change import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from fusemirror.limits import FILE_BYTES_MAX, KIB
from tests.simulation.history import DOUBT, Operation

GONE = frozenset({-errno.ENOENT, -errno.ESTALE})
ROOT_TAG = 0
NOREPLACE, EXCHANGE = 1, 2

State = Any
Model = Callable[[State, Operation], State | None]

ANY = object()
LARGEST_BYTES = FILE_BYTES_MAX + 1 - 4 * KIB
"""What tmpfs holds behind that, it does not find; so the product takes no longer files on it."""


def _judged(
    state: State, operation: Operation, errors: set[int], after: State, value: object
) -> State | None:
    """`errors` are those that may be given; where there are none, the operation succeeds with `value`."""
    result = operation.result
    if result == -errno.EBUSY:  # the other host's reservation
        return state
    if result == DOUBT:
        return state if errors else after
    if result == -errno.ENOSPC:
        return state  # a full disk refuses wholly
    if errors:
        return state if result in errors else None
    return after if value is ANY or result == value else None


# --- one value: a mode, an extended attribute ------------------------------------------------------


def register(state: object, operation: Operation) -> object | None:
    """A value that is set, removed and got; None stands for none."""
    if operation.result in GONE:
        return state
    if operation.name == "set":
        return _judged(state, operation, set(), operation.arguments[0], ANY)
    missing = {-errno.ENODATA} if state == () else set()
    if operation.name == "remove":
        return _judged(state, operation, missing, (), ANY)
    assert operation.name == "get"
    return _judged(state, operation, missing, state, state[0] if isinstance(state, tuple) and state else None)


def swapped(state: bytes, operation: Operation) -> bytes | None:
    """A value that is replaced under a lock; who does it is told which one was there."""
    if operation.result == DOUBT:
        return bytes(operation.arguments[0])
    if isinstance(operation.result, int):  # no lock, or no room
        return state
    return bytes(operation.arguments[0]) if operation.result == state else None


def byte(state: int, operation: Operation) -> int | None:
    """One byte of a file: what no write has reached, or a truncation has cut off, reads as 0."""
    if operation.name == "set":
        return _judged(state, operation, set(), operation.arguments[0], ANY)
    return _judged(state, operation, set(), state, state)


# --- the content of a file ------------------------------------------------------------------------------


class Content(NamedTuple):
    """What a file holds: its pages that are not all zeros, and its size."""

    size: int
    pages: tuple[tuple[int, bytes], ...]


NO_CONTENT = Content(0, ())
_PAGE_BYTES = 1 << 16
_ZEROS = bytes(_PAGE_BYTES)


def content(state: Content, operation: Operation) -> Content | None:
    """Whatever is done to the data of one file. It may have gone, unless it is never unlinked."""
    if operation.result in (-errno.ESTALE, -errno.EOPNOTSUPP):
        return state
    if operation.name == "seek":
        return _seek(state, operation)
    after, value = _CONTENT[operation.name](state, *operation.arguments)
    errors = {-errno.EFBIG} if after.size > LARGEST_BYTES else set()
    if operation.name == "copy" and _copies_too_much(state, *operation.arguments):
        errors.add(-errno.ENODATA)
    return _judged(state, operation, errors, after, value)


def _put(pages: dict[int, bytes], offset: int, data: bytes) -> None:
    while data:
        number, start = divmod(offset, _PAGE_BYTES)
        piece, data = data[: _PAGE_BYTES - start], data[_PAGE_BYTES - start :]
        page = pages.get(number, _ZEROS)
        pages[number] = page[:start] + piece + page[start + len(piece) :]
        offset += len(piece)


def _content(size: int, pages: dict[int, bytes]) -> Content:
    return Content(size, tuple(sorted(each for each in pages.items() if each[1] != _ZEROS)))


def _write(state: Content, offset: int, data: bytes) -> tuple[Content, object]:
    if not data:
        return state, ANY
    pages = dict(state.pages)
    _put(pages, offset, data)
    return _content(max(state.size, offset + len(data)), pages), ANY


def _truncate(state: Content, size: int) -> tuple[Content, object]:
    number, start = divmod(size, _PAGE_BYTES)
    pages = {each: page for each, page in state.pages if each <= number}
    if number in pages:
        pages[number] = pages[number][:start].ljust(_PAGE_BYTES, b"\0")
    return _content(size, pages), ANY


def _read(state: Content, offset: int, length: int) -> tuple[Content, object]:
    end = min(offset + length, state.size)
    if end <= offset:
        return state, b""
    pages = dict(state.pages)
    first, last = offset // _PAGE_BYTES, (end - 1) // _PAGE_BYTES
    found = b"".join(pages.get(number, _ZEROS) for number in range(first, last + 1))
    return state, found[offset - first * _PAGE_BYTES : end - first * _PAGE_BYTES]


def _seek(state: Content, operation: Operation) -> Content | None:
    """Holes may be told of as data, but there is nothing else than zeros in what is told of as a hole."""
    offset, data = operation.arguments
    result = operation.result
    if result == DOUBT:
        return state
    if offset >= state.size or (data and result == -errno.ENXIO):
        return state if result == -errno.ENXIO and _is_zeros(state, offset, state.size) else None
    if not offset <= result <= state.size - data:
        return None
    looked = (offset, result) if data else (result, min(result + 1, state.size))
    return state if _is_zeros(state, *looked) else None


def _is_zeros(state: Content, start: int, end: int) -> bool:
    for number, page in state.pages:
        at = number * _PAGE_BYTES
        if any(page[max(start - at, 0) : max(end - at, 0)]):
            return False
    return True


def _allocate(state: Content, offset: int, end: int, mode: int) -> tuple[Content, object]:
    pages = dict(state.pages)
    if mode & (PUNCH_HOLE | ZERO_RANGE):
        _put(pages, offset, bytes(end - offset))
    size = state.size if mode & KEEP_SIZE else max(state.size, end)
    return _content(
        size, {number: page for number, page in pages.items() if number * _PAGE_BYTES < size}
    ), ANY


def _copy(state: Content, source: int, offset: int, length: int) -> tuple[Content, object]:
    copied = _read(state, source, length)[1]
    assert isinstance(copied, bytes)
    return _write(state, offset, copied.ljust(length, b"\0"))


def _copies_too_much(state: Content, source: int, offset: int, length: int) -> bool:
    return source + length > state.size


_CONTENT: dict[str, Callable[..., tuple[Content, object]]] = {
    "write": _write,
    "allocate": _allocate,
    "copy": _copy,
    "append": lambda state, data: _write(state, state.size, data),
    "truncate": _truncate,
    "read": _read,
    "flush": lambda state: (state, b""),
    "size": lambda state: (state, state.size),
}


# --- a loss of power ------------------------------------------------------------------------------------


class Lossy:
    """A model of what the journal keeps, for hosts that may lose their power.

    A state is what is there, with all that was there since the last flush: the beginnings that may be left.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, state: tuple[State, tuple[State, ...]], operation: Operation) -> State | None:
        now, past = state
        if operation.name == "flush":
            return (now, (now,)) if operation.result == b"" else state
        after = self._model(now, operation)
        if after is None:
            return None
        return (after, past if after in past else (*past, after))


def left_by_loss(state: tuple[State, tuple[State, ...]]) -> list[State]:
    """What may be there after the loss, of a state of `Lossy`."""
    return [(left, (left,)) for left in state[1]]


# --- names --------------------------------------------------------------------------------------------

Names = frozenset[tuple[int, bytes, int]]
"""(directory, name, what it stands for); everything is known by the tag of the operation that created it."""


class Namespace:
    """The names of a filesystem. `directories` holds the tags of all that may ever have been directories."""

    def __init__(self, directories: frozenset[int]) -> None:
        self._directories = directories | {ROOT_TAG}

    def __call__(self, state: Names, operation: Operation) -> Names | None:
        view = _View(state, self._directories)
        errors, after, value = getattr(view, operation.name)(operation, *operation.arguments)
        return _judged(state, operation, errors, after, value)


Outcome = tuple[set[int], Names, object]


class _View:
    """One state, and what each operation does to it."""

    def __init__(self, state: Names, directories: frozenset[int]) -> None:
        self._state = state
        self._names = {(parent, name): tag for parent, name, tag in state}
        self._directories = directories
        self._alive = {tag for _, _, tag in state} | {ROOT_TAG}

    def create(self, operation: Operation, parent: int, name: bytes, _is_directory: bool) -> Outcome:
        errors = self._dead(parent) | self._error(errno.EEXIST, (parent, name) in self._names)
        tag = operation.index
        return errors, self._state | {(parent, name, tag)}, tag

    def link(self, _: Operation, tag: int, parent: int, name: bytes) -> Outcome:
        errors = self._dead(parent) | self._error(errno.EEXIST, (parent, name) in self._names)
        errors |= self._error(errno.EPERM, tag in self._directories)
        if tag not in self._alive:
            errors |= GONE
        return errors, self._state | {(parent, name, tag)}, tag

    def unlink(self, _: Operation, parent: int, name: bytes) -> Outcome:
        tag, errors = self._existing(parent, name)
        errors |= self._error(errno.EISDIR, tag in self._directories)
        return errors, self._without(parent, name), ANY

    def rmdir(self, _: Operation, parent: int, name: bytes) -> Outcome:
        tag, errors = self._existing(parent, name)
        errors |= self._error(errno.ENOTDIR, tag is not None and tag not in self._directories)
        errors |= self._error(errno.ENOTEMPTY, self._children(tag) > 0)
        return errors, self._without(parent, name), ANY

    def rename(
        self, _: Operation, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> Outcome:
        moved, errors = self._existing(parent, name)
        errors |= self._dead(new_parent) | self._error(errno.EINVAL, self._within(new_parent, moved))
        target = self._names.get((new_parent, new_name))
        if flags == EXCHANGE:
            if target is None:
                errors |= GONE
            errors |= self._error(errno.EINVAL, self._within(parent, target))
        elif target is not None and flags == NOREPLACE:
            errors |= {-errno.EEXIST}
        elif target is not None and target != moved:
            errors |= self._replacing(moved, target)
        if errors or target == moved:
            return errors, self._state, ANY
        assert moved is not None
        names = {**self._names, (new_parent, new_name): moved}
        if flags == EXCHANGE and target is not None:
            names[parent, name] = target
        else:
            del names[parent, name]
        return errors, frozenset((*where, tag) for where, tag in names.items()), ANY

    def _replacing(self, moved: int | None, target: int) -> set[int]:
        if target in self._directories:
            return self._error(errno.EISDIR, moved not in self._directories) | self._error(
                errno.ENOTEMPTY, self._children(target) > 0
            )
        return self._error(errno.ENOTDIR, moved in self._directories)

    def lookup(self, _: Operation, parent: int, name: bytes) -> Outcome:
        tag, errors = self._existing(parent, name)
        return errors, self._state, tag

    def listing(self, operation: Operation, parent: int) -> Outcome:
        listed = frozenset((name, tag) for directory, name, tag in self._state if directory == parent)
        if operation.result in GONE and parent not in self._alive:
            return set(GONE), self._state, ANY
        return set(), self._state, listed

    def nlink(self, operation: Operation, tag: int) -> Outcome:
        if tag in self._directories:
            inside = [other for parent, _, other in self._state if parent == tag]
            count = 2 + len(self._directories.intersection(inside)) if tag in self._alive else 0
        else:
            count = sum(1 for _, _, other in self._state if other == tag)
        errors = set(GONE) if not count and operation.result in GONE else set()
        return errors, self._state, count

    # --- parts ----------------------------------------------------------------------------------------

    def _error(self, number: int, applies: bool) -> set[int]:
        return {-number} if applies else set()

    def _dead(self, directory: int) -> set[int]:
        return set() if directory in self._alive else set(GONE)

    def _existing(self, parent: int, name: bytes) -> tuple[int | None, set[int]]:
        tag = self._names.get((parent, name))
        return tag, set(GONE) if tag is None else set()

    def _children(self, tag: int | None) -> int:
        return sum(1 for parent, _, _ in self._state if parent == tag)

    def _without(self, parent: int, name: bytes) -> Names:
        return self._state - {(parent, name, self._names.get((parent, name), -1))}

    def _within(self, directory: int, ancestor: int | None) -> bool:
        """Whether `directory` is `ancestor` or stands below it."""
        if ancestor is None or ancestor not in self._directories:
            return False
        parents = {tag: parent for parent, _, tag in self._state if tag in self._directories}
        step: int | None = directory
        while step is not None:
            if step == ancestor:
                return True
            step = parents.get(step)
        return False
