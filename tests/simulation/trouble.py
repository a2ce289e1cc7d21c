"""Trouble: cuts and stalls of the line, and ends of processes, whenever the seed says so."""

import trio

from tests.simulation.world import SimulatedHost, Spawn, World

_STEPS_MAX = 40
_CHECKPOINTS_MAX = 30


class Trouble:
    """Draws faults until it is cancelled; `end` then ends every fault that lasts."""

    def __init__(self, world: World, spawn: Spawn) -> None:
        self._world = world
        self._spawn = spawn
        self._random = world.random
        self._busy: set[str] = set()

    async def run(self) -> None:
        options = self._world.options
        if not options.faults:
            return
        async with trio.open_nursery() as nursery:
            for _ in range(options.fault_count):
                await trio.sleep(self._random.expovariate(1 / options.fault_interval))
                self._world.faults += 1
                fault, *whose = self._random.choice(options.faults).split()
                hosts = [host for host in self._world.hosts if {host.role, "both"}.intersection(whose)]
                if fault in ("cut", "stall", "reset"):
                    nursery.start_soon(self._break_line, fault, hosts)
                else:
                    for host in hosts:
                        nursery.start_soon(self._end_process, host, fault)

    async def end(self) -> None:
        """On return nothing is broken, and both processes run."""
        for host in self._world.hosts:
            host.disk.kill_never()
            if host.stopping.is_set() or host.disk.dead:
                await host.ended.wait()
            if not host.up:
                host.start(self._spawn)
        self._heal()

    def _outage_s(self) -> float:
        return self._random.expovariate(1 / self._world.options.outage)

    async def _break_line(self, fault: str, hosts: list[SimulatedHost]) -> None:
        network, names = self._world.network, [host.name for host in self._world.hosts]
        (network.cut if fault == "cut" else network.stall)(*names)
        for host in hosts:
            host.reset()  # it knows at once, and the other does not hear of it
        await trio.sleep(self._outage_s())
        self._heal()

    def _heal(self) -> None:
        self._world.network.heal(*[host.name for host in self._world.hosts])

    async def _end_process(self, host: SimulatedHost, fault: str) -> None:
        if not host.up or host.name in self._busy:
            return
        self._busy.add(host.name)
        try:
            if fault == "stop":
                host.stop()
            else:
                await self._kill(host)
            await host.ended.wait()
            await trio.sleep(self._outage_s())
            host.start(self._spawn)
            if self._random.random() < self._world.options.kill_in_step / 3:
                await self._kill_in_step(host)  # while it recovers
                if host.disk.dead:
                    await host.ended.wait()
                    host.start(self._spawn)
        finally:
            self._busy.discard(host.name)

    async def _kill(self, host: SimulatedHost) -> None:
        """Before one of the next steps that it does on its disk, or wherever its tasks happen to wait."""
        if self._random.random() < self._world.options.kill_in_step:
            await self._kill_in_step(host)
        for _ in range(self._random.randrange(_CHECKPOINTS_MAX)):
            await trio.lowlevel.checkpoint()
        host.kill()

    async def _kill_in_step(self, host: SimulatedHost) -> None:
        host.disk.kill_after(self._random.randrange(_STEPS_MAX))
        with trio.move_on_after(1):
            await host.ended.wait()
        host.disk.kill_never()
