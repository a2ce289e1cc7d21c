"""Two codes are compared round by round: a machine that slows down between rounds changes no ratio."""

from tests.bench.against import HERE, Compared
from tests.bench.jobs import CallJob, Figure


def test_the_ratio_is_that_of_the_same_rounds() -> None:
    job = CallJob(Figure("getattr", "attributes asked for", "/s", {}))
    rates = {HERE: [300.0, 30.0, 160.0], "before": [100.0, 10.0, 80.0]}
    values = {
        (figure.key, host, code): rates[code]
        for figure in job.figures
        for host in ("primary", "backup")
        for code in rates
    }
    lines = Compared("before", values).table([job]).splitlines()
    assert len(lines) == 1 + 2 * 2
    assert lines[1].split()[-6:] == ["/s", "160", "80", "3.00", "2.00", "3.00"]
