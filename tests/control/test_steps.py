"""The two tables of Fig. 17: every pair is decided, and every write comes to an end."""

import itertools

import pytest

from fusemirror.control.steps import MAIN, RESETS, SUBVOLUME, Found, Step, Table, next_step
from fusemirror.errors import IllegalTransition

TABLES = {"main": MAIN, "subvolume": SUBVOLUME}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


@every_table
@pytest.mark.parametrize(("step", "found"), list(itertools.product(Step, Found)), ids=lambda each: each.name)
def test_every_pair_is_decided(table: Table, step: Step, found: Found) -> None:
    if found in table[step]:
        assert next_step(table, step, found) in Step
    else:
        with pytest.raises(IllegalTransition, match=step.name):
            next_step(table, step, found)


def reached(table: Table, step: Step) -> set[Step]:
    """Every step that may follow, sooner or later."""
    found: set[Step] = set()
    frontier = {step}
    while frontier:
        frontier = {after for each in frontier for after in table[each].values()} - found
        found |= frontier
    return found


@every_table
def test_every_write_can_end_and_an_end_is_final(table: Table) -> None:
    for step in {Step.ANALYSED, *reached(table, Step.ANALYSED)}:
        ends = {Step.CONFLICT, Step.ENDED}
        assert step in ends or ends & reached(table, step)
        assert step not in ends or not table[step]


def test_a_write_that_gave_up_does_not_take_the_subvolume_again() -> None:
    assert Step.TRANSFERRING not in reached(SUBVOLUME, Step.GIVEN_UP)
    assert Step.GIVEN_UP in RESETS


def test_the_primary_never_gives_up_main() -> None:
    assert Step.GIVEN_UP not in reached(MAIN, Step.ANALYSED)
    assert set(MAIN[Step.TRANSFERRING].values()) == {Step.ENDED}


def test_the_way_of_the_figure() -> None:
    step = Step.ANALYSED  # 857
    for found in (Found.EXCLUSIVE, Found.RELEASED, Found.FREE):  # 860, 836, 861
        step = next_step(SUBVOLUME, step, found)
    assert step is Step.TRANSFERRING
    assert next_step(SUBVOLUME, step, Found.RESERVED) is Step.CONFLICT  # 837
    assert next_step(SUBVOLUME, step, Found.TRANSFERRED) is Step.ENDED  # 853
    assert next_step(SUBVOLUME, step, Found.MAIN_EXCLUSIVE) is Step.GIVEN_UP  # 832
