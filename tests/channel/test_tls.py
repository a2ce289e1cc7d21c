"""TLS: both ends know each other or nothing is said, and nobody between them reads or changes anything."""

import re
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusemirror import limits
from fusemirror.channel.session import open_session
from fusemirror.channel.tls import Credentials, TlsNetwork, TlsTransport
from fusemirror.channel.transport import TcpNetwork, Transport
from fusemirror.errors import BadKeys, ChannelError, ConnectionLost, HandshakeRefused, PeerRefused
from fusemirror.keys import CERTIFICATE, KEY, PEER_CERTIFICATE, KeyPair, make_key_pair
from fusemirror.protocol.framing import Buffer
from tests.channel.conftest import (
    BACKUP,
    PEER_TIMEOUT,
    PRIMARY,
    Both,
    connect_pair,
    credentials_of,
    open_pair,
    receive_bytes,
    write_keys,
)
from tests.memory_network import MemoryNetwork

Pair = tuple[Transport, Transport]
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Wire(Transport):
    """Another transport, whose bytes are seen, and changed on their way out."""

    def __init__(self, inner: Transport) -> None:
        self.peer_name = inner.peer_name
        self.peer_host = inner.peer_host
        self.seen = b""
        self.flips_next = False
        self._inner = inner

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        data = bytearray(b"".join(buffers))
        if self.flips_next:
            self.flips_next = False
            data[-1] ^= 1
        sent_bytes = self._inner.try_send([bytes(data)])
        self.seen += data[:sent_bytes]
        return sent_bytes

    async def wait_writable(self) -> None:
        await self._inner.wait_writable()

    async def receive(self, bytes_max: int) -> bytes:
        received = await self._inner.receive(bytes_max)
        self.seen += received
        return received

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def stranger(tmp_path: Path, credentials: Both) -> Credentials:
    """Knows beta's certificate, and has one that nobody knows."""
    beta = ssl.DER_cert_to_PEM_cert(credentials[0].peer_certificate)
    return Credentials(write_keys(tmp_path, make_key_pair("alpha"), beta))


def tls_over(pair: Pair, both: Both) -> Pair:
    return TlsTransport(pair[0], both[0], dialer=True), TlsTransport(pair[1], both[1], dialer=False)


async def outcomes(pair: Pair) -> list[ChannelError | None]:
    """How the opening of each end ends; who is refused at the other end hears of it as it receives."""
    found: list[ChannelError | None] = [None, None]

    async def open_one(index: int) -> None:
        try:
            await pair[index].open()
            if index == 0:
                await pair[index].receive(1)
        except ChannelError as error:
            found[index] = error
        pair[index].close()

    async with trio.open_nursery() as nursery:
        for index in (0, 1):
            nursery.start_soon(open_one, index)
    return found


# --- who is let in --------------------------------------------------------------------------------


async def test_a_dialer_with_another_certificate_is_refused_and_told(
    memory_pair: Pair, credentials: Both, stranger: Credentials
) -> None:
    refused, refusal = await outcomes(tls_over(memory_pair, (stranger, credentials[1])))
    assert isinstance(refused, HandshakeRefused)
    assert "alert" in str(refused)
    assert isinstance(refusal, PeerRefused)
    assert str(refusal).endswith("it does not have the certificate of the other host")


async def test_a_listener_with_another_certificate_is_not_talked_to(
    memory_pair: Pair, credentials: Both, stranger: Credentials
) -> None:
    refusal, refused = await outcomes(tls_over(memory_pair, (credentials[1], stranger)))
    assert isinstance(refusal, PeerRefused)
    assert str(refusal).endswith("it does not have the certificate of the other host")
    assert isinstance(refused, HandshakeRefused)


@pytest.mark.parametrize("authority", [False, True])
async def test_what_the_known_key_has_signed_is_not_known_for_that(
    memory_pair: Pair, tmp_path: Path, authority: bool
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    alpha = key_pair(key, signed_by=key, authority=authority)
    signed = key_pair(ec.generate_private_key(ec.SECP256R1()), signed_by=key, authority=False)
    chain = KeyPair(signed.certificate + alpha.certificate, signed.key)
    both = credentials_of(tmp_path, chain, make_key_pair("beta"), known=alpha)
    refusal = (await outcomes(tls_over(memory_pair, both)))[1]
    assert isinstance(refusal, PeerRefused)


@pytest.mark.parametrize("years", [(1970, 9999), (1970, 1971), (9998, 9999)])
async def test_keys_of_another_kind_and_of_any_time_will_do(
    memory_pair: Pair, tmp_path: Path, years: tuple[int, int]
) -> None:
    """As openssl(1) makes them where fusemirror(7) tells how: Ed25519, of an authority."""
    key = ed25519.Ed25519PrivateKey.generate()
    alpha = key_pair(key, signed_by=key, authority=True, years=years)
    both = credentials_of(tmp_path, alpha, make_key_pair("beta"), known=alpha)
    dialed, accepted = await open_pair(tls_over(memory_pair, both))
    await dialed.send_all([b"hello"])
    assert await receive_bytes(accepted, 5) == b"hello"


def key_pair(
    key: PrivateKey, *, signed_by: PrivateKey, authority: bool, years: tuple[int, int] = (1970, 9999)
) -> KeyPair:
    builder = x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(id(signed_by)))]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(id(key)))]),
        key.public_key(),
        x509.random_serial_number(),
        datetime(years[0], 1, 1, tzinfo=UTC),
        datetime(years[1], 1, 1, tzinfo=UTC),
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    is_ed25519 = isinstance(signed_by, ed25519.Ed25519PrivateKey)
    certificate = builder.sign(signed_by, None if is_ed25519 else hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate.public_bytes(pem).decode(), private.decode())


@pytest.mark.parametrize(
    ("version", "known", "why"),
    [
        (ssl.TLSVersion.TLSv1_2, True, "no TLS 1.3: unsupported protocol"),
        (ssl.TLSVersion.TLSv1_3, False, "it does not have the certificate of the other host"),
    ],
)
async def test_an_older_tls_and_whoever_shows_no_certificate_are_refused(
    tmp_path: Path, version: ssl.TLSVersion, known: bool, why: str
) -> None:
    alpha = make_key_pair("alpha")
    _, beta = credentials_of(tmp_path, alpha, make_key_pair("beta"), known=alpha)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    if known:
        context.load_cert_chain(tmp_path / "alpha" / CERTIFICATE, tmp_path / "alpha" / KEY)
    listener = await TlsNetwork(TcpNetwork(unacknowledged_s=1), beta).listen("127.0.0.1", 0)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", listener.port, ssl_context=context)
    accepted = await listener.accept()

    async def dial() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(PeerRefused, match=re.escape(why)):
            await accepted.open()
        accepted.close()
    listener.close()


async def test_hosts_of_which_one_has_no_tls_say_so(memory: MemoryNetwork, credentials: Both) -> None:
    plain, listening = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    with_tls = TlsTransport(listening, credentials[1], dialer=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_lose_session, plain, True)
        with pytest.raises(PeerRefused, match="is `tls` the same on both hosts"):
            await with_tls.open()
        with_tls.close()

    dialing, plain = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    with_tls = TlsTransport(dialing, credentials[0], dialer=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_lose_session, plain, False)
        with pytest.raises(ChannelError):
            await with_tls.open()
        with_tls.close()


async def _lose_session(transport: Transport, dialer: bool) -> None:
    with pytest.raises(ChannelError):
        await open_session(transport, PRIMARY if dialer else BACKUP, dialer=dialer, peer_timeout=PEER_TIMEOUT)


async def test_who_only_looks_for_an_open_port_is_no_warning(memory_pair: Pair, credentials: Both) -> None:
    memory_pair[0].close()
    with pytest.raises(ConnectionLost, match="without a TLS handshake"):
        await TlsTransport(memory_pair[1], credentials[1], dialer=False).open()


@given(st.binary(max_size=400), st.booleans())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_bytes_open_a_stream_or_raise_anything_but_channel_errors(
    credentials: Both, sent: bytes, looks_like_tls: bool
) -> None:
    async def run() -> None:
        memory = MemoryNetwork(Random(1))
        dialed, accepted = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
        begins = b"\x16\x03\x01" + len(sent).to_bytes(2, "big") if looks_like_tls else b""
        dialed.try_send([begins + sent])
        dialed.close()
        with pytest.raises(ChannelError):
            await TlsTransport(accepted, credentials[1], dialer=False).open()
        accepted.close()

    trio.run(run)


# --- what is between them -------------------------------------------------------------------------


async def wired_pair(memory_pair: Pair, credentials: Both) -> tuple[Wire, Pair]:
    wire = Wire(memory_pair[0])
    return wire, await open_pair(tls_over((wire, memory_pair[1]), credentials))


async def test_nothing_is_in_clear_on_the_wire(memory_pair: Pair, credentials: Both) -> None:
    wire, (dialed, accepted) = await wired_pair(memory_pair, credentials)
    await dialed.send_all([b"a secret", b" of some length"])
    assert await receive_bytes(accepted, 23) == b"a secret of some length"
    assert b"secret" not in wire.seen


async def test_a_changed_byte_ends_the_stream_and_is_never_delivered(
    memory_pair: Pair, credentials: Both
) -> None:
    wire, (dialed, accepted) = await wired_pair(memory_pair, credentials)
    await dialed.send_all([b"whole"])
    assert await receive_bytes(accepted, 5) == b"whole"
    wire.flips_next = True
    await dialed.send_all([b"changed"])
    with pytest.raises(ConnectionLost, match="cannot be decrypted"):
        await accepted.receive(100)
    with pytest.raises(ConnectionLost):
        await accepted.receive(100)


async def test_a_record_that_is_cut_short_is_not_delivered(memory_pair: Pair, credentials: Both) -> None:
    wire, (dialed, accepted) = await wired_pair(memory_pair, credentials)
    dialed.try_send([b"whole"])
    before = len(wire.seen)
    dialed.try_send([b"cut short"])
    record = wire.seen[before:]
    memory_pair[0].try_send([record[:-1]])  # after a second record that is not the next one
    wire.close()
    assert await receive_bytes(accepted, 14) == b"wholecut short"
    assert await accepted.receive(100) == b""


@given(
    messages=st.lists(st.lists(st.integers(0, 100_000), min_size=1, max_size=4), max_size=8),
    seed=st.integers(0, 1 << 32),
    buffer_bytes=st.sampled_from([1, 100, 70_000, 1 << 20]),
)
@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
def test_all_bytes_arrive_in_order_however_little_is_taken_at_once(
    credentials: Both, messages: list[list[int]], seed: int, buffer_bytes: int
) -> None:
    random = Random(seed)
    sent = [[random.randbytes(size) for size in sizes] for sizes in messages]
    whole = b"".join(b"".join(buffers) for buffers in sent)

    async def run() -> None:
        memory = MemoryNetwork(random, latency_s=0.0, jitter_s=0.0)
        networks = [
            TlsNetwork(memory.host(name), each)
            for name, each in zip(("alpha", "beta"), credentials, strict=True)
        ]
        dialed, accepted = await open_pair(await connect_pair(networks[0], networks[1], "beta"))
        memory.short_sends, memory.buffer_bytes = 0.5, max(buffer_bytes, len(whole) // 200)

        async def send() -> None:
            for buffers in sent:
                await dialed.send_all(buffers)
            dialed.close()

        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while piece := await accepted.receive(random.choice((1000, limits.RECEIVE_BYTES))):
                received += piece
        assert received == whole
        accepted.close()

    trio.run(run)


# --- the keys -------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(tmp_path, make_key_pair("alpha"), make_key_pair("beta").certificate)


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, PEER_CERTIFICATE])
@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
)
def test_keys_that_are_missing_or_damaged_are_refused(keys: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (keys / name).unlink()
    else:
        (keys / name).write_bytes(content)
    with pytest.raises(BadKeys) as caught:
        Credentials(keys)
    assert str(keys) in str(caught.value)
    assert caught.value.exit_code == 10
    assert "\n" not in str(caught.value)


def test_a_key_of_another_certificate_is_refused(keys: Path) -> None:
    (keys / KEY).write_text(make_key_pair("alpha").key)
    with pytest.raises(BadKeys, match="mismatch"):
        Credentials(keys)


def test_a_key_behind_a_password_is_refused_and_asks_nobody(keys: Path) -> None:
    key = serialization.load_pem_private_key((keys / KEY).read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (keys / KEY).write_bytes(locked)
    with pytest.raises(BadKeys, match="password"):
        Credentials(keys)
