"""The table of the peer's addresses: which is used next, whatever is heard of each."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.channel.paths import ADDRESS_STATES, Addresses, AddressEvent, AddressState, next_address_state
from fusemirror.errors import IllegalTransition
from fusemirror.settings import Address

ONE, TWO, THREE = (Address(name, 7000) for name in ("one", "two", "three"))
ALL = (ONE, TWO, THREE)


def table(*addresses: Address) -> Addresses:
    made = Addresses()
    made.know(addresses, now=1.0)
    return made


@pytest.mark.parametrize(("standing", "news"), list(itertools.product(AddressState, AddressEvent)), ids=str)
def test_every_pair_is_decided(standing: AddressState, news: AddressEvent) -> None:
    if news in ADDRESS_STATES[standing]:
        assert next_address_state(standing, news) in AddressState
    else:
        with pytest.raises(IllegalTransition, match=standing.name):
            next_address_state(standing, news)


def test_addresses_are_tried_in_the_order_of_the_settings() -> None:
    assert table(*ALL).order() == list(ALL)


def test_one_that_was_reached_goes_before_one_that_nobody_tried() -> None:
    made = table(*ALL)
    made.reached(THREE, now=2.0)
    assert made.order() == [THREE, ONE, TWO]
    assert made.spare() == THREE


def test_what_is_in_use_is_no_spare() -> None:
    made = table(*ALL)
    made.taken(ONE, now=2.0)
    assert made.spare() is None
    made.reached(TWO, now=3.0)
    assert (made.in_use, made.spare()) == (ONE, TWO)


def test_one_that_is_lost_is_down_with_its_reason_and_the_spare_follows() -> None:
    made = table(*ALL)
    made.taken(ONE, now=2.0)
    made.reached(TWO, now=2.0)
    made.failed(ONE, "no answer", now=5.0)
    assert (made.in_use, made.spare()) == (None, TWO)
    row = made.rows()[0]
    assert (row.is_up, row.reason, row.since) == (False, "no answer", 5.0)
    made.taken(TWO, now=5.5)
    made.reached(ONE, now=6.0)
    row = made.rows()[0]
    assert (row.is_up, row.reason, row.since) == (True, None, 6.0)


def test_a_name_that_stands_for_others_now_loses_none_that_is_in_use() -> None:
    made = table(ONE, TWO)
    made.taken(ONE, now=2.0)
    made.know([TWO, THREE], now=3.0)
    assert made.order() == [ONE, TWO, THREE]
    made.left(now=4.0)
    made.know([TWO, THREE], now=5.0)
    assert made.order() == [TWO, THREE]


NEWS = st.tuples(st.sampled_from(["reached", "taken", "failed", "left", "know"]), st.sampled_from(ALL))


@given(st.lists(NEWS, max_size=40))
def test_whatever_is_heard_one_at_most_is_in_use_and_each_has_its_turn(
    heard: list[tuple[str, Address]],
) -> None:
    made = table(*ALL)
    for now, (what, address) in enumerate(heard, start=2):
        if what == "left":
            made.left(float(now))
        elif what == "know":
            made.know(ALL, float(now))
        elif what == "failed":
            made.failed(address, "gone", float(now))
        else:
            getattr(made, what)(address, float(now))
        rows = made.rows()
        assert sum(row.standing is AddressState.IN_USE for row in rows) <= 1
        assert sorted(made.order()) == sorted(ALL)
        assert all(
            row.is_up == (row.reason is None) for row in rows if row.standing is not AddressState.UNTRIED
        )
        spare = made.spare()
        assert spare is None or spare != made.in_use
    # Where each fails when it is tried, all have been tried after as many tries as there are.
    tried = set()
    for now in range(100, 100 + len(ALL)):
        address = made.order()[0]
        tried.add(address)
        made.failed(address, "gone", float(now))
    assert tried == set(ALL)
