"""The bench of the modes has all twelve, and its table a line for each, on both hosts."""

from itertools import product

from tests.bench.jobs import JOBS
from tests.bench.modes import HOSTS, MODES, REFERENCE, WITHOUT_TLS, Measured


def test_there_are_all_twelve() -> None:
    kinds = product(("routed", "exclusive"), ("sync", "async"), ("lmdb", "subvolume", "memory"))
    found = [(mode["access"], mode["acknowledge"], mode["communication"]) for mode in MODES.values()]
    assert sorted(found[:12]) == sorted(kinds)
    assert list(MODES)[12:] == [WITHOUT_TLS]
    assert len(set(map(str, MODES.values()))) == len(MODES)


def test_the_table_has_the_reference_and_the_others_as_ratios_to_it() -> None:
    selected = [JOBS["randwrite"], JOBS["files"]]
    keys = [figure.key for job in selected for figure in job.figures]
    keys_shown = [key for key in keys if not key.endswith("-processor")]
    values = {(key, host, mode): 50.0 for key in keys for host in HOSTS for mode in MODES}
    values |= {(key, host, REFERENCE): 2000.0 for key in keys for host in HOSTS}
    lines = Measured(values, 1.0, [0.001]).table(selected).splitlines()
    assert "1 ms" in lines[0]
    assert not any("processor" in line for line in lines)
    for mode in MODES:
        shown = [line.removeprefix(mode).split() for line in lines if line.startswith(f"{mode} ")]
        assert shown == [["2,000" if mode == REFERENCE else "0.03"] * len(keys_shown)] * 2, mode
