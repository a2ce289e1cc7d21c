"""Requests that wait: how many may, and who hears that one has ended."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from fusemirror.kernel import waiting
from fusemirror.kernel.codec import InHeader, Opcode
from fusemirror.kernel.waiting import WaitingRequest, WaitingRequests


def request(unique: int, size: int = 100) -> WaitingRequest:
    return WaitingRequest(InHeader(size, Opcode.READ, unique, 1, 0, 0, 1, 0, 0), b"", 0.0)


@pytest.mark.parametrize(
    ("limit", "most"), [("REQUESTS_WAITING_MAX", 2), ("REQUESTS_WAITING_BYTES_MAX", 199)]
)
def test_as_many_wait_as_may(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(waiting, limit, most)
    requests = WaitingRequests()
    first, second = request(2), request(4)
    seen = [requests.is_full()]
    for each in (first, second):
        requests.add(each)
        seen.append(requests.is_full())
    assert requests.by_number == {2: first, 4: second}
    requests.remove(first)
    assert [*seen, requests.is_full()] == [False, False, True, False]


async def test_who_waits_for_fewer_hears_of_an_end_and_of_a_stop() -> None:
    requests = WaitingRequests()
    first = request(2)
    requests.add(first)
    ends: list[Callable[[], None]] = [partial(requests.remove, first), requests.stop]
    for end in ends:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.until_fewer)
            await trio.testing.wait_all_tasks_blocked()
            end()
