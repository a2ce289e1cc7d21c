import pytest

from fusemirror.communication import order as module
from fusemirror.communication.order import Order
from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request


def staged(serial: int, *, kept: bool = True) -> Staged:
    return Staged(
        serial, Request(RequestId(b"%016d" % serial), Write(InodeNumber(2), 0), kept), b"x", serial, 0
    )


def stage(order: Order, *, kept: bool = True) -> Staged:
    order.last_serial += 1
    one = staged(order.last_serial, kept=kept)
    order.add(one)
    return one


def seen(order: Order) -> tuple[Staged | None, float | None, RequestId | None]:
    return order.oldest, order.oldest_since, order.oldest_live


def test_the_oldest_is_the_first_that_has_not_ended() -> None:
    order = Order(lambda: ())
    assert seen(order) == (None, None, None)
    first, second, third = (stage(order) for _ in range(3))
    del order.staged[second.request.identity]
    assert seen(order) == (first, 1, first.request.identity)
    del order.staged[first.request.identity]
    assert seen(order) == (third, 3, third.request.identity)
    assert not order.acknowledged_before(4)
    third.acknowledged = True
    assert order.has_told
    assert order.acknowledged_before(4)
    assert not order.acknowledged_before(3)


def test_what_the_store_keeps_of_those_that_ended_is_live_if_it_was_kept() -> None:
    in_store = [staged(1, kept=False), staged(3)]
    order = Order(lambda: in_store)
    order.last_serial = 4
    last = stage(order)
    assert order.oldest_live == in_store[1].request.identity
    in_store.clear()
    assert order.oldest_live == last.request.identity


def test_so_many_may_stand_behind_the_oldest_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAGED_SINCE_OLDEST_MAX", 3)
    in_store: list[Staged] = []
    order = Order(lambda: in_store)
    first = stage(order)
    assert not order.too_far_ahead
    stage(order)
    stage(order)
    assert order.reason == "a request is not answered, and 3 came after it: the next ones wait"
    del order.staged[first.request.identity]
    first.retired = True
    in_store.append(first)
    assert "lets go of no request that has ended" in str(order.reason)
    in_store.clear()
    assert order.reason is None
