"""What holds for every test: a warning in the product's log fails the test that did not announce it.

bin/test runs two workers. Tests with real mounts run one after the other in one of them, so that they do not
compete for the machine; the other takes everything else meanwhile and stands back for them (nice). Tests that
mostly wait until a host is taken for lost compete for little, and are among what that one takes. What takes
longest comes first, so that both workers end at the same time.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from fusemirror.mirror.states import MIRROR_LOST

# How long an example takes says how busy the machine is, and nothing of the product. Each run has the same
# examples, so that it says something of what changed; --hypothesis-profile=chance draws others.
settings.register_profile("chance", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fusemirror", settings.get_profile("chance"), derandomize=True)
settings.load_profile("fusemirror")

MOUNTING = {"cli", "crash", "demo", "linearizability", "mount", "soak"}  # directories whose tests mount
WAITING = {f"tests/mount/test_{name}.py" for name in ("failures", "peer_away", "witness")}
LONGEST = ("mount", "simulation", "power", "fuzz", "volume")  # of what does not mount together
UNMEASURED = MOUNTING | {"bench", "fuzz", "power", "simulation"}  # to measure coverage slows a test by half
STAND_BACK_NICE = 5  # a third of the weight: deadlines of unit tests still hold beside a busy mount


def _mounts(path: str) -> bool:
    """Whether a test, by its path from the checkout, mounts."""
    return Path(path).parts[1] in MOUNTING


def _mounts_together(path: str) -> bool:
    """Whether it does so in the worker of all tests that mount."""
    return _mounts(path) and path not in WAITING


def _turn(item: pytest.Item) -> int:
    """When it comes in `bin/test`: the lowest number first."""
    path = item.nodeid.partition("::")[0]
    part = Path(path).parts[1]
    if _mounts_together(path):
        return 0
    return 1 + (LONGEST.index(part) if part in LONGEST else len(LONGEST))


class _MountingTogether(LoadScopeScheduling):  # type: ignore[misc]
    """Tests that mount go to one worker, but for `WAITING`; all others by their files to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "mounting" if _mounts_together(path) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # it goes by how many they are; we, by how long they take
    return _MountingTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)
    for item in items:
        if Path(item.nodeid).parts[1] in UNMEASURED:
            item.add_marker(pytest.mark.no_cover)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:  # nobody else may become less nice again
        os.setpriority(os.PRIO_PROCESS, 0, 0 if _mounts(item.nodeid) else STAND_BACK_NICE)


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
        if record.name.startswith("fusemirror")
        and record.levelno >= logging.WARNING
        # Whoever cuts a network or kills a host means it.
        and not record.getMessage().startswith(MIRROR_LOST)
    ]
    assert not found, "logged, but not announced with @pytest.mark.expects_warnings"
