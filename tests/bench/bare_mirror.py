"""A passthrough whose writes another host has too before they return: the least that any mirror costs.

    python -m tests.bench.bare_mirror SOURCE MOUNTPOINT ADDRESS:PORT
    python -m tests.bench.bare_mirror --serve COPIES ADDRESS:PORT

Each write goes over TCP to the second process, which writes it to a copy and says so. Nothing else: no
order between hosts, no names or times on the other one, no checksum, nothing to recover by. What this
does not reach, no filesystem on pyfuse3 reaches that answers when both hosts have the data.
"""

import os
import socket
import struct
import sys
from collections import deque
from pathlib import Path

import trio
from pyfuse3 import FileHandleT

from fusemirror.promise import Promise
from fusemirror.settings import parse_address
from tests.bench.passthrough import Passthrough, mount

_HEADER = struct.Struct("=QQQ")  # the file, offset, length
_ANSWER = b"."
_ANSWERS_MAX = 4096


class BareMirror(Passthrough):
    """`Passthrough`, and `run` takes the answers of the other process for ever."""

    def __init__(self, source: Path, peer: socket.socket) -> None:
        super().__init__(source)
        self._peer = peer
        self._under_way: deque[Promise[None]] = deque()
        self._files: dict[int, int] = {}

    async def write(self, fh: FileHandleT, off: int, buf: bytes, **_: bool | None) -> int:
        file = self._files.get(fh)
        if file is None:
            file = self._files[fh] = os.fstat(fh).st_ino
        answered: Promise[None] = Promise()
        self._under_way.append(answered)
        send_whole(self._peer, [_HEADER.pack(file, off, len(buf)), buf])
        written = os.pwrite(fh, buf, off)  # while the other host is at work
        await answered.wait()
        return written

    async def release(self, fh: FileHandleT) -> None:
        self._files.pop(fh, None)
        await super().release(fh)

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._peer)
            for _ in self._peer.recv(_ANSWERS_MAX, socket.MSG_DONTWAIT):
                self._under_way.popleft().resolve(None)


def send_whole(peer: socket.socket, buffers: list[bytes]) -> None:
    sent = peer.sendmsg(buffers)
    whole = sum(map(len, buffers))
    if sent < whole:
        peer.sendall(b"".join(buffers)[sent:])


def serve(copies: Path, address: str) -> None:
    """Write what comes, and answer each write, until the other side ends it."""
    with socket.create_server(parse_address(address)) as listening:
        peer, _ = listening.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    files: dict[int, int] = {}
    with peer, peer.makefile("rb", buffering=1 << 20) as stream:
        while header := stream.read(_HEADER.size):
            file, offset, length = _HEADER.unpack(header)
            if file not in files:
                files[file] = os.open(copies / str(file), os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(files[file], stream.read(length), offset)
            peer.send(_ANSWER)


def main(source: Path, mountpoint: Path, address: str) -> None:
    """Serve until the mountpoint is unmounted."""
    peer = socket.create_connection(parse_address(address))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    operations = BareMirror(source, peer)
    mount(operations, mountpoint, operations.run)


if __name__ == "__main__":
    os.umask(0)
    if sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
