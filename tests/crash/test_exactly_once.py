"""G4: a request that took effect, but whose answer was lost, is sent again and takes effect once."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from subprocess import PIPE, Popen

import pytest

from tests.hosts import Host, TwoHosts, wait_until
from tests.mount.conftest import checked

PEER_TIMEOUT_S = 4.0  # a link that answers nothing outlasts the way of the requests, on any machine

# Each would fail, or leave something else behind, if it took effect twice.
CALLS = {
    "append": "os.write(os.open('file', os.O_WRONLY | os.O_APPEND), b'one record')",
    "create": "os.open('created', os.O_CREAT | os.O_EXCL)",
    "mkdir": "os.mkdir('made')",
    "unlink": "os.unlink('file')",
    "rename": "os.rename('file', 'renamed')",
    "link": "os.link('file', 'linked')",
    "rmdir": "os.rmdir('empty')",
}
LEFT = {
    "append": {"file", "empty"},
    "create": {"file", "empty", "created"},
    "mkdir": {"file", "empty", "made"},
    "unlink": {"empty"},
    "rename": {"renamed", "empty"},
    "link": {"file", "linked", "empty"},
    "rmdir": {"file"},
}
PROGRAM = "import os, sys; print(flush=True); sys.stdin.readline(); {call}; os._exit(0)"


class Caller:
    """A program in a directory of its own, which makes one call when it is told, and ends.

    In one directory the kernel would let one call wait for the other.
    """

    def __init__(self, host: Host, name: str) -> None:
        program = (sys.executable, "-c", PROGRAM.format(call=CALLS[name]))
        place = host.mountpoint / name
        self.process = Popen(host.namespace.enter(program), cwd=place, stdin=PIPE, stdout=PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with checked(request, peer_timeout_s=PEER_TIMEOUT_S) as pair:
        yield pair


@pytest.fixture
def callers(hosts: TwoHosts) -> Iterator[dict[str, Caller]]:
    for name in CALLS:
        (hosts.primary.mountpoint / name / "empty").mkdir(parents=True)
        (hosts.primary.mountpoint / name / "file").touch()
    with ExitStack() as ending:
        made = {name: Caller(hosts.backup, name) for name in CALLS}
        for caller in made.values():
            ending.enter_context(caller.process)
            ending.callback(caller.process.kill)
        yield made


LATER: dict[str, Callable[[TwoHosts], None]] = {
    "the network comes back": lambda hosts: None,
    "the primary is killed": lambda hosts: hosts.primary.kill(),
}


@pytest.mark.parametrize("later", LATER)
def test_a_request_whose_answer_was_lost_takes_effect_once_when(
    hosts: TwoHosts, callers: dict[str, Caller], later: str
) -> None:
    before = hosts.primary.status()["change"]
    hosts.drop_from(hosts.primary)
    for caller in callers.values():
        caller.go()
    wait_until(
        lambda: hosts.primary.status()["change"] >= before + len(callers), 30.0, "the requests at the primary"
    )
    # While the link lived, TCP would bring the answers yet, even those of a process that was killed.
    wait_until(lambda: not any(host.status()["peer"]["connected"] for host in hosts), 20.0, "a lost link")
    LATER[later](hosts)
    hosts.converge()
    assert {name: caller.process.wait(30.0) for name, caller in callers.items()} == dict.fromkeys(callers, 0)
    for host in hosts:
        left = {name: {path.name for path in (host.mountpoint / name).iterdir()} for name in CALLS}
        assert left == LEFT
        assert (host.mountpoint / "append/file").read_bytes() == b"one record"
        assert (host.mountpoint / "link/linked").stat().st_nlink == 2
