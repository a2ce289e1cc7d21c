"""The soak in short: FUSEMIRROR_SOAK_S says for how many seconds, FUSEMIRROR_SEED what is drawn.

FUSEMIRROR_SWITCHES says how many switches are made, FUSEMIRROR_EXERCISE_S for how many seconds programs that
know every answer work under switches and cuts.
"""

import os

import pytest

from tests.hosts import what_is_missing
from tests.mount.conftest import seed
from tests.soak.exercising import Exercise
from tests.soak.soaking import ERAS, Soak
from tests.soak.switching import PEER_TIMEOUT_S, Switches

__all__ = ["seed"]
SECONDS = float(os.environ.get("FUSEMIRROR_SOAK_S", "40"))
EXERCISE_S = float(os.environ.get("FUSEMIRROR_EXERCISE_S", "8"))
SWITCHES = int(os.environ.get("FUSEMIRROR_SWITCHES", "6"))


def test_real_trouble_loses_nothing_that_was_acknowledged_and_stops_nobody_for_ever(seed: int) -> None:
    if missing := what_is_missing():
        pytest.skip(missing)
    soak = Soak(SECONDS, seed)
    soak.run(ERAS[seed % len(ERAS) :] + ERAS[: seed % len(ERAS)])
    assert soak.steps


def test_no_switch_ends_with_a_host_alone_or_keeps_a_program_waiting_as_a_lost_host_does() -> None:
    """That none is felt for a second, simulation/test_switch.py holds, where time is not the machine's."""
    if missing := what_is_missing():
        pytest.skip(missing)
    switches = Switches(SWITCHES, wait_max_s=PEER_TIMEOUT_S)
    switches.run()
    print(switches.summary())
    assert len(switches.waits_s) == SWITCHES


def test_programs_that_know_every_answer_are_told_nothing_else_under_switches_and_cuts(seed: int) -> None:
    if missing := what_is_missing():
        pytest.skip(missing)
    exercise = Exercise(EXERCISE_S, seed, switch_every_s=2.0, cuts=True)
    exercise.run()
    print(exercise.summary())
    assert exercise.calls
