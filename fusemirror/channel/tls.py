"""TLS over any transport: both hosts show a certificate, and each knows the other's (design.md G7).

Only TLS 1.3 is spoken, and only with the certificate that stands in the keys of the filesystem, and the one
that is to follow it while keys are renewed: no authority is asked, and names and dates in it say nothing. A
stranger learns no more than that a port is open.
Source: RFC 8446; Python's ssl.SSLObject, which does no I/O.
"""

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from fusemirror import limits
from fusemirror.channel.keyring import certificates_in
from fusemirror.channel.transport import Listener, Network, Take, Transport, drop_sent, everybody
from fusemirror.errors import BadKeys, ChannelError, ConnectionLost, HandshakeRefused, PeerRefused
from fusemirror.keys import CERTIFICATE, KEY, PEER_CERTIFICATE, PEER_NEXT, REPLACED
from fusemirror.protocol.framing import Buffer
from fusemirror.settings import Address

_RECORD_BYTES = 16 * limits.KIB  # of plain text, at most
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, X509_VERIFY_PARAM_set_flags(3)
_PIECE_BYTES = 2 * _RECORD_BYTES  # encrypted at once: more, and the other end has nothing to do meanwhile


class Credentials:
    """The keys of one filesystem on one host, ready to be used for either end of a connection."""

    def __init__(self, directory: Path) -> None:
        """Read them. `BadKeys` says what is wrong with them."""
        if not directory.exists():  # a filesystem that was made before there was TLS has none
            raise BadKeys(
                directory,
                "there are none; set `tls = false` on both hosts, or make keys as KEYS BY HAND in "
                "fusemirror-tasks(7) says",
            )
        try:
            for name in (CERTIFICATE, KEY):  # OpenSSL does not say which of them is not there
                (directory / name).read_bytes()
            self.peer_certificate = ssl.PEM_cert_to_DER_cert((directory / PEER_CERTIFICATE).read_text())
            self.peer_certificates = {self.peer_certificate, *_all_in(directory / PEER_NEXT)}
            """What the other host may show; more than one while keys are renewed."""
            self.replaced = _all_in(directory / REPLACED) - self.peer_certificates
            """What hosts show in whose place there is another now."""
            self._client = self._context(ssl.PROTOCOL_TLS_CLIENT, directory)
            self._server = self._context(ssl.PROTOCOL_TLS_SERVER, directory)
            # They are let in as far as to be told: a host that is refused without a word would go on alone.
            for each in self.replaced:
                self._server.load_verify_locations(cadata=each)
        except ssl.SSLError as error:
            raise BadKeys(directory, _words(error)) from error
        except OSError as error:
            raise BadKeys(directory, f"{Path(error.filename).name}: {error.strerror}") from error
        except ValueError as error:
            raise BadKeys(directory, f"{PEER_CERTIFICATE}: {error}") from error
        self._server.num_tickets = 0  # a session is never taken up again

    def _context(self, protocol: int, directory: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate is known, so its names need not be
        context.verify_mode = ssl.CERT_REQUIRED
        # Whoever has signed it, and whatever the clock of either host says.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        for each in self.peer_certificates:
            context.load_verify_locations(cadata=each)
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY, password=_no_password)
        return context

    def wrap(self, *, dialer: bool) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
        """One end of a new connection, with what it reads from and what it writes to."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = self._client if dialer else self._server
        return context.wrap_bio(incoming, outgoing, server_side=not dialer), incoming, outgoing


def _all_in(path: Path) -> set[bytes]:
    return {ssl.PEM_cert_to_DER_cert(each) for each in certificates_in(path)}


def own_certificate(directory: Path) -> str:
    """What this host shows, as PEM. `BadKeys` where there is none that can be used."""
    Credentials(directory)
    return (directory / CERTIFICATE).read_text()


class TlsTransport(Transport):
    """A transport, which it owns, with everything in it encrypted."""

    def __init__(self, inner: Transport, credentials: Credentials, *, dialer: bool) -> None:
        self.peer_name = inner.peer_name
        self.peer_host = inner.peer_host
        self._inner = inner
        self._credentials = credentials
        self._dialer = dialer
        self._tls, self._incoming, self._outgoing = credentials.wrap(dialer=dialer)
        self._unsent: Buffer = b""  # encrypted
        # Of plain text in that, which nobody was told that it was taken. A record of it may have gone whole.
        self._owed_bytes = 0
        self._holds_more = True  # than was decrypted; the handshake may have brought some
        self._heard = False  # something of the other end's was decrypted

    async def open(self) -> None:
        await self._inner.open()
        while not self._shake_hands():
            await self._send_pending()
            await self._feed(limits.HANDSHAKE_BYTES_MAX)
        await self._send_pending()
        shown = self._tls.getpeercert(binary_form=True)
        self.replaced = shown in self._credentials.replaced and not self._dialer
        if shown not in self._credentials.peer_certificates and not self.replaced:
            raise PeerRefused(self.peer_name, _STRANGER)

    def _shake_hands(self) -> bool:
        """Whether that is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLEOFError:
            raise ConnectionLost(self.peer_name, "it ended without a TLS handshake") from None
        except ssl.SSLError as error:
            with suppress(ConnectionLost):
                self._flush()  # the alert that tells the other end
            raise self._refusal(error) from error
        return True

    def _refusal(self, error: ssl.SSLError) -> ChannelError:
        words = _words(error)
        if "alert" in words:  # from the other end
            return HandshakeRefused(self.peer_name, f"{words}; are the keys of one `create`?")
        if isinstance(error, ssl.SSLCertVerificationError) or "certificate" in words:
            return PeerRefused(self.peer_name, _STRANGER)
        return PeerRefused(self.peer_name, f"no TLS 1.3: {words}; is `tls` the same on both hosts?")

    async def _send_pending(self) -> None:
        while not self._flush():
            await self._inner.wait_writable()

    def _flush(self) -> bool:
        """Whether all that is encrypted has gone."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = self._outgoing.read()
            sent_bytes = self._inner.try_send((self._unsent,))
            if sent_bytes < len(self._unsent):
                self._unsent = memoryview(self._unsent)[sent_bytes:]
                return False
            self._unsent = b""
        return True

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        if self._unsent and not self._flush():
            return 0
        taken_bytes, self._owed_bytes = self._owed_bytes, 0
        rest = drop_sent(buffers, taken_bytes) if taken_bytes else buffers
        while rest:
            if sum(map(len, rest)) > _PIECE_BYTES:
                piece, rest = _first_piece(rest)
            else:  # small ones go together: each record costs microseconds
                piece, rest = b"".join(rest), ()
            try:
                written_bytes = self._tls.write(piece)
            except ssl.SSLError as error:
                raise ConnectionLost(self.peer_name, f"TLS: {_words(error)}") from error
            assert written_bytes == len(piece), "there is always room in memory"
            if not self._flush():
                self._owed_bytes = len(piece)
                break
            taken_bytes += len(piece)
        return taken_bytes

    async def wait_writable(self) -> None:
        await self._inner.wait_writable()

    async def receive(self, bytes_max: int) -> bytes:
        if self._holds_more:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._holds_more:
                await self._feed(bytes_max)
            received = self._decrypt(bytes_max)
            if received is not None:
                return received

    async def receive_with(self, bytes_max: int, take: Take) -> None:
        def take_decrypted(encrypted: bytes | None) -> bool:
            if encrypted is not None:
                self._put(encrypted)
            while (received := self._decrypt(bytes_max)) is not None:
                if take(received):
                    return True
                if not self._holds_more:
                    break
            return False

        if self._holds_more:
            await trio.lowlevel.checkpoint()
            if take_decrypted(None):
                return
        await self._inner.receive_with(bytes_max, take_decrypted)

    async def _feed(self, bytes_max: int) -> None:
        self._put(await self._inner.receive(bytes_max))

    def _put(self, encrypted: bytes) -> None:
        if encrypted:
            self._incoming.write(encrypted)
        else:
            self._incoming.write_eof()

    def _decrypt(self, bytes_max: int) -> bytes | None:
        """What has arrived, b"" at the end; None where more must arrive first."""
        pieces: list[bytes] = []
        left_bytes = bytes_max
        self._holds_more = False
        try:
            while piece := self._tls.read(asked_bytes := min(_RECORD_BYTES, left_bytes)):
                pieces.append(piece)
                left_bytes -= len(piece)
                # SSL_read(3) gives of one record: what is shorter than was asked for leaves nothing of it.
                cut = len(piece) == asked_bytes and self._tls.pending() > 0
                self._holds_more = cut or self._incoming.pending > 0
                if not left_bytes or not self._holds_more:
                    break
        except ssl.SSLWantReadError:
            self._holds_more = False
            if not pieces:
                return None
        except ssl.SSLEOFError:
            self._holds_more = False  # frames say for themselves whether they are whole
        except ssl.SSLError as error:
            if not self._heard:
                raise self._refusal(error) from error
            self.close()
            raise ConnectionLost(self.peer_name, f"what came cannot be decrypted: {_words(error)}") from error
        self._heard = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def acknowledged_bytes(self) -> int:
        return self._inner.acknowledged_bytes()

    def queued_bytes(self) -> int:
        return self._inner.queued_bytes()

    def untold_bytes(self) -> int:
        return self._owed_bytes

    @property
    def local_name(self) -> str | None:
        return self._inner.local_name

    def close(self) -> None:
        self._inner.close()


class TlsListener(Listener):
    """Accepts at once; whoever takes a stream opens it, so that a slow stranger keeps nobody out."""

    def __init__(self, inner: Listener, network: "TlsNetwork") -> None:
        self._inner = inner
        self._network = network

    @property
    def port(self) -> int:
        """As the other network's listener has it."""
        port: int = self._inner.port  # type: ignore[attr-defined]
        return port

    async def accept(self, admits: Callable[[str], bool] = everybody) -> TlsTransport:
        accepted = await self._inner.accept(admits)
        return TlsTransport(accepted, self._network.credentials, dialer=False)

    def spare(self, known: Callable[[], Iterable[str]]) -> None:
        self._inner.spare(known)

    def close(self) -> None:
        self._inner.close()


class TlsNetwork(Network):
    """Another network, with everything encrypted and both hosts known to each other."""

    def __init__(self, inner: Network, credentials: Credentials) -> None:
        self._inner = inner
        self.credentials = credentials
        """Those of the next connection; others may take their place at any time."""

    async def look_up(self, host: str, port: int) -> list[Address]:
        return await self._inner.look_up(host, port)

    async def connect(self, host: str, port: int) -> TlsTransport:
        return TlsTransport(await self._inner.connect(host, port), self.credentials, dialer=True)

    async def listen(self, host: str, port: int) -> TlsListener:
        return TlsListener(await self._inner.listen(host, port), self)


def _first_piece(buffers: Sequence[Buffer]) -> tuple[Buffer, Sequence[Buffer]]:
    """What is encrypted at once of more than that, and the rest."""
    rest = drop_sent(buffers, _PIECE_BYTES)
    before = len(buffers) - len(rest)
    part = memoryview(buffers[before])[: -len(rest[0])]
    return b"".join((*buffers[:before], part)) if before else part, rest


_STRANGER = "it does not have the certificate of the other host"


def _words(error: ssl.SSLError) -> str:
    """OpenSSL's name of an error, for people."""
    return (error.reason or str(error)).lower().replace("_", " ")


def _no_password() -> str:
    """Instead of asking a person in front of a terminal."""
    raise ValueError("the key is locked with a password")
