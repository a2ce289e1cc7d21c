"""Requests done: which of the peer's requests took effect, beside the journal.

A record names the request that it answered, so that one which is sent again takes effect once (G4). A repair
of the journal leaves records out; what they said of requests stands in this file then. What could not be read
of them nobody knows: the identity says so (`forgot_requests`), and the peer hears of it when the hosts meet.
"""

import logging
from pathlib import Path

import msgspec

from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import MIB
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import replace_file

log = logging.getLogger(__name__)

RequestsDone = dict[RequestId, tuple[ChangeNumber, InodeNumber]]
"""The change that each request came to, and the inode that its requester asks for; the oldest first."""

_FILE = "requests-done"
_BYTES_MAX = 64 * MIB  # some million; a journal holds fewer records
_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, int, int]])


def load_requests(directory: Path) -> RequestsDone | None:
    """Those that a repair kept; None where the file cannot be read: nobody knows which they were. OSError."""
    try:
        content = read_plain(directory / _FILE, _BYTES_MAX)
    except FileNotFoundError:
        return {}
    try:
        return {
            RequestId(request): (ChangeNumber(number), InodeNumber(inode))
            for request, number, inode in _decoder.decode(content)
        }
    except msgspec.DecodeError as error:
        log.warning("volume %s: %s: %s", directory, _FILE, error)
        return None


def store_requests(directory: Path, requests: RequestsDone) -> None:
    """On return the file durably has these, and is not there where there are none. OSError."""
    if requests:
        rows = [(request, number, inode) for request, (number, inode) in requests.items()]
        replace_file(directory / _FILE, msgspec.msgpack.encode(rows))
    else:
        (directory / _FILE).unlink(missing_ok=True)
