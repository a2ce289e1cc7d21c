"""What the tests of the channel share: two hosts, and open sessions between them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from fusemirror import limits
from fusemirror.channel.session import Session, open_session
from fusemirror.channel.tls import Credentials, TlsNetwork
from fusemirror.channel.transport import Network, TcpNetwork, Transport
from fusemirror.identifiers import ChangeNumber
from fusemirror.keys import CERTIFICATE, KEY, PEER_CERTIFICATE, KeyPair, make_key_pair
from fusemirror.protocol.messages import Hello, History
from tests.memory_network import MemoryNetwork

PEER_TIMEOUT = 10.0
HISTORY = History(
    generations=(),
    journal_number=ChangeNumber(0),
    journal_first=ChangeNumber(1),
    complete=True,
    compare_all=False,
)
PRIMARY = Hello(
    protocol=1,
    protocol_min=1,
    path="mirror",
    filesystem=b"filesystem",
    host=b"host of primary",
    peer=b"host of backup",
    instance=b"instance of primary",
    role="primary",
    history=HISTORY,
    peer_timeout_s=PEER_TIMEOUT,
)
BACKUP = msgspec.structs.replace(
    PRIMARY, host=PRIMARY.peer, peer=PRIMARY.host, instance=b"instance of backup", role="backup"
)

MakeHello = Callable[..., Hello]
TransportPair = tuple[Transport, Transport]
SessionPair = tuple[Session, Session]
Both = tuple[Credentials, Credentials]
Connect = Callable[[], Awaitable[TransportPair]]


@pytest.fixture(scope="session")
def primary_hello() -> MakeHello:
    """Makes the Hello of the primary, with other fields as named."""
    return lambda **other: msgspec.structs.replace(PRIMARY, **other)


@pytest.fixture(scope="session")
def backup_hello() -> MakeHello:
    """Makes the Hello of the backup, with other fields as named."""
    return lambda **other: msgspec.structs.replace(BACKUP, **other)


@pytest.fixture
def memory() -> MemoryNetwork:
    return MemoryNetwork(Random(1))


async def connect_pair(dialing: Network, listening: Network, host: str) -> TransportPair:
    listener: Any = await listening.listen(host, 0)
    dialed = await dialing.connect(host, listener.port)
    accepted = await listener.accept()
    listener.close()
    return dialed, accepted


@pytest.fixture
async def memory_pair(memory: MemoryNetwork) -> AsyncIterator[TransportPair]:
    """A stream from host alpha to host beta, in memory: for tests with a MockClock."""
    pair = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    yield pair
    for transport in pair:
        transport.close()


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Of alpha and of beta, who know each other."""
    alpha, beta = make_key_pair("alpha"), make_key_pair("beta")
    return credentials_of(tmp_path_factory.mktemp("keys"), alpha, beta, known=alpha)


def credentials_of(directory: Path, alpha: KeyPair, beta: KeyPair, *, known: KeyPair) -> Both:
    """Of alpha, who knows beta, and of beta, who takes alpha for who has the `known` certificate."""
    for name in ("alpha", "beta"):
        (directory / name).mkdir()
    of_alpha = write_keys(directory / "alpha", alpha, beta.certificate)
    of_beta = write_keys(directory / "beta", beta, known.certificate)
    return Credentials(of_alpha), Credentials(of_beta)


def write_keys(directory: Path, own: KeyPair, peer_certificate: str) -> Path:
    """As `create` and `join` leave them; the directory."""
    (directory / CERTIFICATE).write_text(own.certificate)
    (directory / KEY).write_text(own.key)
    (directory / PEER_CERTIFICATE).write_text(peer_certificate)
    return directory


async def open_pair(pair: TransportPair) -> TransportPair:
    async with trio.open_nursery() as nursery:
        for transport in pair:
            nursery.start_soon(transport.open)
    return pair


async def receive_bytes(transport: Transport, size: int) -> bytes:
    """At least so many; they come in pieces."""
    received = b""
    while len(received) < size:
        piece = await transport.receive(limits.RECEIVE_BYTES)
        assert piece, "the stream ended too soon"
        received += piece
    return received


@pytest.fixture(params=["tcp", "tcp6", "memory", "tls", "tls in memory"])
async def transport_pair(
    request: pytest.FixtureRequest, memory: MemoryNetwork, credentials: Both
) -> AsyncIterator[TransportPair]:
    """A stream of each kind, open: (the end that dialed, the end that accepted)."""
    networks: list[Network] = [TcpNetwork(unacknowledged_s=PEER_TIMEOUT)] * 2
    address = "::1" if request.param == "tcp6" else "127.0.0.1"
    if request.param.endswith("memory"):
        networks, address = [memory.host("alpha"), memory.host("beta")], "beta"
    if request.param.startswith("tls"):
        networks = [TlsNetwork(*each) for each in zip(networks, credentials, strict=True)]
    pair = await open_pair(await connect_pair(networks[0], networks[1], address))
    yield pair
    for transport in pair:
        transport.close()


async def shake_hands(pair: TransportPair, primary: Hello, backup: Hello) -> SessionPair:
    opened: dict[bool, Session] = {}

    async def open_one(transport: Transport, ours: Hello, dialer: bool) -> None:
        opened[dialer] = await open_session(transport, ours, dialer=dialer, peer_timeout=PEER_TIMEOUT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_one, pair[0], primary, True)
        nursery.start_soon(open_one, pair[1], backup, False)
    return opened[True], opened[False]


@pytest.fixture
async def session_pair(transport_pair: TransportPair) -> SessionPair:
    """Sessions over a stream of each kind, not served: (of the primary, of the backup)."""
    return await shake_hands(transport_pair, PRIMARY, BACKUP)


@pytest.fixture
async def memory_sessions(memory_pair: TransportPair) -> SessionPair:
    """Sessions in memory, not served, for tests with a MockClock: (of the primary, of the backup)."""
    return await shake_hands(memory_pair, PRIMARY, BACKUP)
