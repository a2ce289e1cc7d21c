"""Outstanding requests: what this host has asked of the primary, until it is answered."""

from collections.abc import Callable
from typing import Generic, TypeVar

from fusemirror.promise import Promise
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Request

T = TypeVar("T")


class Outstanding(Generic[T]):
    """One request on its way: what was asked, its data, and the answer that is waited for.

    A call is no more than this. A change is staged as well (`communication/volume.py`).
    """

    __slots__ = (
        "abandoned",
        "answer",
        "data",
        "data_bytes",
        "encoded",
        "gathers",
        "request",
        "retired",
        "sent_at",
        "serial",
        "since",
        "when_retired",
    )

    def __init__(
        self, serial: int, request: Request, data: bytes | None, since: float, data_bytes: int = 0
    ) -> None:
        """`data_bytes`: of data that is not in memory."""
        self.serial = serial
        """Its place among the changes; a call goes before the change of the same serial."""
        self.request = request
        self.encoded = encode(request)
        self.data = data
        """None while the store of the communication volume alone has it."""
        self.data_bytes = data_bytes if data is None else len(data)
        self.since = since
        """When it was asked, in trio's time."""
        self.answer: Promise[T] = Promise()
        self.sent_at: float | None = None
        """When it was sent over some link, in trio's time."""
        self.abandoned = False
        """Its program was told a check report. A change that comes of it may still need the data."""
        self.retired = False
        self.gathers = request.kept
        """Nobody waits for its way to the primary: it goes with others, when those before it have ended."""
        self.when_retired: Callable[[], None] | None = None
        """Called as it is retired, by whoever keeps others back until then."""
