"""A witness in memory: one record, a line of its own to each host, and answers that come late or never."""

from random import Random

import trio

from fusemirror.witness.interface import Witness, WitnessRecord


class SimulatedWitness:
    """The record that both hosts see. What was asked takes effect even where nobody waits for it any more."""

    def __init__(self, random: Random, latency_s: float) -> None:
        self._random = random
        self._latency_s = latency_s
        self.slow_s = 0.0
        self.cut_from: set[str] = set()
        self.record = WitnessRecord("", 0)

    def of(self, host: str) -> Witness:
        return _Line(self, host)

    async def ask(self, host: str, holder: str | None, revision: int) -> tuple[WitnessRecord, bool]:
        """A question without `holder` is only a look."""
        answer: list[tuple[WitnessRecord, bool]] = []
        answered = trio.Event()

        async def carry() -> None:
            await self._travel(host)
            swaps = holder is not None and self.record.revision == revision
            if holder is not None and swaps:
                self.record = WitnessRecord(holder, revision + 1)
            answer.append((self.record, swaps))
            await self._travel(host)
            answered.set()

        # A task of nobody's: it goes on when its host is killed or paused.
        trio.lowlevel.spawn_system_task(carry)
        await answered.wait()
        return answer[0]

    async def _travel(self, host: str) -> None:
        await trio.sleep(self._random.random() * 2 * self._latency_s)
        await trio.sleep(self._random.random() * self.slow_s)
        if host in self.cut_from:
            await trio.sleep_forever()


class _Line(Witness):
    def __init__(self, witness: SimulatedWitness, host: str) -> None:
        self._witness = witness
        self._host = host

    async def look(self) -> WitnessRecord:
        return (await self._witness.ask(self._host, None, 0))[0]

    async def swap(self, holder: str, revision: int) -> bool:
        return (await self._witness.ask(self._host, holder, revision))[1]
