"""What holds for every test: a warning in the product's log fails the test that did not announce it."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the product.
settings.register_profile("fusemirror", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fusemirror")


@pytest.fixture(autouse=True)
def _no_unexpected_warnings(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    if request.node.get_closest_marker("expects_warnings"):
        return
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    found = [
        f"{record.name}: {record.getMessage()}"
        for record in records
        if record.name.startswith("fusemirror") and record.levelno >= logging.WARNING
    ]
    assert not found, "logged, but not announced with @pytest.mark.expects_warnings"
