"""Transports: streams of bytes between two hosts, and the networks that make them.

All streams are behind these three interfaces: TCP here, TLS (`tls.py`) beside it.
A transport does not queue: `try_send` takes what the system takes now. One wake-up per receive, and
none for a send that fits, is what makes a small mirrored write fast.
"""

import errno
import fcntl
import os
import socket
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import trio

from fusemirror import hot, limits
from fusemirror.channel.shedding import Shedding
from fusemirror.errors import AddressMissing, ConnectionLost, ListenFailed, NobodyListens, PeerUnreachable
from fusemirror.protocol.framing import Buffer
from fusemirror.settings import Address

Take = Callable[[bytes], bool]
"""Takes what has arrived; whether its task is to go on."""


class Transport(ABC):
    """One stream of bytes, in both directions. One task receives; one writes at a time."""

    peer_name: str
    """The address of the other end, for people."""
    peer_host: str
    """The same address as the network knows it, without the port: who dials from there has the same."""
    replaced = False
    """Once open: in the place of the host at the other end there is another; it is told so, and no more."""

    async def open(self) -> None:  # noqa: B027 - most have nothing to do
        """Return when the other end is known for who it is. Call it once, before anything else.

        `PeerRefused` or `HandshakeRefused` if it is not, `ConnectionLost` if the stream ends. Close it
        then, and after cancellation.
        """

    @abstractmethod
    def try_send(self, buffers: Sequence[Buffer]) -> int:
        """Write what can be written without waiting; return how many bytes that was, perhaps 0.

        What was not written must come first in the next call: it may be encrypted already. At most
        `limits.SEND_BUFFERS_MAX` buffers. `ConnectionLost` if the stream is broken or closed.
        """

    @abstractmethod
    async def wait_writable(self) -> None:
        """Return when `try_send` may take something. Cancellation: atomic.

        `ConnectionLost` if the stream is broken, or closed here meanwhile.
        """

    @abstractmethod
    async def receive(self, bytes_max: int) -> bytes:
        """At least one byte, or b"" when the other end has ended its sending.

        `ConnectionLost` if the stream is broken, or closed here meanwhile. Cancellation: atomic.
        """

    async def receive_with(self, bytes_max: int, take: Take) -> None:
        """Return when `take`, called with what `receive` would return, again and again, has returned True;
        raise what it raises. `take` must not wait: it may be called outside of any task (`hot.py`).

        `take` returns True for b"". Else as `receive`.
        """
        while not take(await self.receive(bytes_max)):
            pass

    def acknowledged_bytes(self) -> int:
        """How many bytes the other end's system has confirmed so far, 0 where nobody knows; it may count more
        than was sent here. A number that grows shows that packets get there and back."""
        return 0

    def queued_bytes(self) -> int:
        """How many bytes the system has taken that the other end's has not confirmed, as far as is known."""
        return 0

    def untold_bytes(self) -> int:
        """How many bytes may have gone beyond those that `try_send` has said to: they are the first that it
        is given next."""
        return 0

    @property
    def local_name(self) -> str | None:
        """The address of this end, for people; None where nobody knows it."""
        return None

    @abstractmethod
    def close(self) -> None:
        """End the stream at once, also for tasks that wait in it. Closing again does nothing."""

    async def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Write all bytes. After cancellation any part may be written: the stream is then of no use."""
        while buffers:
            buffers = drop_sent(buffers, self.try_send(buffers))
            if buffers:
                await self.wait_writable()


def drop_sent(buffers: Sequence[Buffer], sent_bytes: int) -> list[Buffer]:
    """What is left of the buffers when so many of their bytes have gone."""
    for index, buffer in enumerate(buffers):
        if sent_bytes < len(buffer):
            return [memoryview(buffer)[sent_bytes:], *buffers[index + 1 :]]
        sent_bytes -= len(buffer)
    return []


def everybody(_: str) -> bool:
    """The rule of a listener that turns nobody away."""
    return True


class Listener(ABC):
    @abstractmethod
    async def accept(self, admits: Callable[[str], bool] = everybody) -> Transport:
        """The next stream that someone opened from an address that `admits` lets in; others are closed.

        Cancellation: atomic. `ConnectionLost` once closed.
        """

    def spare(self, known: Callable[[], Iterable[str]]) -> None:  # noqa: B027 - most cannot be flooded
        """Whoever else floods the port may be kept from it, but nobody from these addresses."""

    @abstractmethod
    def close(self) -> None:
        """Listen no more. Closing again does nothing."""


class Network(ABC):
    """Where transports come from; one per host."""

    async def look_up(self, host: str, port: int) -> list[Address]:
        """The addresses that a name stands for now, the best first; an address stands for itself.
        `PeerUnreachable` where nobody knows the name."""
        return [Address(host, port)]

    @abstractmethod
    async def connect(self, host: str, port: int) -> Transport:
        """A new stream. `PeerUnreachable` if there is none; after cancellation nothing is left."""

    @abstractmethod
    async def listen(self, host: str, port: int) -> Listener:
        """Listen there; an empty host means all addresses. `ListenFailed` if that cannot be, `AddressMissing`
        if it may later."""


# --- TCP ------------------------------------------------------------------------------------------


class SocketTransport(Transport):
    """A connected stream socket, which it owns."""

    def __init__(self, connected: socket.socket, peer_name: str, peer_host: str) -> None:
        connected.setblocking(False)
        self.peer_name = peer_name
        self.peer_host = peer_host
        self._socket = connected
        self._closed = False

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._socket.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from error

    async def wait_writable(self) -> None:
        self._check_open()
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError) as error:
            raise self._lost(error) from error

    async def receive(self, bytes_max: int) -> bytes:
        # Waiting first costs no more than a checkpoint would, and in a calm system there is nothing yet.
        while True:
            self._check_open()
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(bytes_max)
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, OSError) as error:
                raise self._lost(error) from error

    async def receive_with(self, bytes_max: int, take: Take) -> None:
        self._check_open()
        recv = self._socket.recv

        def ready() -> bool:
            try:
                data = recv(bytes_max)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._lost(error) from error
            return take(data)

        try:
            await hot.readable(self._socket.fileno(), ready)
        except trio.ClosedResourceError as error:
            raise self._lost(error) from error

    def acknowledged_bytes(self) -> int:
        if self._closed:
            return 0
        with suppress(OSError, struct.error):
            told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            acknowledged: int = _BYTES_ACKED.unpack_from(told, _BYTES_ACKED_AT)[0]
            return acknowledged
        return 0

    def queued_bytes(self) -> int:
        if self._closed:
            return 0
        with suppress(OSError):
            told = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
            queued: int = _INT.unpack(told)[0]
            return queued
        return 0

    @property
    def local_name(self) -> str | None:
        if self._closed:
            return None
        with suppress(OSError):
            host, port = self._socket.getsockname()[:2]
            return str(Address(_plain_host(host), port))
        return None

    def _check_open(self) -> None:
        # trio must not be asked to wait for a closed socket: it stumbles over the descriptor -1, keeps
        # the task registered for it, and tells whoever asks next that another task waits already.
        if self._closed:
            raise ConnectionLost(self.peer_name, "closed on this host")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            hot.notify_closing(self._socket.fileno())
            self._socket.close()

    def _lost(self, error: Exception) -> ConnectionLost:
        # A socket closed here is reported as a bad descriptor (-1) or as trio's ClosedResourceError.
        if self._closed or not isinstance(error, OSError):
            return ConnectionLost(self.peer_name, "closed on this host")
        return ConnectionLost(self.peer_name, _reason(error))


class SocketListener(Listener):
    """A listening socket, which it owns."""

    def __init__(self, listening: socket.socket, unacknowledged_s: float) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._unacknowledged_s = unacknowledged_s
        self._shedding = Shedding(listening, tuple)

    def spare(self, known: Callable[[], Iterable[str]]) -> None:
        self._shedding = Shedding(self._socket, known)

    @property
    def port(self) -> int:
        """The port it listens on: the one the system chose, if it was asked for port 0."""
        port: int = self._socket.getsockname()[1]
        return port

    async def accept(self, admits: Callable[[str], bool] = everybody) -> Transport:
        while True:
            if self._socket.fileno() < 0:
                raise ConnectionLost("the listener", "closed on this host")
            try:
                with trio.move_on_after(self._shedding.patience_s) as patience:
                    await trio.lowlevel.wait_readable(self._socket)
                if patience.cancelled_caught:
                    self._shedding.note(0, trio.current_time())
                    continue
                accepted = self._take(admits)
            except trio.ClosedResourceError as error:
                raise ConnectionLost("the listener", "closed on this host") from error
            except OSError as error:
                await self._after(error)
                continue
            if accepted is not None:
                return accepted
            await trio.sleep(limits.ACCEPT_PAUSE_S)

    def _take(self, admits: Callable[[str], bool]) -> SocketTransport | None:
        """The first that is let in of those that wait; None if there was none among so many. OSError."""
        turned_away = 0
        try:
            for _ in range(limits.ACCEPTS_PER_TURN):
                accepted, address = self._socket.accept()
                host = _plain_host(address[0])
                if admits(host):
                    self._shedding.accepted(accepted)
                    _tune(accepted, self._unacknowledged_s)
                    return SocketTransport(accepted, str(Address(*address[:2])), host)
                # With a reset: the system would remember each ended connection for a minute.
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                accepted.close()
                turned_away += 1
            return None
        finally:
            self._shedding.note(turned_away, trio.current_time())

    async def _after(self, error: OSError) -> None:
        # accept(2): errors of the network belong to the connection that is gone. Without descriptors
        # or memory the next try would fail too, and at once.
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            await trio.sleep(limits.ACCEPT_RETRY_S)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class TcpNetwork(Network):
    """TCP over IPv4 and IPv6.

    `unacknowledged_s`: the system breaks a connection whose bytes stay unacknowledged so long.
    """

    def __init__(self, *, unacknowledged_s: float) -> None:
        self._unacknowledged_s = unacknowledged_s

    async def look_up(self, host: str, port: int) -> list[Address]:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise PeerUnreachable(str(Address(host, port)), _reason(error)) from error
        return list(dict.fromkeys(_address_of(each[4]) for each in found))

    async def connect(self, host: str, port: int) -> SocketTransport:
        address = str(Address(host, port))
        try:
            stream = await trio.open_tcp_stream(host, port)
        except (OSError, UnicodeError) as error:
            reason = _reason(error)
            gone = reason == os.strerror(errno.ECONNREFUSED)
            raise (NobodyListens if gone else PeerUnreachable)(address, reason) from error
        # trio knows how to try all addresses of a name; its stream is not needed any more.
        connected = socket.socket(fileno=stream.socket.detach())
        _tune(connected, self._unacknowledged_s)
        return SocketTransport(connected, address, _remote_host(connected))

    async def listen(self, host: str, port: int) -> SocketListener:
        """Listen on the first address that the name has; an empty host means all, IPv4 and IPv6."""
        try:
            listening = _listen_anywhere(port) if host in ("", "*") else await _listen_on(host, port)
        except (OSError, UnicodeError) as error:
            missing = isinstance(error, socket.gaierror) or (
                isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
            )
            failed = AddressMissing if missing else ListenFailed
            raise failed(str(Address(host, port)), _reason(error)) from error
        return SocketListener(listening, self._unacknowledged_s)


def _listen_anywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=limits.LISTEN_BACKLOG, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=limits.LISTEN_BACKLOG)


async def _listen_on(host: str, port: int) -> socket.socket:
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address, family=family, backlog=limits.LISTEN_BACKLOG)


_INT = struct.Struct("@i")
_TCP_INFO_BYTES = 192
_BYTES_ACKED, _BYTES_ACKED_AT = struct.Struct("@Q"), 120  # struct tcp_info of linux/tcp.h, since 4.1
_NO_LINGER = struct.pack("ii", 1, 0)  # struct linger: on, for no time; socket(7)
_MAPPED = "::ffff:"  # how a socket for both shows an address of IPv4


def _address_of(found: tuple[Any, ...]) -> Address:
    """As getaddrinfo(3) says it. A link-local one needs its interface."""
    host, port, *more = found
    scope = more[1] if len(more) == 2 else 0
    return Address(f"{host}%{scope}" if scope and "%" not in host else host, port)


def _plain_host(host: str) -> str:
    """The same text for the same address, whichever family of sockets it came through."""
    host = host.partition("%")[0]  # the interface, of a link-local one
    return host.removeprefix(_MAPPED) if "." in host else host


def _remote_host(connected: socket.socket) -> str:
    try:
        return _plain_host(connected.getpeername()[0])
    except OSError:  # it broke already: whoever uses it will be told
        return ""


def _tune(connected: socket.socket, unacknowledged_s: float) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # trio asks for 16 KiB on what it dials: then a large write goes in a dozen pieces, each with a wake-up.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.UNSENT_BYTES)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unacknowledged_s * 1000))


def _reason(error: OSError | UnicodeError) -> str:
    """What to tell a person; trio wraps the errors of the single addresses in a group."""
    if isinstance(error, UnicodeError):  # a part of a name is empty, or longer than any may be
        return f"it is no name of a host: {error}"
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        error = cause
    if error.errno is not None and error.errno > 0 and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
