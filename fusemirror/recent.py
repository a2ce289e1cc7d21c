"""What happened a moment ago, as far as it matters: members of a set that leave it after a while.

Two sets stand for two spans of time. So a member costs no time stamp, and leaves late, never early.
"""

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import trio

T = TypeVar("T", bound=Hashable)


class Recent(Generic[T]):
    """What was added within the last `rest_s` is in it, and what was added long before is not.

    Where more than `count_max` were, everything is. Times are trio's.
    """

    def __init__(self, rest_s: float, count_max: float = math.inf) -> None:
        self._rest_s = rest_s
        self._count_max = count_max
        self._now: set[T] = set()
        self._before: set[T] = set()
        self._until = -math.inf

    def add(self, member: T) -> None:
        now = trio.current_time()
        if now >= self._until:
            self._turn(now)
        self._now.add(member)

    def __contains__(self, member: T) -> bool:
        now = trio.current_time()
        if now >= self._until:
            self._turn(now)
        if len(self._now) + len(self._before) >= self._count_max:
            return True
        return member in self._now or member in self._before

    def _turn(self, now: float) -> None:
        # Whatever is in the older set was added a whole rest ago.
        self._before = self._now if now < self._until + self._rest_s else set()
        self._now = set()
        self._until = now + self._rest_s
