"""Two hosts in one process, the line between them, and everything that can happen to them."""

import os
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import msgspec
import trio

from fusemirror.channel.transport import Listener, Network, Transport, everybody
from fusemirror.control.management import Management
from fusemirror.control.role import Role
from fusemirror.control.succession import Succession
from fusemirror.control.unit import ControlUnit
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport, FusemirrorError, PeerUnreachable
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.seams import Seams
from fusemirror.settings import Access, Acknowledge, Communication, OnDegraded, Settings, changed
from fusemirror.volume.extents import extents_of
from fusemirror.volume.identity import Identity, KnownPeer
from fusemirror.volume.volume import Volume
from tests.memory_network import MemoryNetwork, MemoryTransport
from tests.simulation import disk
from tests.simulation.disk import Disk, Killed, Room
from tests.simulation.kernel import References, SimulatedKernel
from tests.simulation.lying import LIES, Lies, LyingTransport
from tests.simulation.options import Options
from tests.simulation.power import Surface
from tests.simulation.process import Clock, Process, current
from tests.simulation.witness import SimulatedWitness

T = TypeVar("T")
Program = Callable[["SimulatedHost"], Awaitable[None]]
Spawn = Callable[[Callable[[], Awaitable[None]]], None]

_BEGINNING_NS = 1_700_000_000 * 10**9
_PORT = 7000
_KEEP_STATUSES = frozenset({"switch primary", "switch backup"})
"""Faults through which exclusive statuses last until their data has landed: no lease runs out."""
PRIMARY, BACKUP = "a", "b"


class World:
    """Both hosts, their network and their trace. `random` decides everything that the seed has not yet."""

    def __init__(self, seed: int, options: Options, directory: Path) -> None:
        self.options = options
        self.random = Random(f"{seed} world")
        self.faults: Counter[str] = Counter()
        self.modes_set = 0
        """How often somebody began, or ended, to set another mode."""
        self.prepared = trio.Event()  # programs may begin
        self.trace_lines: list[str] = []
        self.network = MemoryNetwork(
            Random(f"{seed} network"),
            latency_s=options.latency,
            jitter_s=options.jitter,
            buffer_bytes=options.buffer_bytes,
            short_sends=options.short_sends,
            coalescing_s=options.coalescing,
            trace=self.trace_lines.append,
        )
        self.witness = (
            SimulatedWitness(Random(f"{seed} witness"), options.latency) if options.witness else None
        )
        lying = not set(LIES).isdisjoint(options.faults)
        self.lies = {name: Lies(Random(f"{seed} lies to {name}")) for name in (PRIMARY, BACKUP) if lying}
        """What each host is told by a peer that lies, where any does."""
        self.primary = SimulatedHost(self, PRIMARY, BACKUP, directory / PRIMARY)
        self.backup = SimulatedHost(self, BACKUP, PRIMARY, directory / BACKUP)
        self.hosts = (self.primary, self.backup)
        for host in self.hosts:
            host.make_volume("primary" if host.name == PRIMARY else "backup")
            if options.power_goes:
                host.surface = Surface(host.directory)

    def close(self) -> None:
        for host in self.hosts:
            if host.surface is not None:
                host.surface.close()

    def trace(self, text: str) -> None:
        self.trace_lines.append(f"{trio.current_time():.6f} {text}")


class SimulatedHost:
    """One host, over all lives of its mount process. `programs` run while it serves."""

    def __init__(self, world: World, name: str, peer: str, directory: Path) -> None:
        self.world = world
        self.name = name
        self._first_role: Literal["primary", "backup"] = "primary" if name == PRIMARY else "backup"
        self.directory = directory
        self.programs: list[Program] = []
        self._host: Host | None = None
        self.kernel: SimulatedKernel | None = None  # keeps names, above a host that serves
        self.references = References()
        self.room = Room()
        self.surface: Surface | None = None
        self.boot = 0
        self.disk = Disk(self.kill, self.room, None, self.boot)
        self.clock = self._draw_clock(world)
        self.process = Process(name, self.disk, self.clock)
        self.wall_offset_ns = 0
        self.serving = trio.Event()
        self.stopping = trio.Event()
        self.ended = trio.Event()
        self.up = False
        self.saved: Path | None = None
        self.peer = peer
        self._scope = trio.CancelScope()
        self._network = _ProcessNetwork(world, name)
        self._random = Random(f"{world.random.random()} {name}")
        self._settings = Settings(
            name="simulated",
            volume=str(directory),
            listen=f"{name}:{_PORT}",
            peer=f"{peer}:{_PORT}",
            peer_timeout=world.options.peer_timeout,
            io_timeout=world.options.io_timeout,
            fence=world.options.fence,
            on_degraded=OnDegraded(world.options.on_degraded),
            acknowledge=Acknowledge(world.options.acknowledge[self._first_role == "backup"]),
            communication=Communication(world.options.communication),
            access=Access(world.options.access),
        )
        self._seams = Seams(
            now_ns=self._time_of_day_ns,
            random_bytes=self._random.randbytes,
            run_blocking=self._run_blocking,
            fdatasync=disk.sync_data,
            fsync=disk.sync,
            begin_sync=disk.begin_sync,
            statvfs=disk.roomy,
        )

    def _draw_clock(self, world: "World") -> Clock:
        """A clock of its own: hosts were not started at the same time, and no two run at the same rate."""
        random = Random(f"{world.random.random()} clock {self.name}")
        skew = world.options.clock_skew
        return Clock(1 + random.choice((-skew, 0, skew)), random.choice((0.0, 1234.5, 1e6)))

    def _time_of_day_ns(self) -> int:
        """The same on both hosts, but for what `wall_offset_ns` says and the rates of their clocks."""
        return _BEGINNING_NS + self.wall_offset_ns + round((self.clock.now() - self.clock.beginning) * 10**9)

    def save(self) -> None:
        """Keep a copy of the volume as it is, for `restore`."""
        assert not self.up
        self.world.trace(f"save {self.name}")
        self.saved = self.directory.with_suffix(".saved")
        shutil.copytree(self.directory, self.saved, copy_function=_copy_data)

    def restore(self) -> None:
        """Put the copy in the place of the volume, as a person does who has a backup."""
        assert self.saved is not None
        self.world.trace(f"restore {self.name}")
        self.remove_volume()
        self.saved.rename(self.directory)
        self.saved = None
        self._directory_changed()

    def replace_disk(self) -> None:
        """A new disk, and a volume on it as `join` makes it."""
        self.world.trace(f"replace the disk of {self.name}")
        self.remove_volume()
        self.make_volume("backup")
        self._directory_changed()

    def remove_volume(self) -> None:
        assert not self.up
        shutil.rmtree(self.directory)

    def _directory_changed(self) -> None:
        if self.surface is not None:
            self.surface.begin()

    @property
    def acknowledges_early(self) -> bool:
        """Whether programs may be told of success before the other host sees it, at any time of the run."""
        options = self.world.options
        return options.acknowledge[self._first_role == "backup"] == "async" or any(
            fault.startswith("toggle") for fault in options.faults
        )

    @property
    def acknowledges_now(self) -> str:
        """What the host itself says of changes that are made now; nothing, where it does not serve."""
        options = self.world.options
        stays = options.access == "exclusive" and "change_access" not in options.kinds
        if stays and _KEEP_STATUSES.issuperset(options.faults):
            return "sync"  # whatever it says: a lost link only lets the other host see a write later
        return "" if self._host is None else self.present.modes.in_effect()["acknowledge"]

    def toggle_acknowledge(self) -> None:
        """As `fusemirror set`: from now on, and after a restart."""
        self.world.modes_set += 1
        toggled = {Acknowledge.SYNC: Acknowledge.ASYNC, Acknowledge.ASYNC: Acknowledge.SYNC}
        acknowledge = toggled[self._settings.acknowledge]
        self.world.trace(f"set {self.name} acknowledge={acknowledge}")
        self._settings = msgspec.structs.replace(self._settings, acknowledge=acknowledge)
        if self._host is not None:
            self._host.succession.configure(self._settings)

    async def set_access(self, access: Access) -> None:
        """As `fusemirror set`: the file is written first, and put back where the mount refuses."""
        before = self._settings.access
        self._keep_settings({"access": str(access)})
        try:
            await self.host.set({"access": str(access)})
        except (CheckReport, PeerUnreachable):
            self._keep_settings({"access": str(before)})
            raise

    def _keep_settings(self, values: dict[str, Any]) -> None:
        self._settings = changed(self._settings, values)

    def make_volume(self, role: Literal["primary", "backup"]) -> None:
        identities = {name: name.encode().hex() * 16 for name in (PRIMARY, BACKUP)}
        identity = Identity(
            filesystem="ab" * 16,
            name="simulated",
            host=identities[self.name],
            host_name=self.name,
            peers=(KnownPeer(identities[self.peer], self.peer),),
            role=role,
            complete=role == "primary",
            compare_all=False,
        )
        Volume.create(self.directory, identity, self._seams)

    @property
    def volume(self) -> Volume | None:
        """The volume of a process that lives and serves."""
        return None if self._host is None or self.disk.dead else self._host.unit.volume

    @property
    def unit(self) -> ControlUnit:
        """What a program asks; only while the host serves."""
        return self.host.roles

    @property
    def host(self) -> Host:
        assert self._host is not None, f"{self.name} does not serve"
        return self._host

    @property
    def management(self) -> Management:
        """What a person asks; only while the host serves."""
        return self.host.management

    @property
    def succession(self) -> Succession:
        return self.host.succession

    @property
    def present(self) -> Role:
        """The unit of the role that the host has now."""
        return self.host.unit

    @property
    def role(self) -> str:
        """As its volume says, whether a process serves it or not."""
        return Identity.load(self.directory).role

    @contextmanager
    def inside(self) -> Iterator[ControlUnit]:
        """What the caller asks the unit meanwhile, it asks as a program of this host."""
        token = current.set(self.process)
        try:
            yield self.unit
        finally:
            current.reset(token)

    # --- one life -------------------------------------------------------------------------------------

    def start(self, spawn: Spawn) -> None:
        """Start the process; `spawn` runs a task that lasts as long as it does."""
        assert not self.up
        self.world.trace(f"start {self.name}")
        self.up = True
        self.disk = Disk(self.kill, self.room, self.surface, self.boot)
        self.process = Process(self.name, self.disk, self.clock)
        self.serving, self.stopping, self.ended = trio.Event(), trio.Event(), trio.Event()
        self._network = _ProcessNetwork(self.world, self.name)
        self._scope = trio.CancelScope()
        spawn(self._run)

    async def _run(self) -> None:
        """From the start of the process to its end, by `stop` or by `kill`."""
        current.set(self.process)
        try:
            with self._scope:
                await self._serve()
        except* Killed:
            pass
        except* (FusemirrorError, OSError) as errors:
            # A killed process does not get to say what it met. A full disk may keep one from starting, or
            # from closing its volume in good order.
            starts_or_ends = not self.serving.is_set() or self.stopping.is_set()
            if not self.disk.dead and not (self.room.refused and starts_or_ends):
                raise
            self.world.trace(f"{self.name} could not go on: {errors.exceptions}")
        finally:
            self._host = None
            self.up = False
            self.world.trace(f"end {self.name} after {self.disk.steps} steps")
            self.ended.set()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            witness = self.world.witness
            witness_of = None if witness is None else lambda _: witness.of(self.name)
            host = Host(self._settings, self._network, self._seams, witness_of, keep=self._keep_settings)
            await host.open(stack)
            self._host = host
            self.references = host.unit.volume.invalidator = References()
            options = self.world.options
            self.kernel = SimulatedKernel(self._random, options.kernel_delay) if options.names_rest else None
            self.serving.set()
            async with trio.open_nursery() as nursery:
                await self._run_programs(nursery.start_soon)
            await host.drain("stopped by the simulation")

    async def _run_programs(self, start: Callable[[Program, "SimulatedHost"], None]) -> None:
        await self.world.prepared.wait()
        for program in self.programs:
            start(program, self)
        await self.stopping.wait()

    def stop(self) -> None:
        """End in good order: programs finish what they are at, then everything drains."""
        self.world.trace(f"stop {self.name}")
        self.stopping.set()

    def kill(self) -> None:
        """End as by SIGKILL: the disk stays as it is now, and the kernel closes the sockets."""
        self._end("kill", self._network.close)

    def power_off(self) -> None:
        """The host goes, without a word to anybody; `lose` then says what of its disk stays."""
        self._end("power off", partial(self._network.vanish, self.name))

    def lose(self) -> None:
        """What was not synced may be lost; only after `power_off`, and after the process has ended."""
        assert self.surface is not None
        assert not self.up
        self.boot += 1
        self.world.trace(f"{self.name} lost {self.surface.lose(self._random)}")

    def _end(self, how: str, leave_network: Callable[[], None]) -> None:
        if self.up and not self.disk.dead:
            self.world.trace(f"{how} {self.name}")
            self.disk.dead = True
            leave_network()
            self.process.resume()  # SIGKILL ends one that is stopped too
            self._scope.cancel()

    def pause(self) -> None:
        """As by SIGSTOP: nothing of the process runs, and its sockets stay."""
        self.world.trace(f"pause {self.name}")
        self.process.pause()

    def resume(self) -> None:
        self.world.trace(f"resume {self.name}")
        self.process.resume()

    def reset(self) -> None:
        """Every connection of the process is broken, as far as this host knows."""
        self.world.trace(f"reset {self.name}")
        self._network.reset()

    async def _run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        await trio.sleep(self._random.random() * self.world.options.disk_latency)
        result = function(*args)
        with trio.CancelScope(shield=True):
            await trio.sleep(self._random.random() * self.world.options.disk_latency)
        return result


def _copy_data(source: str, target: str) -> None:
    """Holes stay: a file may be longer than any disk. So do times of access: an image keeps its own there."""
    with (
        open(source, "rb", buffering=0, opener=_without_atime) as old,
        open(target, "xb", buffering=0) as new,
    ):
        for offset, length in extents_of(old.fileno(), FILE_BYTES_MAX):
            os.pwrite(new.fileno(), os.pread(old.fileno(), length, offset), offset)
        new.truncate(os.fstat(old.fileno()).st_size)
    shutil.copystat(source, target)


def _without_atime(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOATIME)


class _ProcessNetwork(Network):
    """The network as one process uses it: its end closes what it opened."""

    def __init__(self, world: World, name: str) -> None:
        self._network = world.network.host(name)
        self._lies = world.lies.get(name)
        self._trace = world.trace
        self._opened: list[Transport | Listener] = []

    async def connect(self, host: str, port: int) -> Transport:
        return self._use(await self._network.connect(host, port))

    async def listen(self, host: str, port: int) -> Listener:
        listener = _ProcessListener(await self._network.listen(host, port), self._use)
        self._opened.append(listener)
        return listener

    def _use(self, transport: Transport) -> Transport:
        if self._lies is not None:
            assert isinstance(transport, MemoryTransport)
            transport = LyingTransport(transport, self._lies, self._trace)
        self._opened.append(transport)
        return transport

    def close(self) -> None:
        for each in self._opened:
            each.close()

    def vanish(self, host: str) -> None:
        """Nobody hears that this end has gone."""
        for each in self._opened:
            if isinstance(each, MemoryTransport | LyingTransport):
                each.vanish(host)
            else:
                each.close()

    def reset(self) -> None:
        for each in self._opened:
            if isinstance(each, Transport):
                each.close()


class _ProcessListener(Listener):
    def __init__(self, listener: Listener, use: Callable[[Transport], Transport]) -> None:
        self._listener = listener
        self._use = use

    async def accept(self, admits: Callable[[str], bool] = everybody) -> Transport:
        return self._use(await self._listener.accept(admits))

    def close(self) -> None:
        self._listener.close()
