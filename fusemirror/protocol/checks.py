"""Checks: what the fields of a message, and the data beside it, must be to each other.

The types of the fields say what may stand in each (`messages.py`); here stands, a function per message,
what a decoder cannot see: data that belongs to a message, sums, rows of the catalog. `codec.py` calls these
for whatever arrives, so no handler meets a message that does not fit. Each raises ValueError with the field.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fusemirror.change import (
    ALLOCATION_MODES,
    AllocateChange,
    AnyChange,
    CopyChange,
    DataChange,
    NamespaceChange,
    Row,
    Table,
    TruncateChange,
    WriteChange,
)
from fusemirror.errors import BadRow
from fusemirror.limits import (
    CHANGE_NUMBER_RECEIVED_MAX,
    CHANGE_TIME_NS_RECEIVED_MAX,
    COPY_BYTES_MAX,
    DATA_BYTES_MAX,
    FILE_BYTES_MAX,
    INODE_NUMBER_RECEIVED_MAX,
    LOCKS_PER_MESSAGE,
    PROBE_BYTES,
    REQUEST_ID_BYTES,
    ROWS_PER_MESSAGE,
)
from fusemirror.protocol.calls import Call, Seek, place_in
from fusemirror.protocol.messages import (
    Answer,
    AnyMessage,
    AskLock,
    CatalogRows,
    CaughtUp,
    Digests,
    Fetched,
    FetchRegion,
    FetchRows,
    HeldLock,
    Hole,
    LocksListed,
    Probe,
    PurgeOffer,
    ReclaimLocks,
    RegionData,
    ReleaseLock,
    ReplaceRows,
    Reply,
    Request,
    RowsDigest,
)
from fusemirror.volume.rows import check_rows

_REQUEST_BYTES = (0, REQUEST_ID_BYTES)


def check_message(message: AnyMessage, data_bytes: int) -> None:
    """ValueError unless the fields of a message fit each other, and the data that came beside it."""
    check = _CHECKS.get(type(message))
    if check is not None:
        check(message, data_bytes)
    elif data_bytes:
        raise ValueError("it comes with data")


def _check(good: bool, field: str, why: str) -> None:
    if not good:
        raise ValueError(f"{field}: {why}")


def _check_no_data(data_bytes: int) -> None:
    if data_bytes:
        raise ValueError("it comes with data")


def _check_change(change: AnyChange) -> None:
    """What this host does next is still within the bounds of a change, whatever a peer says."""
    if not 0 < change.number <= CHANGE_NUMBER_RECEIVED_MAX:
        raise ValueError("number: beyond what can be")
    if change.time_ns > CHANGE_TIME_NS_RECEIVED_MAX:
        raise ValueError("time_ns: beyond what can be")
    if change.inode > INODE_NUMBER_RECEIVED_MAX:
        raise ValueError("inode: beyond what can be")
    if len(change.request) not in _REQUEST_BYTES:
        raise ValueError("request: no request has such a name")


def _check_write(change: WriteChange, data_bytes: int) -> None:
    if (
        0 < change.number <= CHANGE_NUMBER_RECEIVED_MAX
        and change.time_ns <= CHANGE_TIME_NS_RECEIVED_MAX
        and 0 < change.length <= DATA_BYTES_MAX
        and change.offset + change.length <= FILE_BYTES_MAX
        and change.inode <= INODE_NUMBER_RECEIVED_MAX
        and len(change.request) in _REQUEST_BYTES
        and (data_bytes == change.length or (not data_bytes and change.request))
        and not change.rows
    ):
        return  # the most frequent of all messages: what it says wrong is looked for only where it does
    _check_change(change)
    length = change.length
    if not 0 < length <= DATA_BYTES_MAX or change.offset + length > FILE_BYTES_MAX:
        raise ValueError("length: no write is so long, or ends there")
    # The data of a request of the receiver is with the receiver.
    if data_bytes != length and (data_bytes or not change.request):
        raise ValueError(f"length: it comes with {data_bytes} of {length} bytes")
    _check_rows_of_data(change)


def _check_truncate(change: TruncateChange, data_bytes: int) -> None:
    _check_change(change)
    _check_no_data(data_bytes)
    _check_rows_of_data(change)


def _check_rows_of_data(change: DataChange) -> None:
    """What a change of data brings along is of its own inode."""
    _check_rows(change.rows)
    for table, key, value in change.rows:
        own = table in (Table.INODES, Table.XATTRS) and int.from_bytes(key[:8], "big") == change.inode
        _check(own and (table == Table.XATTRS or value is not None), "rows", "not of the inode of the data")


def _check_allocate(change: AllocateChange, data_bytes: int) -> None:
    _check_change(change)
    _check_no_data(data_bytes)
    _check(change.mode in ALLOCATION_MODES, "mode", "there is none such")
    _check(change.offset < change.end, "end", "before the first byte")
    _check_rows_of_data(change)


def _check_copy(change: CopyChange, data_bytes: int) -> None:
    _check_change(change)
    _check_no_data(data_bytes)
    length = change.end - change.offset
    _check(0 < length <= COPY_BYTES_MAX, "end", "before the first byte, or too far behind it")
    _check(change.source <= INODE_NUMBER_RECEIVED_MAX, "source", "beyond what can be")
    _check(change.source_offset + length <= FILE_BYTES_MAX, "source_offset", "no file is so long")
    apart = change.source != change.inode or abs(change.source_offset - change.offset) >= length
    _check(apart, "source_offset", "what is copied overlaps what it is copied to")
    _check_rows_of_data(change)


def _check_namespace(change: NamespaceChange, data_bytes: int) -> None:
    _check_change(change)
    _check_no_data(data_bytes)
    _check_rows(change.rows)
    refuses = bool(change.request and not change.rows)
    _check(refuses or not change.errno, "errno", "of what is no request, or took effect")


def _check_rows(rows: Iterable[Row]) -> None:
    try:
        check_rows(rows, received=True)
    except BadRow as error:
        raise ValueError(f"rows: {error}") from error


def _check_catalog_rows(message: CatalogRows, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check_rows(message.rows)
    _check(all(value is not None for _, _, value in message.rows), "rows", "a row that goes")


def _check_rows_within(rows: Iterable[Row], table: int, first: bytes, last: bytes) -> None:
    _check_rows(rows)
    for of, key, value in rows:
        _check(of == table and first <= key <= last, "rows", f"key {key.hex()} is not of the range")
        _check(value is not None, "rows", "a row that goes")


def _check_replace_rows(message: ReplaceRows, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check(len(message.rows) <= ROWS_PER_MESSAGE, "rows", "too many")
    _check_rows_within(message.rows, message.table, message.first, message.last)


def _check_caught_up(message: CaughtUp, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check(message.journal_number <= message.number, "journal_number", "beyond `number`")


def _check_region_data(message: RegionData, data_bytes: int) -> None:
    _check(data_bytes > 0, "data", "there is none")
    _check(message.offset + data_bytes <= FILE_BYTES_MAX, "offset", "no file is so long")


def _check_hole(message: Hole, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check(message.first_region <= message.end_region, "end_region", "before the first one")


def _check_fetch_region(message: FetchRegion, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check(message.offset + message.length <= FILE_BYTES_MAX, "offset", "no file is so long")


def _check_request(message: Request, data_bytes: int) -> None:
    carries_data = message.operation.carries_data
    if (data_bytes and not carries_data) or (message.kept and not (carries_data and data_bytes)):
        raise ValueError("operation: it comes with data, or was acknowledged, and is no write")


def _check_range(message: HeldLock | ReleaseLock) -> None:
    _check(message.start <= message.end, "end", "before the start")
    whole = message.start == 0 and message.end == FILE_BYTES_MAX
    _check(whole or message.space == 0, "start", "a lock of flock(2) covers all of a file")


def _check_release_lock(message: ReleaseLock, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check_range(message)


def _check_ask_lock(message: AskLock, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    _check_range(message.lock)


def _check_locks_listed(message: LocksListed, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    rows = (*message.held, *message.waiting)
    for lock in rows:
        _check_range(lock)
    fits = len(rows) <= min(LOCKS_PER_MESSAGE, message.total)
    _check(fits, "total", "less than is listed, or more than a message may hold")


def _check_reclaim_locks(message: ReclaimLocks, data_bytes: int) -> None:
    _check_no_data(data_bytes)
    for lock in message.locks:
        _check_range(lock)


def _check_answer(message: Answer, data_bytes: int) -> None:
    """The data is of a read; see `check_answer`."""


def _check_probe(_: Probe, data_bytes: int) -> None:
    _check(data_bytes == PROBE_BYTES, "serial", f"it comes with {data_bytes} of {PROBE_BYTES} bytes")


_CHECKS: dict[type, Callable[[Any, int], None]] = {
    WriteChange: _check_write,
    TruncateChange: _check_truncate,
    AllocateChange: _check_allocate,
    CopyChange: _check_copy,
    NamespaceChange: _check_namespace,
    CatalogRows: _check_catalog_rows,
    ReplaceRows: _check_replace_rows,
    CaughtUp: _check_caught_up,
    RegionData: _check_region_data,
    FetchRegion: _check_fetch_region,
    Hole: _check_hole,
    Request: _check_request,
    Answer: _check_answer,
    AskLock: _check_ask_lock,
    ReleaseLock: _check_release_lock,
    ReclaimLocks: _check_reclaim_locks,
    LocksListed: _check_locks_listed,
    Probe: _check_probe,
}


# --- answers, by what was asked ------------------------------------------------------------------------


def check_reply(question: AnyMessage, reply: Reply) -> None:
    """ValueError unless a reply can be one to the question."""
    values: Sequence[int] = reply.values
    allowed = range(0)
    lengths_may_differ = isinstance(question, Digests | Hole) and not question.repair  # told of as -1
    if isinstance(question, Digests):
        allowed = range(question.first_region, question.first_region + len(question.digests))
    elif isinstance(question, Hole):
        looked, *values = values or (-1,)
        _check(question.first_region <= looked <= question.end_region, "values", "no place of the hole")
        allowed = range(question.first_region, looked)
    elif isinstance(question, RowsDigest):
        _check(len(values) <= 1, "values", "more than a count")
        return
    asked_about = question.inodes if isinstance(question, PurgeOffer) else allowed
    good = all(value in asked_about or (value == -1 and lengths_may_differ) for value in values)
    _check(good, "values", "none that was asked about")


def check_fetched(question: AnyMessage, answer: Fetched) -> None:
    """ValueError unless content can be that which was asked for."""
    if isinstance(question, FetchRows):
        _check(len(answer.rows) <= ROWS_PER_MESSAGE, "rows", "too many")
        _check(not answer.data and answer.size == -1, "data", "rows were asked for")
        _check_rows_within(answer.rows, question.table, question.first, question.last)
    elif isinstance(question, FetchRegion):
        _check(not answer.rows, "rows", "bytes were asked for")
        _check(len(answer.data) <= question.length, "data", "more than was asked for")


def check_answer(request: Request, answer: Answer, data_bytes: int) -> None:
    """ValueError unless an answer can be one to the request."""
    asked = request.operation
    allowed = asked.answer_bytes_max if isinstance(asked, Call) else 0
    _check(data_bytes <= allowed, "data", "more than was asked for")
    if isinstance(asked, Seek) and not answer.errno:
        _check(asked.offset <= place_in(answer.value) <= FILE_BYTES_MAX, "value", "before what was asked for")
