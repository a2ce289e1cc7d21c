"""Trouble: faults of the line, the clocks and the processes, whenever the seed says so."""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import FusemirrorError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPACE_RESERVE_BYTES_MAX
from fusemirror.settings import Fence
from tests.simulation.disk import Killed
from tests.simulation.world import SimulatedHost, Spawn, World

_STEPS_MAX = 40
_CHECKPOINTS_MAX = 30
_TRIPS_TO_MEET = 16  # over both paths, with handshakes and a dial that came too early
_LINE_FAULTS = frozenset({"break", "cut", "late", "refuse", "reset", "slow", "stall", "stall-from"})


class Trouble:
    """Draws faults until it is cancelled; `end` then ends every fault that lasts."""

    def __init__(self, world: World, spawn: Spawn) -> None:
        self._world = world
        self._spawn = spawn
        self._random = world.random
        self._busy: set[str] = set()
        self._line_faults = 0
        self._disk_faults = 0
        self._calm = False  # the line and the disks stay as they are: the primary is being replaced

    async def run(self) -> None:
        options = self._world.options
        if not options.faults:
            return
        async with trio.open_nursery() as nursery:
            for _ in range(options.fault_count):
                await trio.sleep(self._random.expovariate(1 / options.fault_interval))
                kind = self._random.choice(options.faults)
                self._world.faults[kind] += 1
                fault, *whose = kind.split()
                hosts = [host for host in self._world.hosts if {host.role, "both"}.intersection(whose)]
                if whose and not hosts:
                    continue  # the roles are being exchanged, and nobody has this one
                if fault in _LINE_FAULTS:
                    nursery.start_soon(self._trouble_line, fault, hosts)
                elif fault == "lie":
                    nursery.start_soon(self._lie, hosts[0])
                elif fault in ("blind", "alone", "sluggish"):
                    nursery.start_soon(self._trouble_witness, fault, hosts)
                elif fault == "hold":
                    nursery.start_soon(self._hold_resync)
                elif fault == "clock":
                    self._set_clocks(hosts)
                elif fault in ("full", "fail", "short"):
                    for host in hosts:
                        nursery.start_soon(self._trouble_disk, host, fault)
                elif fault == "decline":
                    for host in hosts:
                        nursery.start_soon(self._decline, host)
                elif fault == "toggle":
                    for host in hosts:
                        host.toggle_acknowledge()
                elif fault == "switch":
                    for host in hosts[:1]:
                        nursery.start_soon(self._switch, host)
                elif kind == "restore primary":
                    for host in hosts[:1]:
                        nursery.start_soon(self._restore_primary, host)
                elif fault == "takeover":
                    for host in hosts[:1]:
                        nursery.start_soon(self._take_over_from, host)
                else:
                    for host in hosts:
                        nursery.start_soon(self._trouble_process, host, fault)

    async def end(self) -> None:
        """On return nothing is broken, both clocks are right, and both processes run."""
        self._world.network.accept_delay = lambda: 0.0
        for lies in self._world.lies.values():
            lies.tell_no_more()
        for host in self._world.hosts:
            host.disk.kill_never()
            host.wall_offset_ns = 0
            host.room.has_room()
            host.resume()
            await self._mount_again(host)
            if host.stopping.is_set() or host.disk.dead:
                await host.ended.wait()
            self._start(host)
        self._heal()
        if self._world.witness is not None:
            self._world.witness.cut_from.clear()
            self._world.witness.slow_s = 0.0
        for host in self._world.hosts:  # whichever is the primary by now
            await host.serving.wait()
        self._set_pace(paused=False)
        for lies in self._world.lies.values():
            await lies.check_refused()
            self._world.faults["lies told"] += len(lies.told)

    def _start(self, host: SimulatedHost) -> None:
        """Start its process, unless it runs."""
        if not host.up:
            self._world.network.power_on(host.name)
            host.start(self._spawn)

    def _outage_s(self) -> float:
        return self._random.expovariate(1 / self._world.options.outage)

    # --- the line -----------------------------------------------------------------------------------------

    async def _trouble_line(self, fault: str, hosts: list[SimulatedHost]) -> None:
        """Something that the line does, until it is healed; several at once end together."""
        if self._calm:
            return
        network, names = self._world.network, [host.name for host in self._world.hosts]
        if fault == "break":
            network.break_one(*names)
            return
        if fault == "cut":
            network.cut(*names)
        elif fault == "slow":
            network.slow(names[0], names[1], self._outage_s())
        elif fault == "late":
            network.accept_delay = self._outage_s
        elif fault == "stall-from":
            network.stall_one_way(hosts[0].name, hosts[0].peer)
        elif fault == "refuse":
            network.refuse(hosts[0].name, hosts[0].peer)
        else:
            network.wall_off(names[0], names[1], [host.name for host in hosts])
            for host in hosts:
                host.reset()  # it knows at once, and the other does not hear of it
        self._line_faults += 1
        await trio.sleep(self._outage_s())
        self._line_faults -= 1
        self._heal()

    async def _trouble_witness(self, fault: str, hosts: list[SimulatedHost]) -> None:
        """Hosts do not reach the witness, and with `alone` not each other either; or the witness is slow."""
        witness = self._world.witness
        assert witness is not None
        self._world.trace(f"{fault} {[host.name for host in hosts]}")
        if fault == "sluggish":
            witness.slow_s = self._outage_s()
        else:
            witness.cut_from.update(host.name for host in hosts)
        if fault == "alone":
            await self._trouble_line("cut", hosts)
        else:
            await trio.sleep(self._outage_s())
        witness.slow_s = 0.0
        witness.cut_from.clear()

    async def _lie(self, liar: SimulatedHost) -> None:
        """A message of this host is changed on its way; on return the other host has ended the connection."""
        if self._calm:
            return
        lies = self._world.lies[liar.peer]
        self._line_faults += 1
        lies.tell_one()
        await trio.sleep(self._outage_s() + self._world.options.peer_timeout)
        lies.tell_no_more()
        for told in lies.told:
            await told.over.wait()
        self._line_faults -= 1

    def _heal(self) -> None:
        self._world.network.accept_delay = lambda: 0.0
        self._world.network.heal(*[host.name for host in self._world.hosts])

    # --- the resync ---------------------------------------------------------------------------------------

    async def _hold_resync(self) -> None:
        """A person lets nothing be copied for a while, and then slowly, where the primary is there."""
        self._set_pace(paused=True)
        await trio.sleep(self._outage_s())
        self._set_pace(paused=False)

    def _set_pace(self, *, paused: bool) -> None:
        for host in self._world.hosts:  # both where one has yet to hear that it is the primary no more
            unit = host.present if host.volume is not None else None
            if isinstance(unit, PrimaryUnit):
                self._world.trace(f"resync {'paused' if paused else 'goes on'}")
                rate = self._random.choice((0, 1 << 20, 1 << 24))
                with host.inside(), suppress(Killed, OSError):
                    unit.mirror.change_pace(rate_bytes=rate, paused=paused)

    # --- clocks -------------------------------------------------------------------------------------------

    def _set_clocks(self, hosts: list[SimulatedHost]) -> None:
        """Somebody sets the time of day, forwards or back; monotonic clocks do not jump."""
        for host in hosts:
            offset_s = self._random.choice((0, 1e-3, 1.0, 3600.0, 1e9, 2.3e9, -1.5e9))
            host.wall_offset_ns = round(offset_s * 10**9)
            self._world.trace(f"the clock of {host.name} is off by {host.wall_offset_ns} ns")

    # --- roles --------------------------------------------------------------------------------------------

    async def _switch(self, host: SimulatedHost) -> None:
        """Ask this host for an exchange of roles; it may refuse, or die meanwhile."""
        if host.volume is None:
            return
        self._world.trace(f"switch at {host.name}")
        with (
            host.inside(),
            suppress(FusemirrorError),
            trio.move_on_after(self._world.options.io_timeout),
        ):
            began, process = trio.current_time(), host.process
            try:
                await host.succession.switch()
            except Exception:
                if host.up and host.process is process and not host.disk.dead:
                    raise  # else who asks a process hears nothing once that has ended
            else:
                self._world.trace(f"switched in {trio.current_time() - began:.6f}")

    async def _take_over_from(self, primary: SimulatedHost) -> None:
        """The primary is lost, and the other goes on: where nothing is lost by that, and no link is made
        to a process that lives. The old one comes back later, and has to give way by itself."""
        (other,) = (host for host in self._world.hosts if host is not primary)
        if self._busy or self._line_faults or self._disk_faults:
            return
        if primary.volume is None or other.volume is None:
            return
        # What was acknowledged early may be lost with the host, and is told of by `status` only.
        if self._world.options.asynchronous or not _is_redundant(primary):
            return
        self._calm = True
        self._busy.update((primary.name, other.name))
        try:
            primary.kill()
            await primary.ended.wait()
            with other.inside(), suppress(FusemirrorError):
                with trio.move_on_after(self._world.options.peer_timeout * 2):
                    await other.present.host.links.ended.wait()
                self._world.trace(f"takeover at {other.name}")
                await other.succession.takeover(force=False)
            await trio.sleep(self._outage_s())
            await self._bring_back(primary)
        finally:
            self._busy.clear()
            self._calm = False

    async def _restore_primary(self, host: SimulatedHost) -> None:
        """The primary's volume is put back from an older copy of it, where the backup lacks nothing."""
        (other,) = (each for each in self._world.hosts if each is not host)
        if self._busy or self._line_faults or self._disk_faults:
            return
        if host.volume is None or other.volume is None:
            return
        if not _is_redundant(host) or not self._meets_in_time():
            return
        self._calm = True
        self._busy.update((host.name, other.name))
        try:
            host.stop()
            await host.ended.wait()
            self._change_disk(host, "restore")
            await trio.sleep(self._outage_s())
            await self._bring_back(host)
        finally:
            self._busy.clear()
            self._calm = False

    def _meets_in_time(self) -> bool:
        """Whether a primary meets its backup before it could go on alone: with an older copy it would show
        and change what is gone (fusemirror(7), "Convergent")."""
        options = self._world.options
        trip_s = options.latency + options.jitter + options.coalescing
        goes_alone = options.witness or options.fence is Fence.NEVER
        return not goes_alone or options.peer_timeout > _TRIPS_TO_MEET * trip_s

    async def _bring_back(self, primary: SimulatedHost) -> None:
        """Start it, and wait until the hosts have met: a line that fails just now would part them."""
        primary.start(self._spawn)
        with trio.move_on_after(self._world.options.peer_timeout * 2):
            await primary.serving.wait()
            with primary.inside():
                await primary.unit.wait_connected()

    # --- processes ----------------------------------------------------------------------------------------

    async def _trouble_process(self, host: SimulatedHost, fault: str) -> None:
        if not host.up or host.name in self._busy:
            return
        self._busy.add(host.name)
        try:
            if fault == "pause":
                await self._pause(host)
            else:
                await self._end_process(host, fault)
        finally:
            self._busy.discard(host.name)

    async def _pause(self, host: SimulatedHost) -> None:
        host.pause()
        try:
            await trio.sleep(self._outage_s())
        finally:
            host.resume()

    async def _end_process(self, host: SimulatedHost, fault: str) -> None:
        if fault in ("stop", "restore", "replace"):
            host.stop()
        else:
            await self._kill(host, lambda: self._end_at_once(host, fault))
        await host.ended.wait()
        if self._is_spare(host):
            self._change_disk(host, fault)
        await trio.sleep(self._outage_s())
        self._start(host)
        if self._random.random() < self._world.options.kill_in_step / 3:
            await self._kill_in_step(host)  # while it recovers
            if host.disk.dead:
                await host.ended.wait()
                self._start(host)

    def _end_at_once(self, host: SimulatedHost, fault: str) -> None:
        if fault == "power" and self._is_spare(host):
            host.power_off()
        else:
            host.kill()

    def _is_spare(self, host: SimulatedHost) -> bool:
        """Whether the other host has all that was acknowledged; roles may have changed by now."""
        others = [other.role for other in self._world.hosts if other is not host]
        return host.role == "backup" and others == ["primary"]

    def _change_disk(self, host: SimulatedHost, fault: str) -> None:
        """What becomes of the disk of a host that is off."""
        if fault == "power":
            host.lose()
        elif fault == "replace":
            host.replace_disk()
        elif fault == "restore":
            if host.saved is None:
                host.save()
            else:
                host.restore()

    async def _trouble_disk(self, host: SimulatedHost, fault: str) -> None:
        """A disk that is full or broken for a while, or says that there is little room above its reserve; a
        process that could not start, or end, is started after that."""
        if self._calm:
            return
        self._disk_faults += 1
        try:
            await self._break_disk(host, fault)
        finally:
            self._disk_faults -= 1

    async def _break_disk(self, host: SimulatedHost, fault: str) -> None:
        self._world.trace(f"{fault} the disk of {host.name}")
        if fault == "short":
            host.room.free_bytes = SPACE_RESERVE_BYTES_MAX + self._random.choice((0, 0, 9_000, 150_000))
        elif fault == "fail":
            host.room.broken_after(self._random.randrange(_STEPS_MAX))
        else:
            host.room.full_after(self._random.randrange(_STEPS_MAX))
        await trio.sleep(self._outage_s())
        host.room.has_room()
        if host.name not in self._busy:
            await self._mount_again(host)
            self._start(host)

    async def _decline(self, host: SimulatedHost) -> None:
        """The disk of a backup does not write one image for a while, as if a person had made it immutable."""
        volume = host.volume
        numbers = [] if volume is None else sorted(volume.images.numbers())
        if self._calm or volume is None or not numbers:
            return
        bad, write, over = self._random.choice(numbers), volume.images.write, trio.Event()

        def refuse(inode: InodeNumber, *others: Any) -> None:
            if inode == bad and host.role == "backup" and not over.is_set():
                raise PermissionError(errno.EPERM, "Operation not permitted")
            write(inode, *others)

        self._world.trace(f"decline inode {bad} at {host.name}")
        volume.images.write = refuse  # type: ignore[method-assign, assignment]
        try:
            await trio.sleep(self._outage_s())
        finally:
            over.set()

    async def _mount_again(self, host: SimulatedHost) -> None:
        """What a person does where a host stopped serving because its disk failed."""
        if host.volume is not None and (failure := host.volume.health.failure) is not None:
            assert host.room.refused, f"{host.name} stopped, and its disk is good: {failure}"
            host.kill()
            await host.ended.wait()

    async def _kill(self, host: SimulatedHost, kill: Callable[[], None]) -> None:
        """Before one of the next steps that it does on its disk, or wherever its tasks happen to wait."""
        if self._random.random() < self._world.options.kill_in_step:
            await self._kill_in_step(host)
        for _ in range(self._random.randrange(_CHECKPOINTS_MAX)):
            await trio.lowlevel.checkpoint()
        kill()

    async def _kill_in_step(self, host: SimulatedHost) -> None:
        host.disk.kill_after(self._random.randrange(_STEPS_MAX))
        with trio.move_on_after(1):
            await host.ended.wait()
        host.disk.kill_never()


def _is_redundant(primary: SimulatedHost) -> bool:
    """Whether everything that the primary has acknowledged is at the backup too."""
    unit = primary.present
    return isinstance(unit, PrimaryUnit) and unit.is_normal  # what its disk declined the backup lacks
