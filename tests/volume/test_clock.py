"""The times of changes: they grow, and a clock that was far ahead is left behind by a change that says so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fusemirror.change import NamespaceChange, WriteChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import CLOCK_DIFFERENCE_MAX_S
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.clock import Clock, sets_clock_back

S = 10**9
AHEAD_NS = round((CLOCK_DIFFERENCE_MAX_S + 60) * S)


class Now:
    """This host's time of day, as the test sets it."""

    def __init__(self) -> None:
        self.ns = 1000 * S

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    yield catalog
    catalog.close()


@pytest.fixture
def clock(catalog: Catalog, now: Now) -> Clock:
    return Clock(replace(Seams(), now_ns=now), catalog)


def write(time_ns: int) -> WriteChange:
    return WriteChange(ChangeNumber(1), NO_REQUEST, time_ns, InodeNumber(2), 0, 1)


def test_each_change_is_later_than_those_before(clock: Clock, now: Now) -> None:
    assert clock.next_ns() == now.ns
    assert clock.next_ns() == now.ns, "it counts from when it is applied"
    assert not clock.follow(write(now.ns + 5))
    assert clock.next_ns() == now.ns + 6
    assert not clock.follow(write(now.ns)), "a change that another one overtook"
    assert clock.newest_ns == now.ns + 5
    assert clock.behind_s() == 5 / S


def test_times_of_what_is_staged_grow_while_the_clock_allows(clock: Clock, now: Now) -> None:
    assert [clock.staging_ns() for _ in range(3)] == [now.ns, now.ns + 1, now.ns + 2]
    now.ns -= 2 * AHEAD_NS
    assert clock.staging_ns() == now.ns


def test_a_clock_that_was_far_ahead_is_left_behind(clock: Clock, now: Now, catalog: Catalog) -> None:
    assert clock.set_back() is None
    ahead = now.ns + AHEAD_NS
    clock.follow(write(ahead))
    back = clock.set_back()
    assert back is not None
    row, time_ns = back
    change = NamespaceChange(ChangeNumber(2), NO_REQUEST, time_ns, InodeNumber(0), (row,))
    assert sets_clock_back(change)
    catalog.apply_rows(change.rows)
    assert clock.follow(change)
    assert clock.newest_ns == now.ns
    assert clock.was_given_before(ahead)
    assert not clock.was_given_before(now.ns)
    clock.follow_image(ahead)
    assert clock.newest_ns == now.ns, "that image's change came earlier"
    assert clock.is_newer(now.ns + 1, ahead)
    assert not clock.is_newer(ahead, now.ns)
    assert clock.is_newer(now.ns + 2, now.ns + 1)


def test_the_time_of_another_catalog_counts_where_it_is_known(clock: Clock, now: Now) -> None:
    clock.follow(write(now.ns))
    clock.restart(0)
    assert clock.newest_ns == now.ns
    clock.restart(7)
    assert clock.newest_ns == 7
