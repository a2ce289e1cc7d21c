"""Held data: what is counted, and what memory lets go of."""

import pytest

from fusemirror.communication.held_data import HeldData
from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import STAGED_REQUEST_BYTES
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request

SIZE = 100 * STAGED_REQUEST_BYTES
WHOLE = STAGED_REQUEST_BYTES + SIZE


def staged(serial: int = 1) -> Staged:
    return Staged(
        serial, Request(RequestId(b"%016d" % serial), Write(InodeNumber(2), 0), True), bytes(SIZE), 0.0, 0
    )


def test_a_request_counts_with_its_data_until_it_ends() -> None:
    held = HeldData(10 * WHOLE)
    requests = [staged(serial) for serial in range(3)]
    for request in requests:
        held.add(request)
    assert held.bytes == held.peak_bytes == 3 * WHOLE
    for request in requests:
        held.remove(request)
    assert (held.bytes, held.peak_bytes) == (0, 3 * WHOLE)


@pytest.mark.parametrize(("bytes_max", "has_room"), [(2 * WHOLE, True), (2 * WHOLE - 1, False)])
def test_there_is_room_up_to_the_bound(bytes_max: int, has_room: bool) -> None:
    held = HeldData(bytes_max)
    held.add(staged())
    assert held.has_room(SIZE) is has_room


@pytest.mark.parametrize(("bytes_max", "lets_go"), [(WHOLE, True), (2 * WHOLE, False)])
def test_memory_lets_go_of_what_the_store_has_once_it_holds_half_of_the_bound(
    bytes_max: int, lets_go: bool
) -> None:
    held, request = HeldData(bytes_max), staged()
    held.add(request)
    request.stored = True
    held.spare(request)
    assert (request.data is None) is lets_go
    assert held.bytes == (STAGED_REQUEST_BYTES if lets_go else WHOLE)
    assert held.let_go_total == (SIZE if lets_go else 0)
    held.remove(request)
    assert held.bytes == 0


def test_the_newest_goes_first_and_the_oldest_when_the_requests_alone_fill_the_bound() -> None:
    held = HeldData(4 * WHOLE)
    requests = [staged(serial) for serial in range(6)]
    kept = []
    for request in requests:
        held.add(request)
        request.stored = True
        held.spare(request)
        kept.append([each.serial for each in requests if each.data is not None and each.stored])
    assert kept[:3] == [[0], [0, 1], [0]]
    assert all(serials in ([0], []) for serials in kept[3:])
    for request in requests:
        held.remove(request)
    assert held.bytes == 0


def test_what_ended_or_is_only_here_is_not_let_go_of() -> None:
    held = HeldData(WHOLE)
    ended, fresh = staged(1), staged(2)
    held.add(ended)
    held.bytes_max = 4 * WHOLE
    ended.stored = True
    held.spare(ended)
    held.remove(ended)
    held.bytes_max = WHOLE
    held.add(fresh)
    other = staged(3)
    held.add(other)
    other.stored = True
    held.spare(other)
    assert (ended.data, fresh.data, other.data) == (bytes(SIZE), bytes(SIZE), None)


def test_what_is_read_back_counts_again() -> None:
    held, request = HeldData(WHOLE), staged()
    held.add(request)
    request.stored = True
    held.spare(request)
    held.take_back(request, bytes(SIZE))
    assert held.bytes == WHOLE
    held.remove(request)
    assert held.bytes == 0
