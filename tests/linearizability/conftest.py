"""Two mounted hosts with short limits, and what a history of theirs must fulfil."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts import TwoHosts, what_is_missing
from tests.linearizability.history import Operation, save
from tests.linearizability.model import violations
from tests.mount.conftest import seed

__all__ = ["seed"]

PEER_TIMEOUT_S = 1.0
IO_TIMEOUT_S = 3.0

Judge = Callable[[Sequence[Operation]], None]


@contextmanager
def two_hosts(*program: str, **settings: str) -> Iterator[TwoHosts]:
    """Not mounted yet. `program` mounts, instead of the product's own."""
    if missing := what_is_missing():
        pytest.skip(missing)
    with TwoHosts() as hosts:
        try:
            hosts.create_and_join(peer_timeout=PEER_TIMEOUT_S, io_timeout=IO_TIMEOUT_S, **settings)
            for host in hosts:
                host.program = program or host.program
            yield hosts
        finally:
            for host in hosts:
                print(f"--- log of {host.name} ---\n{host.log()[-20_000:]}")


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """For all tests of a module, which leave it mounted and normal; compared by the oracle in the end.

    The module says by ACCESS how the hosts have access.
    """
    failed_before = request.session.testsfailed
    with two_hosts(access=request.module.ACCESS) as hosts:
        hosts.backup.expect_warnings("EIO: ")
        hosts.mount()
        yield hosts
        if request.session.testsfailed == failed_before:
            hosts.check()
            assert not hosts.unexpected_warnings()


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Fail unless the history is linearizable; it is kept in a file then."""

    def assert_linearizable(history: Sequence[Operation]) -> None:
        if found := violations(history):
            path = tmp_path / "history.jsonl"
            save(history, path)
            said = "\n".join(f"{key}: {failure}" for key, failure in found.items())
            raise AssertionError(f"{said}\nAgain: python -m tests.linearizability {path}")

    return assert_linearizable
