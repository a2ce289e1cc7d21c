"""Held data: what a communication volume has of its requests in memory, and what memory lets go of.

Each pending request takes some memory, and its data does until the store has it. Beyond a part of the bound,
memory lets go of the data of what the store has: the newest first, as that is sent last. It is read back when
it is sent, applied or read. So writers wait where the store is slower than they are, whatever the capacity.
Source: seed [0047], [0048].
"""

from fusemirror.communication.staged import Staged
from fusemirror.limits import STAGED_DATA_PART, STAGED_REQUEST_BYTES


class HeldData:
    """Of one communication volume. Counts are in bytes."""

    def __init__(self, bytes_max: float) -> None:
        """`bytes_max`: infinite where there is no store to read back from."""
        self.bytes_max = bytes_max
        self.bytes = 0
        """What is pending takes of memory now."""
        self.peak_bytes = 0
        self.let_go_total = 0
        """How much data memory let go of."""
        self.read_back_total = 0
        """How much of that was read back from the store."""
        self._spare: dict[int, Staged] = {}  # what the store has too, by serial, the newest last

    def has_room(self, data_bytes: int) -> bool:
        """Whether a request with so much data fits into memory."""
        return self.bytes + data_bytes + STAGED_REQUEST_BYTES <= self.bytes_max

    def add(self, staged: Staged) -> None:
        """A request is pending from now on."""
        self.bytes += STAGED_REQUEST_BYTES + (0 if staged.data is None else staged.data_bytes)
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def remove(self, staged: Staged) -> None:
        """It has ended."""
        self._spare.pop(staged.serial, None)
        self.bytes -= STAGED_REQUEST_BYTES + (0 if staged.data is None else staged.data_bytes)
        assert self.bytes >= 0, "what ended was pending"

    def spare(self, staged: Staged) -> None:
        """The store has a pending request, and nobody is about to need its data: memory may let go of it."""
        assert staged.stored, "it can be read back"
        if staged.data:
            self._spare[staged.serial] = staged
            self._let_go()

    def take_back(self, staged: Staged, data: bytes) -> None:
        """The data was read back, as the request is sent next; it is spared after that."""
        assert staged.data is None, "it is read back once"
        assert len(data) == staged.data_bytes, "the store gives what it got"
        staged.data = data
        self.bytes += staged.data_bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _let_go(self) -> None:
        while self._spare and self.bytes > self.bytes_max * STAGED_DATA_PART:
            _, staged = self._spare.popitem()
            staged.data = None
            self.bytes -= staged.data_bytes
            self.let_go_total += staged.data_bytes
