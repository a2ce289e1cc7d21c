"""What the bench measures against can be built, and is put where it is to run."""

import os
from pathlib import Path
from subprocess import Popen

import pytest

from tests.bench.systems import System, limit_is_missing, limit_program, pinned


def test_the_mirror_in_c_is_built_without_a_warning(tmp_path: Path) -> None:
    if why := limit_is_missing():
        pytest.skip(why)
    assert os.access(limit_program(tmp_path), os.X_OK)


def test_each_host_is_on_a_core_of_its_own_and_programs_beside_the_host_that_they_use(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    with Popen(("sleep", "60")) as here, Popen(("sleep", "60")) as there:
        try:
            system = System("one", tmp_path, lambda: [here.pid], other_pids=lambda: [there.pid])
            core = pinned(system).run("taskset", "--cpu-list", "--pid", str(here.pid)).stdout
            assert core.strip().endswith(f": {cores[0]}")
            assert [os.sched_getaffinity(each.pid) for each in (here, there)] == [
                {core} for core in cores[:2]
            ]
            assert pinned(system).run("nproc").stdout == "1\n"
        finally:
            here.kill()
            there.kill()
