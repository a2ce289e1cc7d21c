"""Two mounted hosts; each test that wrote ends with the oracle: both volumes clean, and the same."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.hosts import Host, TwoHosts, what_is_missing

# Short, so that a test of a lost peer is; the kernel's scheduler alone never takes a second.
PEER_TIMEOUT_S = 1.0
IO_TIMEOUT_S = 20.0


@contextmanager
def checked(
    request: pytest.FixtureRequest,
    *,
    peer_timeout_s: float = PEER_TIMEOUT_S,
    prepare: Callable[[TwoHosts], None] = lambda _: None,
    **settings: str | float,
) -> Iterator[TwoHosts]:
    """Two mounted hosts, prepared before; unless a test failed meanwhile, they converge and are compared in
    the end."""
    if missing := what_is_missing():
        pytest.skip(missing)
    failed_before = request.session.testsfailed
    with TwoHosts() as hosts:
        try:
            hosts.create_and_join(peer_timeout=peer_timeout_s, io_timeout=IO_TIMEOUT_S, **settings)
            prepare(hosts)
            hosts.mount()
            yield hosts
            if request.session.testsfailed == failed_before:
                hosts.converge()
                hosts.check()
                assert not hosts.unexpected_warnings()
        finally:
            for host in hosts:
                print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """A pair of its own for a test that breaks things; whatever it broke is mended afterwards."""
    with checked(request) as pair:
        yield pair


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """A pair for all tests of a module that leave it as it was; each takes names of its own."""
    with checked(request) as shared:
        yield shared


@pytest.fixture(params=["at the primary", "at the backup"])
def here(request: pytest.FixtureRequest, pair: TwoHosts) -> Host:
    """The host where something is done."""
    return pair.primary if request.param == "at the primary" else pair.backup


@pytest.fixture
def there(here: Host, pair: TwoHosts) -> Host:
    """The other one, where it is looked at."""
    return pair.backup if here is pair.primary else pair.primary


@pytest.fixture(scope="session")
def seed() -> int:
    """What the random choices come from: the same in each run, so that it says something of what changed;
    FUSEMIRROR_SEED for others."""
    chosen = int(os.environ.get("FUSEMIRROR_SEED", "0"))
    print(f"FUSEMIRROR_SEED={chosen}")
    return chosen
