"""The pace of a resync: whether images are copied now, how fast, and how far it is."""

from collections import deque
from typing import Any

import trio

_SAMPLES = 20
_SAMPLE_INTERVAL_S = 0.5


class Pace:
    """Holds a copier back. `rate_bytes` is the most that is copied per second; 0 is no limit."""

    def __init__(self, rate_bytes: int = 0, *, paused: bool = False) -> None:
        self.rate_bytes = rate_bytes
        self.paused = paused
        self._free_at = 0.0  # when the next bytes may be copied, in trio's time
        self._changed = trio.Event()

    def change(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """From now on, also for who waits already. None leaves it as it is."""
        if rate_bytes is not None:
            self.rate_bytes = rate_bytes
            self._free_at = 0.0
        if paused is not None:
            self.paused = paused
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_running(self) -> None:
        """Return when it is not paused. A person decides how long that takes."""
        while self.paused:
            await self._changed.wait()

    async def take(self, size_bytes: int) -> None:
        """Return when `size_bytes` may be copied, and count them. Cancellation counts nothing."""
        while True:
            await self.wait_running()
            if not self.rate_bytes:
                return
            now = trio.current_time()
            if now >= self._free_at:
                self._free_at = now + size_bytes / self.rate_bytes
                return
            with trio.move_on_at(self._free_at):
                await self._changed.wait()


class CopyProgress:
    """Bytes of marked regions: how many there were, how many are equal by now, how many were sent."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.done_bytes = 0
        self.sent_bytes = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, marked_bytes: int) -> None:
        """There are so many bytes to go; what was done before stays done."""
        self.total_bytes = self.done_bytes + marked_bytes
        self._samples.clear()
        self._samples.append((trio.current_time(), self.done_bytes))

    def advance(self, size_bytes: int) -> bool:
        """So many more are done; whether it is time to tell others of it."""
        self.done_bytes += size_bytes
        self.total_bytes = max(self.total_bytes, self.done_bytes)  # of little data a whole region counts
        now = trio.current_time()
        if now - self._samples[-1][0] < _SAMPLE_INTERVAL_S:
            return False
        self._samples.append((now, self.done_bytes))
        return True

    def as_status(self, pace: Pace) -> dict[str, Any]:
        """The field `resync` of the status."""
        since, before = self._samples[0]
        elapsed = trio.current_time() - since
        rate = 0.0 if pace.paused or elapsed <= 0 else (self.done_bytes - before) / elapsed
        left = (self.total_bytes - self.done_bytes) / rate if rate else None
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "sent_bytes": self.sent_bytes,
            "bytes_per_second": round(rate),
            "seconds_left": None if left is None else round(left, 1),
            "paused": pace.paused,
            "rate_limit_bytes": pace.rate_bytes,
        }
