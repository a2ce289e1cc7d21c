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


def end(order: Order, one: Staged, in_store: list[Staged] | None = None) -> None:
    """The request has ended; the store lets go of it, or not yet."""
    del order.staged[one.request.identity]
    one.retired = True
    if in_store is not None:
        one.destaged = True
        in_store.append(one)


def let_go(in_store: list[Staged]) -> None:
    while in_store:
        in_store.pop().destaged = False


def seen(order: Order) -> tuple[Staged | None, float | None, RequestId | None]:
    return order.oldest, order.oldest_since, order.oldest_live


def test_the_oldest_is_the_first_that_has_not_ended() -> None:
    order = Order(lambda: ())
    assert seen(order) == (None, None, None)
    first, second, third = (stage(order) for _ in range(3))
    end(order, second)
    assert seen(order) == (first, 1, first.request.identity)
    end(order, first)
    assert seen(order) == (third, 3, third.request.identity)
    assert not order.acknowledged_before(4)
    third.acknowledged = True
    assert order.has_told
    assert order.acknowledged_before(4)
    assert not order.acknowledged_before(3)


def test_what_the_store_keeps_of_those_that_ended_is_live_if_it_was_kept() -> None:
    in_store: list[Staged] = []
    order = Order(lambda: in_store)
    forgotten, kept, last = stage(order, kept=False), stage(order), stage(order)
    end(order, forgotten, in_store)
    end(order, kept, in_store)
    assert order.oldest_live == kept.request.identity
    let_go(in_store)
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
    end(order, first, in_store)
    assert "lets go of no request that has ended" in str(order.reason)
    let_go(in_store)
    assert order.reason is None
