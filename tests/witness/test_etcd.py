"""etcd as the witness, against a real one; and what is said of one that is not there, or is none."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trio

from fusemirror.errors import WitnessUnreachable
from fusemirror.limits import MIB
from fusemirror.witness.etcd import Etcd
from fusemirror.witness.interface import WitnessRecord
from fusemirror.witness.quorum import QuorumGrant
from tests.witness.etcd_process import CLIENT_PORT, etcd, is_there

ALPHA, BETA = "a" * 32, "b" * 32
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not is_there():
        pytest.skip("no etcd: install the package etcd-server")
    with etcd(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture
def witness(endpoint: str, request: pytest.FixtureRequest) -> Etcd:
    """A record that no other test has."""
    return Etcd((endpoint,), request.node.name, TIMEOUT_S)


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An endpoint at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


async def test_a_record_that_was_never_written_names_nobody(witness: Etcd) -> None:
    assert await witness.look() == WitnessRecord("", 0)


async def test_a_swap_is_made_only_on_the_revision_that_was_seen(witness: Etcd) -> None:
    assert await witness.swap(ALPHA, 0)
    first = await witness.look()
    assert first.holder == ALPHA
    assert not await witness.swap(BETA, 0)
    assert not await witness.swap(BETA, first.revision - 1)
    assert await witness.look() == first
    assert await witness.swap(ALPHA, first.revision)
    again = await witness.look()
    assert again.revision > first.revision
    assert not await witness.swap("", first.revision)
    assert await witness.swap("", again.revision)
    assert (await witness.look()).holder == ""


async def test_of_many_that_swap_at_once_one_does(witness: Etcd) -> None:
    won: list[str] = []

    async def swap(host: str) -> None:
        if await witness.swap(host, 0):
            won.append(host)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(swap, str(number))
    assert [(await witness.look()).holder] == won


async def test_two_filesystems_have_a_record_each(endpoint: str) -> None:
    one, other = (Etcd((endpoint,), name, TIMEOUT_S) for name in ("one", "other"))
    assert await one.swap(ALPHA, 0)
    assert (await other.look()).holder == ""


async def test_an_etcd_is_the_same_by_whatever_address_and_for_every_filesystem(endpoint: str) -> None:
    by_name = endpoint.replace("127.0.0.1", "localhost")
    found = [Etcd((each,), each, TIMEOUT_S) for each in (endpoint, by_name)]
    async with trio.open_nursery() as nursery:
        for each in found:
            nursery.start_soon(each.look)
    assert found[0].identity == found[1].identity != ""


async def test_two_that_were_set_up_alike_are_two(endpoint: str, tmp_path: Path) -> None:
    """Their clusters' identities are the same, as they are made of names and addresses."""
    one = Etcd((endpoint,), "one", TIMEOUT_S)
    with etcd(tmp_path, port=CLIENT_PORT + 10) as beside:
        other = Etcd((beside,), "one", TIMEOUT_S)
        for each in (one, other):
            await each.look()
    assert one.identity != other.identity


async def test_an_endpoint_that_is_not_there_is_passed_over(endpoint: str, closed_port: str) -> None:
    witness = Etcd((closed_port, endpoint), "passed over", TIMEOUT_S)
    assert await witness.swap(ALPHA, 0)
    assert (await witness.look()).holder == ALPHA


async def test_a_swap_is_made_only_in_the_etcd_that_was_looked_at(endpoint: str, tmp_path: Path) -> None:
    """One of two by mistake: each would let a host go on alone, and neither has a record yet."""
    with etcd(tmp_path, port=CLIENT_PORT + 10) as beside:
        witness = Etcd((beside, endpoint), "looked at", TIMEOUT_S)
        assert await witness.look() == WitnessRecord("", 0)
    assert not await witness.swap(ALPHA, 0)
    assert await witness.look() == WitnessRecord("", 0)
    assert await witness.swap(ALPHA, 0)


async def test_that_nobody_answers_is_said_with_the_endpoint(closed_port: str) -> None:
    with pytest.raises(WitnessUnreachable, match=closed_port):
        await Etcd((closed_port,), "none", TIMEOUT_S).look()


Write = Callable[[bytes], object]
_NONE: Mapping[str, str] = {}


@contextmanager
def other(
    body: bytes | Callable[[Write], None], status: int = 200, headers: Mapping[str, str] = _NONE
) -> Iterator[str]:
    """The endpoint of a server that answers so, whatever it is asked; `body` may write what it wants to."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # who asked has enough
                body(self.wfile.write) if callable(body) else self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_a_server_that_is_no_etcd_is_not_believed() -> None:
    with other(b'{"greeting": "hello"}') as endpoint, pytest.raises(WitnessUnreachable, match="no etcd"):
        await Etcd((endpoint,), "none", TIMEOUT_S).look()


_ROWS = b'{"response_range": {"kvs": [{"mod_revision": %s}]}}'


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, b"[" * 50_000, {}),
        (200, b'{"header": {}, "responses": [%s, %s]}' % (_ROWS % b"1e999", _ROWS % b"1"), {}),
        (303, b"", {"Location": "javascript:1"}),
    ],
    ids=["nested too deeply", "a number beyond all", "sent on to nowhere"],
)
async def test_no_answer_of_another_server_is_an_error_of_ours(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    """It would end the mount: nothing but `WitnessUnreachable` is expected of a witness."""
    with other(body, status, headers) as endpoint, pytest.raises(WitnessUnreachable, match=endpoint):
        await Etcd((endpoint,), "none", TIMEOUT_S).look()


async def test_an_etcd_that_does_not_have_what_was_just_written_is_not_one() -> None:
    nothing = b'{"header": {}, "responses": [{"response_range": {}}, {"response_range": {}}]}'
    with other(nothing) as endpoint, pytest.raises(WitnessUnreachable, match="more than one etcd"):
        await Etcd((endpoint,), "none", TIMEOUT_S).look()


async def test_an_answer_without_an_end_is_not_held() -> None:
    written = 0

    def write_for_ever(write: Write) -> None:
        nonlocal written
        while written < 256 * MIB:
            written += MIB
            write(bytes(MIB))

    with other(write_for_ever) as endpoint, pytest.raises(WitnessUnreachable, match="more than 65536 bytes"):
        await Etcd((endpoint,), "none", TIMEOUT_S).look()
    assert written < 64 * MIB  # what the sockets hold


async def test_an_answer_that_is_packed_is_not_unpacked() -> None:
    """A thousandth of it comes, and all of it would be held."""
    rows = _ROWS % b"1"
    bomb = gzip.compress(b'{"header": {}, "responses": [%s, %s]}' % (rows, rows) + b" " * 16 * MIB)
    headers = {"Content-Encoding": "gzip"}
    with other(bomb, headers=headers) as endpoint, pytest.raises(WitnessUnreachable, match=endpoint):
        await Etcd((endpoint,), "none", TIMEOUT_S).look()


async def test_an_endpoint_that_answers_in_drops_keeps_no_other_from_being_asked(endpoint: str) -> None:
    stopped = threading.Event()

    def drip(write: Write) -> None:
        while not stopped.wait(0.05):
            write(b" ")

    with other(drip) as slow:
        witness = Etcd((slow, endpoint), "in drops", 0.5)
        try:
            with trio.fail_after(5):
                assert await witness.look() == WitnessRecord("", 0)
        finally:
            stopped.set()


@pytest.mark.expects_warnings
async def test_an_etcd_that_was_killed_remembers_who_holds_the_record(tmp_path: Path) -> None:
    if not is_there():
        pytest.skip("no etcd: install the package etcd-server")
    with etcd(tmp_path / "data", port=23890) as endpoint:
        alpha, beta = (QuorumGrant(Etcd((endpoint,), "f", 5.0), host, 5.0) for host in (ALPHA, BETA))
        assert await alpha.ask()
    assert not await beta.ask()
    assert beta.state == "unreachable"
    with etcd(tmp_path / "data", port=23890):
        assert not await beta.ask()
        assert beta.reason == "the witness says that the other host goes on without this one"
        await alpha.give_back(lambda: True)
        assert await beta.ask()
        assert not await alpha.ask()
