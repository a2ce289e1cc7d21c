"""Is a history linearizable: is there one order of its operations that explains everything that was told?

In that order an operation that returned before another was invoked stands before it, and each result
is what a sequential model gives at its place. An operation in doubt may stand anywhere after its
invocation, or nowhere.

The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993): take any
operation that may come next, and take it back where that leads nowhere. It remembers which operations
it had taken in which state, as Lowe does ("Testing for linearizability", 2017), so that each such
configuration is tried once. Knossos and Porcupine search in the same way. A history may be checked
in parts, one per independent object, because linearizability is local (Herlihy and Wing, 1990).
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from tests.linearizability.history import Operation

CONFIGURATIONS_MAX = 500_000  # about a minute


class Model(Protocol):
    """What the operations mean when they are done one after the other. States are immutable."""

    @property
    def initial(self) -> Hashable: ...

    def observes(self, operation: Operation) -> bool:
        """Whether it only looks: it changes nothing, though it may teach what the state is."""

    def steps(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """The states in which the operation may leave `state`; none where what it was told is impossible.

        For an operation in doubt: the states in which it may leave it if it takes effect.
        """


@dataclass(frozen=True)
class Violation:
    """How far the best order came, and what could not be explained there."""

    explained: Sequence[Operation]
    """An order of as many operations as could be explained."""
    state: Hashable
    stuck: Sequence[Operation]
    """The operations that could have come next; the first is the one that had to."""
    history: Sequence[Operation]

    def __str__(self) -> str:
        return "\n".join(
            (
                f"no order explains these {len(self.history)} operations; the last of {len(self.explained)}:",
                *(f"    {_timed(operation)}" for operation in self.explained[-12:]),
                f"which leaves {self.state}; of the next ones the first must follow, and cannot:",
                *(f"    {_timed(operation)}" for operation in self.stuck),
            )
        )


def _timed(operation: Operation) -> str:
    returned = "" if operation.returned is None else f"{operation.returned / 1e3:.0f}"
    return f"[{operation.invoked / 1e3:.0f}, {returned}] us {operation}"


class Undecided(Exception):
    """The history is too hard to judge."""

    def __init__(self, configurations: int) -> None:
        super().__init__(f"the search gave up after {configurations} configurations")


def check(history: Iterable[Operation], model: Model) -> Violation | None:
    """None if the history is linearizable. `Undecided` beyond `CONFIGURATIONS_MAX`."""
    kept = [each for each in history if each.returned is not None or not model.observes(each)]
    kept.sort(key=lambda operation: operation.invoked)
    return _Search(kept, model).run()


def smallest(history: Sequence[Operation], model: Model) -> list[Operation]:
    """A short history that is not linearizable either, for people to read; the given one must not be.

    Whatever is left out could be left out of a linearizable history too: operations that changed
    nothing, and everything that was invoked after the rest had returned.
    """
    kept = _shortest_beginning(history, model)
    for operation in [each for each in kept if model.observes(each)]:
        without = [each for each in kept if each is not operation]
        if check(without, model) is not None:
            kept = without
    return kept


def _shortest_beginning(history: Sequence[Operation], model: Model) -> list[Operation]:
    """By bisection, because every beginning of a linearizable history is linearizable."""
    ends = sorted(each.returned for each in history if each.returned is not None)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if check(_until(history, ends[middle]), model) is None:
            low = middle + 1
        else:
            high = middle
    return _until(history, ends[high])


def _until(history: Sequence[Operation], end: int) -> list[Operation]:
    """What was known at that time: operations under way are in doubt."""
    return [
        each if each.returned is not None and each.returned <= end else each.in_doubt()
        for each in history
        if each.invoked <= end
    ]


_Choice = tuple[int, Hashable]


class _Search:
    """The events stand in a doubly linked list in the order of time: operation `i` is invoked in event
    `2 * i` and returns in event `2 * i + 1`. Taking an operation unlinks both; putting it back, in the
    reverse order, restores the list.
    """

    def __init__(self, history: list[Operation], model: Model) -> None:
        self._history = history
        self._model = model
        self._observes = [model.observes(operation) for operation in history]
        self._left = sum(operation.returned is not None for operation in history)
        self._done = 0
        self._seen: set[tuple[int, int, Hashable]] = set()
        self._link()
        self._best: tuple[list[int], Hashable] = ([], model.initial)
        self._best_left = self._left + 1

    def _link(self) -> None:
        """At equal times invocations stand first, so that the two operations count as concurrent."""
        timed: list[tuple[float, bool, int]] = []
        for index, operation in enumerate(self._history):
            returned = float("inf") if operation.returned is None else operation.returned
            timed += [(operation.invoked, False, 2 * index), (returned, True, 2 * index + 1)]
        self._head = head = 2 * len(self._history)
        order = [head, *(event for _, _, event in sorted(timed)), head]
        self._next, self._before = [0] * (head + 1), [0] * (head + 1)
        for one, other in pairwise(order):
            self._next[one], self._before[other] = other, one

    def run(self) -> Violation | None:
        state = self._model.initial
        path: list[tuple[Iterator[_Choice], int, Hashable]] = []
        choices = self._choices(state)
        while self._left:
            index, after = next(choices, (-1, None))
            if index < 0:
                self._remember(path, state)
                if not path:
                    return self._violation()
                choices, index, state = path.pop()
                self._put_back(index)
                continue
            self._take(index)
            if self._is_new(after):
                path.append((choices, index, state))
                choices, state = self._choices(after), after
            else:
                self._put_back(index)
        return None

    def _choices(self, state: Hashable) -> Iterator[_Choice]:
        """The operations that may come next, each with a state in which it leaves this one."""
        known: list[_Choice] = []
        doubtful: list[_Choice] = []
        for index in list(self._callable()):
            operation = self._history[index]
            for after in self._model.steps(state, operation):
                if after == state and self._observes[index]:
                    # It can be explained now, and changes nothing: no order is lost by taking it first.
                    yield index, after
                    return
                if operation.returned is not None:
                    known.append((index, after))
                elif after != state:
                    doubtful.append((index, after))
        yield from known
        # Last, because most of what is in doubt never happened, or explains nothing.
        yield from doubtful

    def _callable(self) -> Iterator[int]:
        """Operations that were invoked before any other one that is left returned."""
        event = self._next[self._head]
        while event % 2 == 0 and event != self._head:
            yield event // 2
            event = self._next[event]

    def _take(self, index: int) -> None:
        self._done ^= 1 << index
        self._left -= self._history[index].returned is not None
        for event in (2 * index, 2 * index + 1):
            self._next[self._before[event]] = self._next[event]
            self._before[self._next[event]] = self._before[event]

    def _put_back(self, index: int) -> None:
        self._done ^= 1 << index
        self._left += self._history[index].returned is not None
        for event in (2 * index + 1, 2 * index):
            self._next[self._before[event]] = event
            self._before[self._next[event]] = event

    def _is_new(self, state: Hashable) -> bool:
        # All before the first operation that is left are done: the rest tells which ones are.
        first = self._next[self._head] // 2
        configuration = (first, self._done >> first, state)
        if configuration in self._seen:
            return False
        if len(self._seen) >= CONFIGURATIONS_MAX:
            raise Undecided(len(self._seen))
        self._seen.add(configuration)
        return True

    def _remember(self, path: Sequence[tuple[object, int, object]], state: Hashable) -> None:
        """Called wherever the search turns back, so the longest order is among them."""
        if self._left < self._best_left:
            self._best_left = self._left
            self._best = [index for _, index, _ in path], state

    def _violation(self) -> Violation:
        taken, state = self._best
        left = [each for index, each in enumerate(self._history) if index not in set(taken)]
        end = min(each.returned for each in left if each.returned is not None)
        stuck = [each for each in left if each.invoked <= end]
        stuck.sort(key=lambda each: (each.returned is None, each.returned))
        explained = [self._history[index] for index in taken]
        return Violation(explained, state, stuck, self._history)
