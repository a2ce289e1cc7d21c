"""Requests done: which of the peer's requests took effect or were refused for good, beside the journal.

A record names the request that it answered, so that one which is sent again takes effect once (G4), and one
that was refused after it was acknowledged never, as later changes went before it. A repair
of the journal leaves records out; what they said of requests stands in this file then. What could not be read
of them nobody knows: the identity says so (`forgot_requests`), and the peer hears of it when the hosts meet.
"""

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fusemirror.change import AnyChange, NamespaceChange
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import REQUESTS_DONE_BYTES_MAX
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import replace_file

log = logging.getLogger(__name__)


class Done(NamedTuple):
    """The change that a request came to, and the inode that its requester asks for; or why it was refused."""

    number: ChangeNumber
    inode: InodeNumber
    errno: int = 0


class RequestsDone(dict[RequestId, Done]):
    """Those of one volume, the oldest first."""

    def refuse(self, request: RequestId, error: int, number: ChangeNumber) -> None:
        """The request is refused for good, as long as this process remembers it, behind change `number`."""
        self[request] = Done(number, InodeNumber(0), error)

    def forget(self, request: RequestId) -> None:
        """The peer has the answer and will not ask again."""
        self.pop(request, None)

    def store_untold(self, directory: Path, first: ChangeNumber) -> None:
        """Store what no record from `first` on tells of: what a repair kept, and refusals for which the disk
        had no room. OSError."""
        untold = {request: done for request, done in self.items() if done.number < first or done.errno}
        store_requests(directory, untold)


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """Earlier versions know three fields, and take a file with a fourth for one that cannot be read."""

    request: bytes
    number: int
    inode: int
    errno: int = 0


def done_by(change: AnyChange) -> Done:
    """What became of the request that a change names."""
    error = change.errno if type(change) is NamespaceChange else 0
    return Done(change.number, change.inode, error)


_FILE = "requests-done"
_decoder = msgspec.msgpack.Decoder(list[_Row])


def load_requests(directory: Path) -> RequestsDone | None:
    """Those that a repair kept; None where the file cannot be read: nobody knows which they were. OSError."""
    try:
        content = read_plain(directory / _FILE, REQUESTS_DONE_BYTES_MAX)
    except FileNotFoundError:
        return RequestsDone()
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        # Earlier versions wrote more than anybody reads. To open no volume would lose more than what it says.
        log.warning("volume %s: %s", directory, error)
        return None
    try:
        rows = _decoder.decode(content)
    except msgspec.DecodeError as error:
        log.warning("volume %s: %s: %s", directory, _FILE, error)
        return None
    return RequestsDone(
        (RequestId(row.request), Done(ChangeNumber(row.number), InodeNumber(row.inode), row.errno))
        for row in rows
    )


def store_requests(directory: Path, requests: Mapping[RequestId, Done]) -> None:
    """On return the file durably has these, and is not there where there are none. OSError; EFBIG for more
    than `load_requests` reads.
    """
    if requests:
        rows = [
            (request, *done) if done.errno else (request, done.number, done.inode)
            for request, done in requests.items()
        ]
        content = msgspec.msgpack.encode(rows)
        if len(content) > REQUESTS_DONE_BYTES_MAX:
            raise OSError(errno.EFBIG, f"longer than {REQUESTS_DONE_BYTES_MAX} bytes", str(directory / _FILE))
        replace_file(directory / _FILE, content)
    else:
        (directory / _FILE).unlink(missing_ok=True)
