"""A network in one process, for simulation: it delays, cuts and stalls, the same for the same seed.

Between two hosts there is one line. Bytes take its latency, with jitter, and keep their order within a
connection. A *cut* line breaks its connections at once and refuses new ones. A *stalled* line delivers
nothing and breaks nothing: bytes wait in it, and so do new connections; it may be stalled one way only.
A *refusing* line keeps its connections and refuses new ones, those that one host dials or all. A *slow*
line takes longer. A *narrow* one loses large packets, again and again, and delivers small ones. A *healed*
line does none of that. A host that lost its power is silent: whoever has
a connection with it hears nothing, until it has power again and answers with a reset.
Time is trio's, so that a MockClock may run it; no tasks of its own.
"""

import math
import string
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import trio

from fusemirror import limits
from fusemirror.channel.transport import (
    Listener,
    Network,
    Transport,
    everybody,
)
from fusemirror.errors import ConnectionLost, ListenFailed, NobodyListens, PeerUnreachable
from fusemirror.protocol.framing import Buffer
from fusemirror.settings import Address

Trace = Callable[[str], None]

_PACKET_BYTES = 1_400
_EPHEMERAL_PORT_FIRST = 49_152
_REFUSED = "Connection refused"
_RESET = "Connection reset by peer"
_CLOSED_HERE = "closed on this host"


class Line:
    """What lies between two hosts: its faults, and the connections that it carries."""

    def __init__(self) -> None:
        self.refused: frozenset[str] = frozenset()  # hosts that cannot dial
        self.stalled: frozenset[str] = frozenset()  # hosts whose bytes do not get across
        self.slowness_s = 0.0
        self.narrow = False  # large packets are lost, and so is what comes behind them
        self.pipes: list[Pipe] = []
        self.changed = trio.lowlevel.ParkingLot()


class MemoryNetwork:
    """All hosts, and the lines between them. `host(name)` is the `Network` of one of them."""

    def __init__(
        self,
        random: Random,
        *,
        latency_s: float = 0.0002,
        jitter_s: float = 0.0002,
        buffer_bytes: int = 256 * limits.KIB,
        short_sends: float = 0.0,
        coalescing_s: float = 0.0,
        trace: Trace | None = None,
    ) -> None:
        self.random = random
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self.buffer_bytes = buffer_bytes
        self.short_sends = short_sends
        """How often a send takes less than there is room for: the room came a moment too late."""
        self.coalescing_s = coalescing_s
        """Bytes arrive at multiples of this, and so together: as where a network card gathers interrupts."""
        self.accept_delay: Callable[[], float] = lambda: 0.0
        """How long a connection waits until its listener hears of it; its dialer may be gone by then."""
        self.listeners: dict[tuple[str, int], MemoryListener] = {}
        self._trace = trace
        self._lines: dict[frozenset[str], Line] = {}
        self._ports = iter(range(_EPHEMERAL_PORT_FIRST, 1 << 30))

    def host(self, name: str, *more: str) -> "MemoryHost":
        """`more` are further addresses of it. `alpha2` reaches `beta2` by a line of their own."""
        return MemoryHost(self, name, *more)

    # --- faults -----------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Break all connections between the two hosts, and refuse new ones."""
        self._fault(one, other, "cut", refused=frozenset((one, other)), breaks=True)

    def stall(self, one: str, other: str) -> None:
        """Deliver nothing between the two hosts, and break nothing."""
        self._fault(one, other, "stall", stalled=frozenset((one, other)))

    def stall_one_way(self, sender: str, receiver: str) -> None:
        """Deliver nothing that `sender` sends, and break nothing. New connections wait either way."""
        self._fault(sender, receiver, "stall one way", stalled=frozenset((sender,)))

    def refuse(self, dialer: str, listener: str) -> None:
        """Refuse what `dialer` dials, as a wall would between them; the connections stay that there are."""
        self._fault(dialer, listener, "refuse", refused=frozenset((dialer,)))

    def wall_off(self, one: str, other: str, dialers: Iterable[str]) -> None:
        """Deliver nothing between the two hosts, and refuse at once what these dial."""
        refused = frozenset(dialers)
        self._fault(one, other, "wall off", stalled=frozenset((one, other)), refused=refused)

    def slow(self, one: str, other: str, slowness_s: float) -> None:
        """Take so much longer from now on."""
        self._fault(one, other, f"slow by {slowness_s:.6f}", slowness_s=slowness_s)

    def narrow(self, one: str, other: str) -> None:
        """Lose large packets without a word: the connection that sent one delivers nothing from there on."""
        self._fault(one, other, "narrow", narrow=True)

    def heal(self, one: str, other: str) -> None:
        """Deliver again, and what waited first."""
        self._fault(one, other, "heal")

    def break_one(self, one: str, other: str) -> None:
        """Break one connection between the two hosts that neither has closed, where there is any."""
        pipes = [pipe for pipe in self.line(one, other).pipes if not (pipe.ended or pipe.opposite.ended)]
        if pipes:
            broken = pipes[2 * self.random.randrange(len(pipes) // 2)]
            self.trace(f"break {broken.name}")
            for pipe in (broken, broken.opposite):
                pipe.broken = True
                pipe.changed.unpark_all()
            self._forget_broken(self.line(one, other))

    def power_on(self, name: str) -> None:
        """The host answers again: with resets, to whoever still knows it from before it lost its power."""
        for hosts, line in self._lines.items():
            if name in hosts:
                for pipe in line.pipes:
                    if pipe.silent == name:
                        pipe.broken = True
                        pipe.changed.unpark_all()
                self._forget_broken(line)

    def _fault(
        self,
        one: str,
        other: str,
        name: str,
        *,
        refused: frozenset[str] = frozenset(),
        stalled: frozenset[str] = frozenset(),
        slowness_s: float = 0.0,
        breaks: bool = False,
        narrow: bool = False,
    ) -> None:
        self.trace(f"{name} {one} {other}")
        line = self.line(one, other)
        line.refused, line.stalled, line.slowness_s, line.narrow = refused, stalled, slowness_s, narrow
        for pipe in line.pipes:
            pipe.broken = pipe.broken or breaks
            pipe.changed.unpark_all()
        self._forget_broken(line)
        line.changed.unpark_all()

    def _forget_broken(self, line: Line) -> None:
        line.pipes = [pipe for pipe in line.pipes if not pipe.broken]

    # --- for the classes below --------------------------------------------------------------------

    def line(self, one: str, other: str) -> Line:
        return self._lines.setdefault(frozenset((one, other)), Line())

    def delay(self) -> float:
        return self.latency_s + self.jitter_s * self.random.random()

    def next_port(self) -> int:
        return next(self._ports)

    def trace(self, event: str) -> None:
        if self._trace is not None:
            self._trace(f"{trio.current_time():.6f} {event}")


class MemoryHost(Network):
    """The network as one host sees it."""

    def __init__(self, network: MemoryNetwork, name: str, *more: str) -> None:
        self.name = name
        self.names = (name, *more)
        self.known: dict[str, list[str]] = {}
        """What names stand for, other than for themselves; nothing where nobody knows them."""
        self._network = network

    async def look_up(self, host: str, port: int) -> list[Address]:
        found = self.known.get(host, [host])
        if not found:
            raise PeerUnreachable(str(Address(host, port)), "Name or service not known")
        return [Address(each, port) for each in found]

    def _source(self, host: str) -> str:
        """The address from which `host` is reached."""
        number = host.lstrip(string.ascii_letters)
        return next((name for name in self.names if number and name.endswith(number)), self.name)

    async def connect(self, host: str, port: int) -> Transport:
        network, address, source = self._network, str(Address(host, port)), self._source(host)
        line = network.line(source, host)
        await trio.sleep(2 * network.delay())
        while line.stalled and source not in line.refused:
            await line.changed.park()
        listener = network.listeners.get((host, port))
        if source in line.refused or listener is None:
            network.trace(f"refuse {source} > {address}")
            raise NobodyListens(address, _REFUSED)
        ours = str(Address(source, network.next_port()))
        network.trace(f"connect {ours} > {address}")
        there = Pipe(network, line, source, f"{ours} > {address}")
        back = Pipe(network, line, host, f"{address} > {ours}")
        there.opposite, back.opposite = back, there
        line.pipes = [pipe for pipe in line.pipes if not pipe.over] + [there, back]
        listener.offer(MemoryTransport(there, back, peer_name=ours), network.accept_delay())
        return MemoryTransport(back, there, peer_name=address)

    async def listen(self, host: str, port: int) -> "MemoryListener":
        await trio.lowlevel.checkpoint()
        name = host or self.name
        port = port or self._network.next_port()
        if name not in self.names or (name, port) in self._network.listeners:
            raise ListenFailed(str(Address(name, port)), "Address already in use")
        return MemoryListener(self._network, name, port)


class MemoryListener(Listener):
    def __init__(self, network: MemoryNetwork, host: str, port: int) -> None:
        self.port = port
        self._network = network
        self._address = (host, port)
        self._offered: list[tuple[float, MemoryTransport]] = []  # (when it is heard of, what), in this order
        self._changed = trio.lowlevel.ParkingLot()
        network.listeners[self._address] = self

    @property
    def _closed(self) -> bool:
        return self._network.listeners.get(self._address) is not self

    def offer(self, transport: "MemoryTransport", delay_s: float) -> None:
        self._offered.append((trio.current_time() + delay_s, transport))
        self._offered.sort(key=lambda offered: offered[0])
        self._changed.unpark_all()

    async def accept(self, admits: Callable[[str], bool] = everybody) -> Transport:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            wait_s = self._offered[0][0] - trio.current_time() if self._offered else math.inf
            if wait_s <= 0:
                transport = self._offered.pop(0)[1]
                if admits(transport.peer_host):
                    return transport
                transport.close()
                continue
            with trio.move_on_after(wait_s):
                await self._changed.park()
        raise ConnectionLost("the listener", _CLOSED_HERE)

    def close(self) -> None:
        if not self._closed:
            del self._network.listeners[self._address]
            while self._offered:
                self._offered.pop()[1].close()
            self._changed.unpark_all()


class Pipe:
    """One direction of a connection: what was sent and has not been received."""

    opposite: "Pipe"

    def __init__(self, network: MemoryNetwork, line: Line, sender: str, name: str) -> None:
        self.name = name
        self.line = line
        self.broken = False
        self.silent: str | None = None  # the host at one of its ends that has lost its power
        self.abandoned = False  # nobody will receive from it
        self.ended = False  # nobody will send into it
        self.changed = trio.lowlevel.ParkingLot()
        self._network = network
        self._sender = sender
        self._under_way: deque[tuple[float, bytes]] = deque()  # (when it arrives, what); b"" is the end
        self._held_bytes = 0
        self._sent_bytes = self._acknowledged = 0
        self._is_stuck = False  # until it is healed
        self.last_arrival = 0.0

    @property
    def over(self) -> bool:
        """Nobody is at either end, or will be."""
        return self.ended and self.abandoned

    @property
    def stalled(self) -> bool:
        return self._sender in self.line.stalled or self.silent is not None or self._is_stuck

    @property
    def room_bytes(self) -> int:
        return self._network.buffer_bytes - self._held_bytes

    def put(self, data: bytes) -> None:
        self._network.trace(f"send {self.name} {len(data)}")
        self._is_stuck = self.line.narrow and (self._is_stuck or len(data) > _PACKET_BYTES)
        arrival = trio.current_time() + self._delay_s()
        if interval_s := self._network.coalescing_s:
            arrival = math.ceil(arrival / interval_s) * interval_s
        self.last_arrival = max(self.last_arrival, arrival)
        self._under_way.append((self.last_arrival, data))
        self._held_bytes += len(data)
        self._sent_bytes += len(data)
        self.changed.unpark_all()

    def put_some(self, data: bytes) -> int:
        """Put as much of it as is taken at once, and return how much that is."""
        network, size = self._network, min(len(data), self.room_bytes)
        if network.short_sends and network.random.random() < network.short_sends:
            size = network.random.randrange(size + 1)
        if size:
            self.put(data[:size])
        return size

    def _delay_s(self) -> float:
        return self._network.delay() + self.line.slowness_s * self._network.random.random()

    def take(self, bytes_max: int) -> bytes:
        """All that has arrived, up to `bytes_max`; there is some."""
        now, taken, size = trio.current_time(), [], 0
        while self._under_way and self._under_way[0][0] <= now and size < bytes_max:
            arrival, data = self._under_way[0]
            if not data:
                break  # the end stays, to be seen again
            self._under_way.popleft()
            if size + len(data) > bytes_max:
                self._under_way.appendleft((arrival, data[bytes_max - size :]))
                data = data[: bytes_max - size]
            taken.append(data)
            size += len(data)
        self._held_bytes -= size
        self._network.trace(f"receive {self.name} {size}")
        self.changed.unpark_all()
        return b"".join(taken)

    def acknowledged(self) -> int:
        """How many bytes the sender knows to have arrived."""
        if not (self.stalled or self.opposite.stalled or self.broken):
            now = trio.current_time()
            late_bytes = sum(len(data) for arrival, data in self._under_way if arrival > now)
            self._acknowledged = self._sent_bytes - late_bytes
        return self._acknowledged

    def wait_seconds(self) -> float:
        """How long until something arrives, as far as is known now; 0 if something has."""
        if self.stalled or not self._under_way:
            return math.inf
        return max(0.0, self._under_way[0][0] - trio.current_time())


async def _park(lot: trio.lowlevel.ParkingLot, seconds: float) -> None:
    """For so long, which may be without end, or until it is woken."""
    if math.isinf(seconds):
        await lot.park()
        return
    with trio.move_on_after(seconds):
        await lot.park()


class MemoryTransport(Transport):
    def __init__(self, incoming: Pipe, outgoing: Pipe, *, peer_name: str) -> None:
        self.peer_name = peer_name
        self.peer_host = peer_name.rpartition(":")[0]  # ports of a simulation may be higher than real ones
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        if not self._reset_seconds():
            raise ConnectionLost(self.peer_name, _RESET)
        return self._outgoing.put_some(b"".join(buffers))

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            reset_s = self._reset_seconds()
            if self._outgoing.room_bytes or not reset_s:
                return
            await _park(self._outgoing.changed, reset_s)

    async def receive(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            wait_s = self._incoming.wait_seconds()
            if not wait_s:
                return self._incoming.take(bytes_max)
            await _park(self._incoming.changed, wait_s)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.put(b"")
            self._outgoing.ended = self._incoming.abandoned = True
            self._incoming.changed.unpark_all()
            self._outgoing.changed.unpark_all()

    def acknowledged_bytes(self) -> int:
        return self._outgoing.acknowledged()

    def vanish(self, host: str) -> None:
        """This end goes without a word: `host` lost its power."""
        if not self._closed:
            self._closed = True
            for pipe in (self._incoming, self._outgoing):
                pipe.silent = host
                pipe.changed.unpark_all()

    def _reset_seconds(self) -> float:
        """How long until it is known here that nobody receives there: when the end of the stream arrives."""
        if not self._outgoing.abandoned or self._incoming.stalled or self._outgoing.stalled:
            return math.inf
        return max(0.0, self._incoming.last_arrival - trio.current_time())

    def _check(self) -> None:
        if self._closed:
            raise ConnectionLost(self.peer_name, _CLOSED_HERE)
        if self._incoming.broken:
            raise ConnectionLost(self.peer_name, _RESET)
