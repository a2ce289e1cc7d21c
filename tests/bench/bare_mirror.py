"""A passthrough whose writes another host has too before they return: the least that any mirror costs.

    python -m tests.bench.bare_mirror SOURCE MOUNTPOINT ADDRESS:PORT [KEYS [here-first]]
    python -m tests.bench.bare_mirror --serve COPIES ADDRESS:PORT [KEYS]

Each write goes over TCP to the second process, which writes it to a copy and says so. Nothing else: no
order between hosts, no names or times on the other one, no checksum, nothing to recover by. What this
does not reach, no filesystem on pyfuse3 reaches that answers when both hosts have the data. With KEYS, a
directory with a certificate and its key for both ends, all of it goes over TLS 1.3. Here first, it writes its
own file before it sends: fusemirror must, so that no copy has what main never had.
"""

import os
import select
import socket
import ssl
import struct
import sys
from collections import deque
from pathlib import Path

import trio
from pyfuse3 import FileHandleT

from fusemirror.keys import CERTIFICATE, KEY
from fusemirror.promise import Promise
from fusemirror.settings import parse_address
from tests.bench.passthrough import Passthrough, mount

_HEADER = struct.Struct("=QQQ")  # the file, offset, length
_ANSWER = b"."
_ANSWERS_MAX = 4096
_JOINED_BYTES_MAX = 16 << 10  # one record


class BareMirror(Passthrough):
    """`Passthrough`, and `run` takes the answers of the other process for ever."""

    def __init__(self, source: Path, peer: socket.socket, *, here_first: bool) -> None:
        super().__init__(source)
        self._peer = peer
        self._here_first = here_first
        self._under_way: deque[Promise[None]] = deque()
        self._files: dict[int, int] = {}

    async def write(self, fh: FileHandleT, off: int, buf: bytes, **_: bool | None) -> int:
        file = self._files.get(fh)
        if file is None:
            file = self._files[fh] = os.fstat(fh).st_ino
        answered: Promise[None] = Promise()
        self._under_way.append(answered)
        if self._here_first:
            os.pwrite(fh, buf, off)
        send_whole(self._peer, [_HEADER.pack(file, off, len(buf)), buf])
        if not self._here_first:
            os.pwrite(fh, buf, off)  # while the other host is at work
        await answered.wait()
        return len(buf)

    async def release(self, fh: FileHandleT) -> None:
        self._files.pop(fh, None)
        await super().release(fh)

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._peer)
            try:
                answers = self._peer.recv(_ANSWERS_MAX)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            for _ in answers:
                self._under_way.popleft().resolve(None)


def send_whole(peer: socket.socket, buffers: list[bytes]) -> None:
    """One record of TLS for what is small; for what is large no more copies than that makes anyway."""
    if not isinstance(peer, ssl.SSLSocket):
        sent = peer.sendmsg(buffers)
        if sent == sum(map(len, buffers)):
            return
        buffers = [b"".join(buffers)[sent:]]
    elif len(buffers[-1]) <= _JOINED_BYTES_MAX:
        buffers = [b"".join(buffers)]
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest:
            try:
                rest = rest[peer.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                select.select([], [peer], [])


def encrypted(peer: socket.socket, keys: Path, *, server: bool) -> socket.socket:
    """Both ends show the one certificate, and know it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(keys / CERTIFICATE)
    context.load_cert_chain(keys / CERTIFICATE, keys / KEY)
    return context.wrap_socket(peer, server_side=server)


def serve(copies: Path, address: str, keys: Path | None) -> None:
    """Write what comes, and answer each write, until the other side ends it."""
    with socket.create_server(parse_address(address)) as listening:
        peer, _ = listening.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keys is not None:
        peer = encrypted(peer, keys, server=True)
    files: dict[int, int] = {}
    with peer, peer.makefile("rb", buffering=1 << 20) as stream:
        while header := stream.read(_HEADER.size):
            file, offset, length = _HEADER.unpack(header)
            if file not in files:
                files[file] = os.open(copies / str(file), os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(files[file], stream.read(length), offset)
            peer.send(_ANSWER)


def main(source: Path, mountpoint: Path, address: str, keys: Path | None, *, here_first: bool) -> None:
    """Serve until the mountpoint is unmounted."""
    peer = socket.create_connection(parse_address(address))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keys is not None:
        peer = encrypted(peer, keys, server=False)
    peer.setblocking(False)
    operations = BareMirror(source, peer, here_first=here_first)
    mount(operations, mountpoint, operations.run)


if __name__ == "__main__":
    os.umask(0)
    first, second, where, *more = sys.argv[1:]
    at = Path(more[0]) if more else None
    if first == "--serve":
        serve(Path(second), where, at)
    else:
        main(Path(first), Path(second), where, at, here_first="here-first" in more)
