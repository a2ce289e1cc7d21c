"""Shedding: strangers who flood a port are dropped by the system, and the peer's addresses never are."""

import socket
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from fusemirror.channel.shedding import Shedding, attach, detach, program
from fusemirror.channel.transport import TcpNetwork
from fusemirror.limits import SHEDDING_INTERVAL_S, SHEDDING_MAX, TURNED_AWAY_MAX, TURNED_AWAY_MIN

ALMOST_NONE = 1 << 31
PATIENCE_S = 0.2  # for what is dropped; what is not is there at once


@pytest.fixture(params=["::", "127.0.0.1"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    if request.param == "::":
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
            yield server
    else:
        with socket.create_server((request.param, 0)) as server:
            yield server


def call(listening: socket.socket, source: str) -> socket.socket:
    port = listening.getsockname()[1]
    target = "::1" if ":" in source else "127.0.0.1"
    return socket.create_connection((target, port), timeout=PATIENCE_S, source_address=(source, 0))


def answer(listening: socket.socket, caller: socket.socket) -> socket.socket:
    """The other end of a call; those that came before are closed."""
    while True:
        accepted, address = listening.accept()
        if address[1] == caller.getsockname()[1]:
            return accepted
        accepted.close()


def test_strangers_are_dropped_and_the_peer_is_not(listening: socket.socket) -> None:
    call(listening, "127.0.0.7").close()
    attach(listening, program(["127.0.0.3", "fe80::1", "127.0.0.4", "no address"], ALMOST_NONE))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            call(listening, "127.0.0.7")
    for source in ("127.0.0.3", "127.0.0.4"):
        with call(listening, source) as peer, answer(listening, peer) as accepted:
            detach(accepted)
            peer.sendall(b"both ways")
            assert accepted.recv(100) == b"both ways"
            accepted.sendall(b"and back")
            assert peer.recv(100) == b"and back"
    detach(listening)
    call(listening, "127.0.0.7").close()


def test_an_address_of_ipv6_is_known_by_all_its_words() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        attach(server, program(["::1", "127.0.0.3"], ALMOST_NONE))
        call(server, "::1").close()
        call(server, "127.0.0.3").close()
        attach(server, program(["::2", "1::1"], ALMOST_NONE))
        for source in ("::1", "127.0.0.3"):
            with pytest.raises(TimeoutError):
                call(server, source)


@pytest.mark.parametrize("before", [True, False])
async def test_a_connection_is_taken_while_others_are_dropped(before: bool) -> None:
    listener = await TcpNetwork(unacknowledged_s=5).listen("127.0.0.1", 0)
    known: list[str] = ["127.0.0.3"]
    listener.spare(lambda: known)
    flood = partial(listener._shedding.note, TURNED_AWAY_MAX + 1)
    if not before:
        flood(0.0)
    with socket.create_connection(("127.0.0.1", listener.port), source_address=("127.0.0.3", 0)) as peer:
        if before:
            flood(0.0)
        assert listener._shedding.one_in > 1
        with trio.fail_after(5):
            accepted = await listener.accept()
            peer.sendall(b"hello")
            assert await accepted.receive(100) == b"hello"
        accepted.close()
    listener.close()


def test_a_chance_of_one_is_everybody(listening: socket.socket) -> None:
    attach(listening, program([], 1))
    call(listening, "127.0.0.7").close()


def test_it_follows_the_flood_and_ends_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        shedding = Shedding(server, lambda: ["127.0.0.3"])
        now = 1000.0
        shedding.note(0, now)
        shedding.note(TURNED_AWAY_MAX, now + SHEDDING_INTERVAL_S / 2)
        assert shedding.one_in == 1, "a few are nothing"
        for _ in range(10):
            shedding.note(TURNED_AWAY_MAX + 1, now + SHEDDING_INTERVAL_S / 2)
        assert shedding.one_in == SHEDDING_MAX
        assert shedding.patience_s == SHEDDING_INTERVAL_S
        now += 2 * SHEDDING_INTERVAL_S
        shedding.note(TURNED_AWAY_MIN, now)
        assert shedding.one_in == SHEDDING_MAX, "no more is to come through"
        while shedding.one_in > 1:
            now += SHEDDING_INTERVAL_S
            before = shedding.one_in
            shedding.note(0, now)
            assert shedding.one_in < before
        call(server, "127.0.0.7").close()


def test_an_address_that_the_peer_is_met_at_meanwhile_is_let_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = ["127.0.0.3"]
        shedding = Shedding(server, lambda: known)
        now = 1000.0
        for _ in range(10):
            shedding.note(TURNED_AWAY_MAX + 1, now)
        known.append("127.0.0.4")
        now += SHEDDING_INTERVAL_S
        shedding.note(TURNED_AWAY_MIN, now)
        assert shedding.one_in == SHEDDING_MAX, "the flood goes on"
        attempts = [call(server, "127.0.0.4") for _ in range(3)]
        for each in attempts:
            each.close()
