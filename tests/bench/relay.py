"""A relay of TCP between two hosts that makes them far apart: each byte arrives so much later.

    python -m tests.bench.relay HOST:PORT PEER_HOST:PEER_PORT SECONDS

Listens on the first address and passes every connection on to the second, `SECONDS` late in each
direction, in order. What is under way is bounded, as in a network: behind that the sender waits. It ends
with SIGTERM, and its connections with it. It takes some time of a processor, which a network does not.
"""

import ctypes
import socket
import sys
import threading
import time
from contextlib import suppress
from queue import Queue

from fusemirror.settings import parse_address

CHUNK_BYTES = 256 * 1024
CHUNKS_MAX = 64
_PR_SET_TIMERSLACK = 29

now = time.monotonic  # noqa: TID251 - the clock of a measurement, not of the product
UnderWay = Queue[tuple[float, bytes]]


class Direction:
    """One direction of one connection: what `source` says, `target` hears `delay_s` later."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self._source, self._target, self._delay_s = source, target, delay_s
        self._under_way: UnderWay = Queue(CHUNKS_MAX)

    def start(self) -> None:
        for part in (self._take, self._give):
            threading.Thread(target=part, daemon=True).start()

    def _take(self) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = self._source.recv(CHUNK_BYTES)
            except ConnectionError:
                chunk = b""
            self._under_way.put((now() + self._delay_s, chunk))

    def _give(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # else each sleep is 50 us too long
        broken = False
        while True:
            due, chunk = self._under_way.get()
            time.sleep(max(0.0, due - now()))  # noqa: TID251
            if not chunk:
                break
            try:
                if not broken:
                    self._target.sendall(chunk)
            except ConnectionError:
                broken = True
                self._source.close()  # its sender hears of it, and what is under way is dropped
        with suppress(OSError):  # the other direction was quicker
            self._target.shutdown(socket.SHUT_WR)


def main(listen: str, peer: str, delay_s: float) -> None:
    """Relay for ever."""
    with socket.create_server(parse_address(listen)) as listening:
        while True:
            accepted, _ = listening.accept()
            try:
                dialed = socket.create_connection(parse_address(peer))
            except OSError:
                accepted.close()
                continue
            for end in (accepted, dialed):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Direction(accepted, dialed, delay_s).start()
            Direction(dialed, accepted, delay_s).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
