"""Every n-th call fails: see `every_call.py`. Some cases and calls here; all with FUSEMIRROR_EVERY_CALL=1."""

import os

import pytest

from tests.simulation.calls import FAULTS
from tests.simulation.every_call import ALL_CALLS, OPERATIONS, Case, all_cases, try_case

ALL = bool(os.environ.get("FUSEMIRROR_EVERY_CALL"))
STRIDE = 9  # meets every operation, host and fault: their numbers have no divisor in common with it
CASES = all_cases() if ALL else all_cases()[::STRIDE]
CALLS = ALL_CALLS if ALL else range(1, 5)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operation_is_done_wholly_or_not_at_all_whatever_call_fails(case: Case) -> None:
    trial = try_case(case, CALLS)
    assert trial.attempts


def test_the_cases_meet_every_operation_host_and_fault() -> None:
    assert {case.kind for case in CASES} == set(OPERATIONS)
    assert {case.fault for case in CASES} == set(FAULTS)
    assert {case.place for case in CASES} == {"primary", "backup"}
    assert {case.acknowledge for case in CASES} == {"sync", "async"}


@pytest.mark.expects_warnings
@pytest.mark.parametrize("fault", FAULTS)
def test_the_calls_that_a_fault_counts_are_made_and_fail(fault: str) -> None:
    assert try_case(Case("append", "backup", fault), range(1, 4)).fired
