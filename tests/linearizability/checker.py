"""Is a history linearizable: is there one order of its operations that explains everything that was told?

In that order an operation that returned before another was invoked stands before it, and each result
is what a sequential model gives at its place. An operation in doubt may stand anywhere after its
invocation, or nowhere.

The search goes from one return to the next. At each, the operation that returns must stand in the order,
behind others under way where need be: the just-in-time linearization of Lowe ("Testing for
linearizability", 2017). What may be true then is a state, and which operations under way stand in
the order already. Where nothing may be, the search goes back (Wing and Gong, "Testing and Verifying
Concurrent Objects", 1993), and tries at no moment again what it had tried there. So a wrong guess long
ago costs no more than the moments since, each with the few possibilities that it has.
A history may be checked in parts, one per independent object, because linearizability is local
(Herlihy and Wing, 1990).

Four things keep the possibilities few, and lose none:

* What only looks stands in the order as soon as a state explains it.
* An operation in doubt is put into the order only at a return that it may help to explain.
* One that is not in the order may still come. So of two possibilities that differ in nothing else,
  the one with fewer operations in doubt holds the other.
* A model forgets what no operation to come can tell.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tests.linearizability.history import Operation

POSSIBILITIES_MAX = 500_000  # about a minute


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

    def forget(self, state: Any, since: int, now: int) -> Hashable:
        """`state` without what no operation can tell that was invoked at `since` or later.

        What was done to it was done by `now`.
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

    def __init__(self, possibilities: int) -> None:
        super().__init__(f"the search gave up after {possibilities} possibilities")


def check(
    history: Iterable[Operation], model: Model, possibilities_max: int = POSSIBILITIES_MAX
) -> Violation | None:
    """None if the history is linearizable. `Undecided` if that takes more possibilities."""
    kept = [each for each in history if each.returned is not None or not model.observes(each)]
    kept.sort(key=lambda operation: operation.invoked)
    return _Search(kept, model, possibilities_max).run()


def smallest(history: Sequence[Operation], model: Model) -> list[Operation]:
    """A short history that is not linearizable either, for people to read; the given one must not be.

    Whatever is left out could be left out of a linearizable history too: operations that changed
    nothing, and everything that was invoked after the rest had returned.
    """
    kept = _shortest_beginning(history, model)
    observing = [each for each in kept if model.observes(each)]
    size = len(observing)
    while size:
        # Many at once first: all but a few can be left out, and each check costs what is left.
        for start in range(0, len(observing), size):
            without = _without(kept, observing[start : start + size])
            if check(without, model) is not None:
                kept = without
        observing = [each for each in kept if model.observes(each)]
        size //= 2
    return kept


def _without(history: Sequence[Operation], left_out: Sequence[Operation]) -> list[Operation]:
    identities = {id(each) for each in left_out}
    return [each for each in history if id(each) not in identities]


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


_Order = tuple["_Order", int] | None
"""The operations of an order, the last one outside."""


class _Moment(NamedTuple):
    """When an operation returns."""

    returning: int
    open: tuple[int, ...]
    """It, the others that had begun, and last those in doubt."""
    since: int
    """When the first operation began that has not returned by then."""
    time: int


class _Possible(NamedTuple):
    """What may be true at a moment."""

    state: Hashable
    taken: frozenset[int]
    """The operations that stand in the order already, of those that have not returned."""
    order: _Order


_Tried = dict[tuple[Hashable, frozenset[int]], list[frozenset[int]]]
"""What was looked into: all that was taken, by the state and what was taken of that which will return."""


class _Search:
    """Operations are known by their index in the history."""

    def __init__(self, history: list[Operation], model: Model, possibilities_max: int) -> None:
        self._history = history
        self._model = model
        self._looks = frozenset(index for index, each in enumerate(history) if model.observes(each))
        self._doubtful = frozenset(index for index, each in enumerate(history) if each.returned is None)
        self._moments = list(self._each_moment())
        self._left = self._possibilities_max = possibilities_max

    def _each_moment(self) -> Iterator[_Moment]:
        events: list[tuple[int, bool, int]] = []
        for index, operation in enumerate(self._history):
            events.append((operation.invoked, False, index))
            if operation.returned is not None:
                events.append((operation.returned, True, index))
        known: list[int] = []
        doubtful: list[int] = []
        # At equal times invocations stand first, so that the two operations count as concurrent.
        for time, returns, index in sorted(events):
            if not returns:
                (doubtful if index in self._doubtful else known).append(index)
                continue
            others = [each for each in known if each != index]
            since = self._history[others[0]].invoked if others else time
            yield _Moment(index, (index, *others, *doubtful), since, time)
            known = others

    def run(self) -> Violation | None:
        possible = _Possible(self._model.initial, frozenset(), None)
        furthest: list[_Possible] = []  # at each moment, the one that came there first
        tried: list[_Tried] = [{} for _ in self._moments]
        ways = [iter((possible,))]
        while ways:
            depth = len(ways) - 1
            for possible in ways[-1]:
                if depth == len(self._moments):
                    return None
                if self._is_new(possible, tried[depth]):
                    if depth == len(furthest):
                        furthest.append(possible)
                    ways.append(self._explaining(self._moments[depth], possible))
                    break
            else:
                ways.pop()
        return self._violation(self._moments[len(furthest) - 1], furthest[-1])

    def _is_new(self, possible: _Possible, tried: _Tried) -> bool:
        """Whether nothing that was tried holds it."""
        alike = tried.setdefault((possible.state, possible.taken - self._doubtful), [])
        if any(taken <= possible.taken for taken in alike):
            return False
        alike.append(possible.taken)
        self._left -= 1
        if not self._left:
            raise Undecided(self._possibilities_max)
        return True

    def _explaining(self, moment: _Moment, start: _Possible) -> Iterator[_Possible]:
        """All that may be true after the moment, that with the fewest more operations in the order first."""
        tried: _Tried = {}
        left = deque((self._looked(moment, start),))
        while left:
            possible = left.popleft()
            if moment.returning in possible.taken:
                state = self._model.forget(possible.state, moment.since, moment.time)
                yield _Possible(state, possible.taken - {moment.returning}, possible.order)
            else:
                left.extend(each for each in self._next(moment, possible) if self._is_new(each, tried))

    def _next(self, moment: _Moment, possible: _Possible) -> Iterator[_Possible]:
        """With one more operation in the order."""
        state, taken, order = possible
        for index in moment.open:
            if index not in taken:
                for after in self._model.steps(state, self._history[index]):
                    if after != state or index not in self._doubtful:
                        yield self._looked(moment, _Possible(after, taken | {index}, (order, index)))

    def _looked(self, moment: _Moment, possible: _Possible) -> _Possible:
        """With all in the order that only look, and find the state as it is."""
        state, taken, order = possible
        for index in moment.open:
            looks = index in self._looks and index not in taken
            if looks and state in self._model.steps(state, self._history[index]):
                taken, order = taken | {index}, (order, index)
        return _Possible(state, taken, order)

    def _violation(self, moment: _Moment, possible: _Possible) -> Violation:
        state, taken, order = possible
        explained: list[Operation] = []
        while order is not None:
            order, last = order
            explained.append(self._history[last])
        stuck = [self._history[index] for index in moment.open if index not in taken]
        return Violation(explained[::-1], state, stuck, self._history)
