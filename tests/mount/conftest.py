"""Two mounted hosts for a test, and the oracle at its end: both volumes clean, and both the same."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts import TwoHosts, what_is_missing

_FAILED = pytest.StashKey[bool]()
_LOG_SHOWN = 8_000
_running: list[TwoHosts] = []

Settings = dict[str, str | int | float | bool]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = what_is_missing()
    if missing is None:
        return
    for item in items:
        if item.path.parent.name in ("mount", "crash"):
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the logs of both hosts with a failure."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        item.stash[_FAILED] = True
        for host in (host for two in _running for host in two):
            report.sections.append((f"log of {host.name}", host.log()[-_LOG_SHOWN:]))
    return report  # type: ignore[return-value]


@contextmanager
def _two_hosts(settings: Settings) -> Iterator[TwoHosts]:
    with TwoHosts() as two:
        _running.append(two)
        try:
            two.create_and_join(**settings)
            two.mount()
            yield two
        finally:
            _running.remove(two)


def _check(two: TwoHosts) -> None:
    two.converge()
    two.check()
    assert two.unexpected_warnings() == []


@pytest.fixture
def settings() -> Settings:
    """Settings of both hosts; a test or a module gives its own by a fixture of this name."""
    return {}


@pytest.fixture
def two(request: pytest.FixtureRequest, settings: Settings) -> Iterator[TwoHosts]:
    """Two hosts, mounted, for this test alone."""
    with _two_hosts(settings) as two:
        yield two
        if not request.node.stash.get(_FAILED, False):
            _check(two)


@pytest.fixture(scope="module")
def lasting() -> Iterator[TwoHosts]:
    """Two hosts, mounted, for the tests of a module, each in a directory of its own (`pair`)."""
    with _two_hosts({}) as two:
        yield two
        _check(two)


@pytest.fixture(scope="session")
def seed() -> int:
    """What the random choices of this run come from: FUSEMIRROR_SEED, or new each time."""
    chosen = int(os.environ.get("FUSEMIRROR_SEED") or int.from_bytes(os.urandom(4)))
    print(f"FUSEMIRROR_SEED={chosen}")
    return chosen
