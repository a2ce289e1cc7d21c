import trio
from trio.testing import MockClock

from fusemirror.communication.ended import Ended
from fusemirror.communication.order import Order
from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request


async def test_who_waits_for_all_up_to_a_request_waits_for_no_later_one(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    order = Order(lambda: ())
    ended = Ended(order)
    assert order.newest == 0
    await ended.wait_up_to(9)
    for serial in (1, 2, 3):
        request = Request(RequestId(b"%016d" % serial), Write(InodeNumber(serial), 0))
        order.add(Staged(serial, request, b"x", 0.0, 0))
    order.last_serial = 3
    assert order.newest == 3
    seen: list[int] = []

    async def wait() -> None:
        await ended.wait_up_to(2)
        seen.append(2)

    nursery.start_soon(wait)
    for identity, expected in zip(list(order.staged)[1::-1], ([], [2]), strict=True):
        await trio.testing.wait_all_tasks_blocked()
        assert not seen
        del order.staged[identity]
        ended.waiting.unpark_all()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == expected
    assert order.newest == 3
