"""Can operations that overlapped be put into one order that explains every answer?

The order must keep real time: what ended before another began stands before it. An operation in
doubt may stand anywhere after its beginning, or nowhere. Between two hosts real time counts from when
an operation must be `seen` on the other: so the same search judges asynchronous acknowledgement.
Source: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of Lowe (2017).
"""

import errno
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from tests.simulation.history import DOUBT, Operation, short
from tests.simulation.model import Model, State, left_by_loss

_STATES_MAX = 20_000


class NotLinearizable(AssertionError):
    """No order explains what the programs were told."""


class TooHard(Exception):
    """Neither an order nor a proof that there is none was found within the bound."""


def check(operations: list[Operation], model: Model, initial: State) -> int:
    """How many states were visited; `NotLinearizable` with the longest explained beginning, `TooHard`."""
    return sum(_Search(each, model).run(initial) for each in _readings(operations))


def _readings(operations: list[Operation]) -> list[list[Operation]]:
    """What must be explained, each by itself.

    While a call that changes a name is under way, link counts may be ahead of a name that the kernel of its
    host keeps (fusemirror(7)), as on a local disk. So names are explained without what tells of link counts;
    and with that where such a look at a name may have been as early as that call.
    """
    if all(each.shows_from is None for each in operations):
        return [operations]
    names = [each for each in operations if not _tells_link_count(each)]
    with_counts = [
        each if each.shows_from is None else replace(each, began=min(each.began, each.shows_from))
        for each in operations
    ]
    return [names, with_counts]


def _tells_link_count(operation: Operation) -> bool:
    """A link that found no inode, or no directory, was told that its last name is gone."""
    return operation.name == "nlink" or (operation.name == "link" and operation.result == -errno.ENOENT)


class _Search:
    def __init__(self, operations: list[Operation], model: Model) -> None:
        answered = [each for each in operations if each.ended is not None]
        answered.sort(key=lambda each: each.ended or 0)
        # Those in doubt come last, so that they are tried where nothing else explains what was seen.
        self._operations = answered + [each for each in operations if each.ended is None]
        self._answered_count = len(answered)
        self._answered = (1 << len(answered)) - 1
        # The earliest beginning of the answered operations from each place on.
        self._earliest_from = list(accumulate((each.began for each in reversed(answered)), min))[::-1]
        self._strict = all(each.seen == each.ended for each in answered)
        self._model = model
        self._seen: set[tuple[int, int]] = set()
        self._furthest = (0, 0, None)

    def run(self, initial: State) -> int:
        stack = [self._choices(0, initial)]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                continue
            done, state = self._settle(*following)
            if done & self._answered == self._answered:
                return len(self._seen)
            if (done, hash(state)) not in self._seen:
                self._seen.add((done, hash(state)))  # a state may be large
                if len(self._seen) > _STATES_MAX:
                    raise TooHard(self._explanation())
                stack.append(self._choices(done, state))
        raise NotLinearizable(self._explanation())

    def _settle(self, done: int, state: State) -> tuple[int, State]:
        """Take at once what may come next and never changes anything: no order is lost by that."""
        moved = True
        while moved:
            moved = False
            for bit, operation in self._next(done):
                if operation.changes_nothing and self._model(state, operation) == state:
                    done |= bit
                    moved = True
        return done, state

    def _choices(self, done: int, state: State) -> Iterator[tuple[int, State]]:
        done, state = self._settle(done, state)
        self._remember(done, state)
        if done & self._answered == self._answered:
            yield done, state
        for bit, operation in self._next(done):
            if operation.name == "loss":
                for left in left_by_loss(state):
                    yield done | bit, left
                continue
            after = self._model(state, operation)
            if after is not None and (after != state or operation.result != DOUBT):
                yield done | bit, after

    def _next(self, done: int) -> list[tuple[int, Operation]]:
        """The operations that may come next: none that is left ended before they began."""
        if not self._strict:
            return self._next_seen(done)
        found: list[tuple[int, Operation]] = []
        first = (~done & (done + 1)).bit_length() - 1  # all before it are done
        limit = math.inf
        for index in range(first, self._answered_count):
            if self._earliest_from[index] >= limit:
                break
            bit = 1 << index
            if done & bit:
                continue
            operation = self._operations[index]
            if limit == math.inf and operation.ended is not None:
                limit = operation.ended  # the first that is left ended first
            if operation.began < limit:
                found.append((bit, operation))
        for index in range(max(first, self._answered_count), len(self._operations)):
            bit, operation = 1 << index, self._operations[index]
            if not done & bit and operation.began < limit:
                found.append((bit, operation))
        return found

    def _next_seen(self, done: int) -> list[tuple[int, Operation]]:
        """The same where an operation may end before the other host sees it."""
        left = [(1 << index, each) for index, each in enumerate(self._operations) if not done & 1 << index]
        limits: dict[str, int] = {}
        for host in {each.host for _, each in left}:
            ends = [each.ended if each.host == host else each.seen for _, each in left]
            limits[host] = min((end for end in ends if end is not None), default=sys.maxsize)
        return [(bit, each) for bit, each in left if each.began < limits[each.host]]

    def _remember(self, done: int, state: State) -> None:
        count = (done & self._answered).bit_count()
        if count >= self._furthest[0]:
            self._furthest = (count, done, state)

    def _explanation(self) -> str:
        count, done, state = self._furthest
        left = "\n".join(
            f"  {operation} -> {short(operation.result)} [{operation.began}, {operation.ended}]"
            for _, operation in self._next(done)
        )
        return f"{count} of {len(self._operations)} operations explained; state {short(state)}; next:\n{left}"
