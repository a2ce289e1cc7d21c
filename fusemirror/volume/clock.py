"""Clock: the times of changes. They grow with their numbers, whatever this host's clock does.

A clock that was set back is followed again by a change that says so (`set_back`); the times that had been
given before, and are ahead of the clock now, are known as such from then on.
"""

from fusemirror.change import AnyChange, Row, Table
from fusemirror.limits import CLOCK_DIFFERENCE_MAX_S
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.meta import SetBack, set_back_row
from fusemirror.volume.rows import SET_BACK_KEY

_DIFFERENCE_MAX_NS = round(CLOCK_DIFFERENCE_MAX_S * 10**9)


class Clock:
    """Of one volume: `newest_ns` is the time of the newest change that was applied."""

    def __init__(self, seams: Seams, catalog: Catalog) -> None:
        self._seams = seams
        self._catalog = catalog
        self.newest_ns = catalog.time_ns
        self._staging_ns = 0

    def next_ns(self) -> int:
        """The time for a new change: later than that of every change before, over restarts too.

        Like a number it counts from when a change with it is applied: one that was refused leaves nothing of
        a wrong clock.
        """
        return max(self._seams.now_ns(), self.newest_ns + 1)

    def staging_ns(self) -> int:
        """The time that a write shows before it is decided: later than that of those before, as far as this
        host's clock allows.
        """
        now_ns = self._seams.now_ns()
        follows = not 0 <= self._staging_ns - now_ns <= _DIFFERENCE_MAX_NS
        self._staging_ns = now_ns if follows else self._staging_ns + 1
        return self._staging_ns

    def now_ns(self) -> int:
        """This host's time of day."""
        return self._seams.now_ns()

    def behind_s(self) -> float:
        """How far this host's clock is behind the newest change; below 0 if it is not."""
        return (self.newest_ns - self._seams.now_ns()) / 1e9

    def set_back(self) -> tuple[Row, int] | None:
        """The row and the time of a change after which changes follow this host's clock again.

        None where the newest change is not further ahead of it than CLOCK_DIFFERENCE_MAX_S. Only such a
        change may have an earlier time than one before.
        """
        now_ns = self._seams.now_ns()
        if self.newest_ns - now_ns <= _DIFFERENCE_MAX_NS:
            return None
        from_ns = max(self.newest_ns, self._catalog.meta.set_back.from_ns)
        return set_back_row(SetBack(from_ns, max(0, now_ns))), now_ns

    def follow(self, change: AnyChange) -> bool:
        """Take the time of a change that has taken effect; whether it set the clock back.

        An older time that no such row comes with is that of a change which another one overtook.
        """
        if change.time_ns > self.newest_ns:
            self.newest_ns = change.time_ns
        elif change.time_ns < self.newest_ns and sets_clock_back(change):
            self.newest_ns = change.time_ns
            return True
        return False

    def follow_image(self, time_ns: int) -> None:
        """Take the time of a change that only an image tells of."""
        if not self.was_given_before(time_ns):
            self.newest_ns = max(self.newest_ns, time_ns)

    def restart(self, time_ns: int) -> None:
        """The newest change is another catalog's, with this time; 0 where it is not known."""
        self.newest_ns = time_ns or self.newest_ns

    def correct(self) -> None:
        """Go back where a time was given before the clock was set back: an earlier version tells no other."""
        if self.was_given_before(self.newest_ns):
            self.newest_ns = self._catalog.meta.set_back.to_ns

    def was_given_before(self, time_ns: int) -> bool:
        """Whether a time is of before the clock was set back: else it would be ahead of the clock now."""
        ahead_ns = time_ns - self._seams.now_ns()
        return ahead_ns > _DIFFERENCE_MAX_NS and time_ns <= self._catalog.meta.set_back.from_ns

    def is_newer(self, time_ns: int, than_ns: int) -> bool:
        """Whether an image's time is of a later change than that of its row: of the greater time, but for
        times of before the clock was set back, after which every time is later that is not before that.
        """
        if self.was_given_before(time_ns):
            return False
        if self.was_given_before(than_ns):
            return time_ns >= self._catalog.meta.set_back.to_ns
        return time_ns > than_ns


def sets_clock_back(change: AnyChange) -> bool:
    """Whether changes from this one on have times before those of earlier ones."""
    return any(table == Table.META and key == SET_BACK_KEY for table, key, _ in change.rows)
