"""The status tells the truth: every field, on both hosts, in every mirror state, against a count of ours.

A field that is added is compared too, or the test fails: `truth` has a line for each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from fusemirror.admin.snapshot import Mounted, snapshot
from fusemirror.coherence.lock_table import Lock, LockKey, LockKind, Owner
from fusemirror.daemon import Host
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import GIB, PROBE_BYTES, REGION_BYTES
from fusemirror.operations import Create, Unlink, Write
from fusemirror.protocol.messages import Modes
from fusemirror.settings import Communication, Fence
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import PATIENCE_S, until
from tests.memory_network import MemoryNetwork, MemoryTransport
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]

PAIR_SETTINGS = {"peer_timeout": 2.0, "io_timeout": 60.0, "communication_capacity": 32 << 20}
OTHER = {"alpha": "beta", "beta": "alpha"}
APART_FILES, APART_REGIONS = 2, 3
APART_BYTES = APART_FILES * APART_REGIONS * REGION_BYTES
NAMELESS_BYTES = 500
GREETINGS_BYTES_MAX = 20 * PROBE_BYTES  # Hellos, and probes of connections that carry no path yet
Truth = dict[str, Any]
"""By the field, with dots for what is within another: its value, or what must hold of it."""


class Wire:
    """Bytes that left and reached each host, as the network sees them."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    counted = Wire()
    try_send, receive = MemoryTransport.try_send, MemoryTransport.receive

    def send(transport: MemoryTransport, buffers: Any) -> int:
        count = try_send(transport, buffers)
        counted.sent[OTHER[transport.peer_host]] += count
        return count

    async def take(transport: MemoryTransport, bytes_max: int) -> bytes:
        data = await receive(transport, bytes_max)
        counted.received[OTHER[transport.peer_host]] += len(data)
        return data

    monkeypatch.setattr(MemoryTransport, "try_send", send)
    monkeypatch.setattr(MemoryTransport, "receive", take)
    # Checkpoints all the time, so that it is soon known what is durable.
    monkeypatch.setattr("fusemirror.mirror.durability.CHECKPOINT_INTERVAL_S", 0.05)
    return counted


class Ledger:
    """What the test did, and so what is, by the names of the hosts."""

    def __init__(self, pair: Pair, network: MemoryNetwork, wire: Wire) -> None:
        self.hosts: dict[str, Host] = {"alpha": pair.primary, "beta": pair.backup}
        self.network = network
        self.wire = wire
        self.roles = {"alpha": "primary", "beta": "backup"}
        self.state = "normal"
        self.changes = dict.fromkeys(self.hosts, self.status("alpha")["change"])
        self.reads: Counter[str] = Counter()
        self.routed: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # that a backup staged
        self.pending: dict[str, list[int]] = {name: [] for name in self.hosts}  # bytes of what is under way
        self.data: Counter[tuple[str, str]] = Counter()  # bytes of content sent, by host and path
        self.locks: dict[str, list[str]] = {name: [] for name in self.hosts}  # whose locks each knows
        self.out_of_sync: dict[str, tuple[int, int]] = dict.fromkeys(self.hosts, (0, 0))
        self.apart: dict[str, int] | None = None  # files that differ in a split brain
        self.lost_at: float | None = None
        self.linked: tuple[float, float] = (0.0, trio.current_time())  # the link was made between these
        self.safe = dict.fromkeys(self.hosts, 0)  # what the peer has durably at least
        self.generation = self.status("alpha")["generation"]
        self.new_line: set[str] = set()  # who has changes in a line that began after that
        self.reserved: dict[str, Any] = {}

    def status(self, name: str) -> dict[str, Any]:
        host = self.hosts[name]
        mounted = Mounted(host.settings, "/mnt/data", 4711, "1.2.3", lambda: {"attributes_granted": 7})
        return snapshot(mounted, host.unit, host.linker, lambda: round(trio.current_time() * 1e9))

    # --- what is done ---------------------------------------------------------------------------------------

    async def change(
        self, name: str, operation: Any, data: bytes = b"", *, alone: bool = False
    ) -> InodeNumber:
        """One change at a host; unless it is `alone` both have it."""
        path = "mirror" if self.roles[name] == "primary" else "forward"
        inode = await self.hosts[name].roles.perform(operation, data)
        for each in (name,) if alone else self.hosts:
            self.changes[each] += 1
        self.requests[name] += path == "forward"
        self.data[name, path] += 0 if alone else len(data)
        return InodeNumber(0) if inode is None else inode.number

    async def make(self, name: str, file: bytes, size: int, *, alone: bool = False) -> InodeNumber:
        number = await self.change(name, Create(ROOT_INODE, file, 0o100644, 0, 0), alone=alone)
        await self.change(name, Write(number, 0), b"x" * size, alone=alone)
        return number

    async def read(self, name: str, file: InodeNumber, *, routed: bool = False) -> None:
        await self.hosts[name].roles.read(file, 0, 10)
        self.routed[name] += routed
        self.reads[OTHER[name] if routed else name] += 1  # the primary's volume answers what is routed

    async def lock(self, name: str, file: InodeNumber, start: int) -> None:
        locks = self.hosts[name].roles.locks
        lock = Lock(Owner(locks.host, 1), start, start + 9, True, 1, 0, 0)
        await locks.end(locks.begin(1, LockKey(file, LockKind.FCNTL), lock))
        for each in {name, "alpha"}:  # the primary knows them all
            self.locks[each].append(name)

    async def durable(self) -> None:
        """Each host knows that all of it is durable at the other, and marks nothing any more; the store of
        requests, which what has ended leaves a little later, is empty."""
        for name, other in OTHER.items():
            await until(
                lambda name=name, other=other: (  # type: ignore[misc]
                    self.status(name)["peer_change"] == self.changes[other]
                )
            )
            self.safe[name] = self.changes[other]
            marks = self.hosts[name].roles.volume.regions.marks
            await until(lambda marks=marks: not marks())  # type: ignore[misc]
            await until(
                lambda name=name: not self.status(name)["communication"].get("stored_requests")  # type: ignore[misc]
            )

    async def work(self) -> None:
        """Both hosts work a little, with something of everything that is counted."""
        for name, size in (("alpha", 1000), ("beta", 2000)):
            file = await self.make(name, name.encode(), size)
            for each in self.hosts:
                await self.read(each, file)
            await self.lock(name, file, 0)
        held = await self.make("alpha", b"held", NAMELESS_BYTES)
        self.hosts["alpha"].roles.open_inodes.add(held)
        await self.change("alpha", Unlink(ROOT_INODE, b"held"))
        await self.hosts["alpha"].management.reserve(file, b"beta", preempt=False)
        for each in self.hosts:
            self.changes[each] += 1
        self.reserved = {"inode": file, "path": "beta", "holder": "alpha"}
        await self.durable()

    async def part(self) -> None:
        """The link is cut, and alpha goes on alone."""
        self.network.cut("alpha", "beta")
        for host in self.hosts.values():
            await host.unit.host.links.ended.wait()
        self.lost_at = trio.current_time()
        self.state = "degraded"
        for number in range(APART_FILES):
            await self.make("alpha", b"apart%d" % number, APART_REGIONS * REGION_BYTES, alone=True)
        self.changes["alpha"] += 1  # the record of a new line of changes
        self.new_line.add("alpha")
        self.out_of_sync["alpha"] = APART_FILES, APART_BYTES

    # --- what is so -----------------------------------------------------------------------------------------

    def truth(self, name: str) -> Truth:
        host, other, is_primary = self.hosts[name], OTHER[name], self.roles[name] == "primary"
        linked = self.state in ("normal", "resyncing")
        connected = linked or self.state == "diverged"
        images, size = self.out_of_sync[name]
        modes = {"access": "routed", "acknowledge": "sync", "communication": "lmdb", "fence": "never"}
        truth: Truth = {
            "name": "data",
            "host": name,
            "role": self.roles[name],
            "mirror_state": self.state,
            "state": str,
            "reason": None if self.state == "normal" else is_text,
            "replaced": False,
            "mountpoint": "/mnt/data",
            "volume": host.settings.volume,
            "pid": 4711,
            "version": "1.2.3",
            "kernel_cache.attributes_granted": 7,
            "background": [],
            "peer.name": other,
            "peer.address": f"{other}:7000",
            "peer.connected": connected,
            "peer.since": between(*self.linked) if linked else None,
            "peer.round_trip_seconds": is_round_trip if linked else None,
            "peer.encrypted": host.settings.tls,
            "peer.error": self.is_error,
            "peer.refused": None,
            "peer.last_contact_seconds": 0.0 if linked else self.since_lost,
            "peer.clock_ahead_seconds": lambda ahead: abs(ahead) < 1,
            **{f"settings.{key}": value for key, value in modes.items()},
            **{f"effective.{key}": value for key, value in modes.items()},
            "generation": self.is_new_line if name in self.new_line else self.generation,
            "change": self.changes[name],
            "peer_change": lambda number: self.safe[name] <= number <= self.changes[other],
            "disk.full": False,
            "disk.failure": None,
            "disk.peer_full": False,
            "disk.peer_available_bytes": lambda told: abs(told - self.available_bytes(other)) < GIB,
            "nameless.inodes": 1,
            "nameless.bytes": NAMELESS_BYTES,
            "reads.local": self.reads[name],
            "reads.routed": self.routed[name],
            "out_of_sync.images": images,
            "out_of_sync.bytes": size,
            "locks.held": len(self.locks[name]),
            "locks.waiting": 0,
            "locks.lost": 0,
            "locks.bind": "both hosts" if linked else "this host" if is_primary else "nobody",
            "reservations": self.is_reserved,
            **dict.fromkeys(
                (f"exclusive.{key}" for key in ("held", "standing_by", "stood_by_total", "given_up_total")), 0
            ),
            "communication.pending_requests": len(self.pending[name]),
            "communication.pending_bytes": sum(self.pending[name]),
            "communication.oldest_seconds": is_age if self.pending[name] else 0,
            "communication.capacity_bytes": 32 << 20,
        }
        if not is_primary:
            under_way = len(self.pending[name])
            truth |= {
                "communication.directory": str(host.roles.volume.directory / "communication"),
                "communication.available_bytes": lambda told: told is None or told > 0,
                "communication.full": False,
                "communication.failure": None,
                "communication.memory_bytes": self.is_memory_of(name),
                "communication.memory_peak_bytes": lambda count: count >= 0,
                "communication.read_back_bytes": 0,
                "communication.stored_requests": lambda count: 0 <= count <= under_way,
                "communication.staged_total": self.requests[name] + under_way,
                "communication.forwarded_total": lambda count: count >= self.requests[name],
                "communication.answered_total": self.requests[name],
            }
        return truth | self.truth_of_copying() | self.truth_of_paths(name) | self.truth_of_conflicts(name)

    def is_memory_of(self, name: str) -> Callable[[Any], bool]:
        """Data that is pending, and a little for each request."""
        count, size = len(self.pending[name]), sum(self.pending[name])
        return lambda told: size <= told <= size + count * 4096

    def truth_of_copying(self) -> Truth:
        if self.state != "resyncing":
            return {"resync": None}
        told: Truth = {"done_bytes": 0, "total_bytes": APART_BYTES, "sent_bytes": 0, "bytes_per_second": 0}
        told |= {"seconds_left": None, "paused": True, "rate_limit_bytes": 0}
        return {f"resync.{key}": value for key, value in told.items()}

    def truth_of_conflicts(self, name: str) -> Truth:
        if self.apart is None:
            return {"conflicts": None}
        return {"conflicts.here": self.apart[name], "conflicts.there": self.apart[OTHER[name]]}

    def truth_of_paths(self, name: str) -> Truth:
        told = self.status(name)["paths"]
        for way, counted in (("sent_bytes", self.wire.sent), ("received_bytes", self.wire.received)):
            both = sum(told[path][way] for path in told)
            assert both <= counted[name] <= both + GREETINGS_BYTES_MAX, way
        truth: Truth = {}
        for path in ("mirror", "forward"):
            truth |= {
                f"paths.{path}.sent_bytes": lambda count: count > 0,
                f"paths.{path}.received_bytes": lambda count: count > 0,
                f"paths.{path}.sent_data_bytes": self.data[name, path],
                f"paths.{path}.received_data_bytes": self.data[OTHER[name], path],
                f"paths.{path}.addresses": self.is_addresses(name, path),
            }
        return truth

    def is_addresses(self, name: str, path: str) -> Callable[[Any], bool]:
        linked = self.state in ("normal", "resyncing")
        dials = (path == "mirror") == (self.roles[name] == "primary")

        def holds(rows: list[dict[str, Any]]) -> bool:
            (row,) = rows
            place, port = row["remote"].rsplit(":", 1)
            assert set(row) == {"local", "remote", "in_use", "up", "since", "round_trip_seconds", "reason"}
            assert place == OTHER[name]
            assert (port == "7000") == (dials or not linked)
            assert row["in_use"] == linked
            assert row["since"] <= trio.current_time()
            assert (row["round_trip_seconds"] is None) or is_round_trip(row["round_trip_seconds"])
            if linked:
                assert (row["up"], row["reason"]) == (True, None)
            return True

        return holds

    def is_error(self, told: Any) -> bool:
        if self.state == "diverged":
            return told is None or "both hosts are primary" in told
        return is_text(told) if self.state == "degraded" else told is None

    def since_lost(self, told_s: float) -> bool:
        assert self.lost_at is not None
        return -0.01 < told_s - (trio.current_time() - self.lost_at) < 1  # rounded

    def is_new_line(self, told: str) -> bool:
        return told != self.generation and int(told, 16) > 0

    def is_reserved(self, told: list[dict[str, Any]]) -> bool:
        (held,) = told
        return bool({key: held[key] for key in self.reserved} == self.reserved and held["since"] > 0)

    def available_bytes(self, name: str) -> int:
        return self.hosts[name].roles.volume.space.statvfs().f_bavail * 4096

    def compare(self) -> None:
        """Every field of both hosts with what is so."""
        lines = {self.status(name)["generation"] for name in self.hosts}
        assert len(lines) == (2 if self.state in ("degraded", "diverged") else 1)
        for name in self.hosts:
            told, truth = dict(flat(self.status(name))), self.truth(name)
            assert set(told) == set(truth), f"{self.state}, {name}: each field is compared"
            for field, expected in truth.items():
                value = told[field]
                holds = expected(value) if callable(expected) else value == expected
                assert holds, f"{self.state}, {name}: {field} is {value!r}, expected {expected!r}"


def flat(value: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if isinstance(each, dict):
            yield from flat(each, f"{within}{key}.")
        else:
            yield within + key, each


def is_text(told: Any) -> bool:
    return isinstance(told, str) and bool(told)


def is_age(told: Any) -> bool:
    return bool(0 <= told < PATIENCE_S)


def is_round_trip(told: Any) -> bool:
    return told is None or bool(0 < told < PATIENCE_S)


def between(first: float, last: float) -> Callable[[Any], bool]:
    return lambda told: first - 0.001 <= told <= last + 0.001


@pytest.fixture
async def ledger(wire: Wire, pair: Pair, network: MemoryNetwork) -> Ledger:
    made = Ledger(pair, network, wire)
    await made.work()
    return made


async def test_while_both_hold_the_same(ledger: Ledger) -> None:
    ledger.compare()


async def test_while_changes_are_on_their_way(ledger: Ledger) -> None:
    ledger.network.stall("alpha", "beta")
    files = [await host.roles.lookup(ROOT_INODE, b"alpha") for host in ledger.hosts.values()]
    async with trio.open_nursery() as nursery:
        for (name, host), file, size in zip(ledger.hosts.items(), files, (300, 200), strict=True):
            nursery.start_soon(host.roles.perform, Write(file.number, 0), b"y" * size)
            ledger.pending[name] = [size]
            ledger.data[name, "mirror" if name == "alpha" else "forward"] += size
        await trio.testing.wait_all_tasks_blocked(0.01)  # they are sent, and nothing is answered
        ledger.changes["alpha"] += 1
        told = {name: ledger.status(name) for name in ledger.hosts}
        for name, status in told.items():
            pending = {key: status["communication"][f"pending_{key}"] for key in ("requests", "bytes")}
            assert pending == {"requests": 1, "bytes": sum(ledger.pending[name])}
            assert 0 < status["communication"]["oldest_seconds"] < PATIENCE_S
            assert status["change"] == ledger.changes[name]
        ledger.network.heal("alpha", "beta")
    for name in ledger.hosts:
        ledger.pending[name] = []
    ledger.changes = dict.fromkeys(ledger.hosts, ledger.changes["alpha"] + 1)
    ledger.requests["beta"] += 1
    await ledger.durable()  # and neither host is behind the other


async def test_while_the_peer_is_away(ledger: Ledger) -> None:
    await ledger.part()
    beta = ledger.hosts["beta"].roles
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beta.perform, Write(ledger.reserved["inode"], 0), b"it waits")
        ledger.pending["beta"] = [len(b"it waits")]
        await until(lambda: ledger.status("beta")["communication"]["pending_requests"] == 1)
        ledger.compare()
        nursery.cancel_scope.cancel()


async def test_while_images_are_copied_and_when_they_are(ledger: Ledger) -> None:
    await ledger.part()
    await ledger.hosts["alpha"].management.change_pace(paused=True)
    before = trio.current_time()
    ledger.network.heal("alpha", "beta")
    for name in ledger.hosts:
        await until(lambda name=name: ledger.status(name)["resync"] is not None)  # type: ignore[misc]
    ledger.state, ledger.linked = "resyncing", (before, trio.current_time())
    ledger.changes["beta"] = ledger.changes["alpha"]
    ledger.new_line.add("beta")
    ledger.out_of_sync["beta"] = ledger.out_of_sync["alpha"]
    file = await ledger.hosts["beta"].roles.lookup(ROOT_INODE, b"apart0")
    await ledger.read("beta", file.number, routed=True)
    ledger.data["alpha", "forward"] += 10
    ledger.compare()
    await ledger.hosts["alpha"].management.change_pace(paused=False)
    for host in ledger.hosts.values():
        await host.roles.wait_normal()
    ledger.state = "normal"
    ledger.data["alpha", "mirror"] += APART_BYTES
    ledger.out_of_sync = dict.fromkeys(ledger.hosts, (0, 0))
    await ledger.durable()
    ledger.compare()


@pytest.mark.expects_warnings
async def test_in_a_split_brain(ledger: Ledger) -> None:
    await ledger.part()
    await ledger.hosts["beta"].succession.takeover(force=False)
    ledger.roles["beta"] = "primary"
    ledger.changes["beta"] += 1  # the record of its own line
    ledger.new_line.add("beta")
    await ledger.make("beta", b"apart at beta", REGION_BYTES, alone=True)
    ledger.out_of_sync["beta"] = 1, REGION_BYTES
    ledger.apart = {"alpha": APART_FILES, "beta": 1}
    ledger.network.heal("alpha", "beta")
    for name, other in OTHER.items():
        counts = {"here": ledger.apart[name], "there": ledger.apart[other]}
        await until(lambda name=name, counts=counts: ledger.status(name)["conflicts"] == counts)  # type: ignore[misc]
    ledger.state = "diverged"
    ledger.compare()


async def test_after_the_roles_were_exchanged(ledger: Ledger) -> None:
    before = trio.current_time()
    await ledger.hosts["alpha"].succession.switch()
    for host in ledger.hosts.values():
        await host.roles.wait_normal()
    ledger.linked = before, trio.current_time()
    ledger.roles = {"alpha": "backup", "beta": "primary"}
    for name in ledger.hosts:
        ledger.changes[name] += 1  # the record of the new primary's term
    ledger.locks = {"alpha": ["alpha"], "beta": ["alpha", "beta"]}
    await until(lambda: ledger.status("beta")["locks"]["held"] == 2)  # alpha reclaims its own
    file = await ledger.make("alpha", b"of the backup", 100)
    await ledger.read("alpha", file)
    await ledger.durable()
    ledger.compare()


async def test_what_the_other_host_decides_is_shown_as_it_is_and_why(ledger: Ledger) -> None:
    """The fence is the primary's; live, and while that is away as it was last."""
    alpha, beta = ledger.hosts["alpha"], ledger.hosts["beta"]
    alpha.change_settings({"fence": "data"})
    await until(lambda: ledger.status("beta")["effective"]["fence"] == "data")
    told = ledger.status("beta")
    assert (told["settings"]["fence"], told["reason"]) == ("never", "fence is as the primary has it")
    assert ledger.status("alpha")["effective"]["fence"] == "data"
    ledger.network.cut("alpha", "beta")
    await beta.unit.host.links.ended.wait()
    assert ledger.status("beta")["effective"]["fence"] == "data"
    alpha.roles.host.news.modes.hear(
        Modes(Fence.NEVER, Communication.MEMORY)
    )  # as a backup with another kind says
    assert ledger.status("alpha")["effective"]["communication"] == "memory"
