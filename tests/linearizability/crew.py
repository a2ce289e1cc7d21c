"""Processes on both hosts that work on the same few names; together they keep one history."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Self

from tests.hosts import CHECKOUT, Host, wait_until
from tests.linearizability.history import Operation
from tests.linearizability.model import LOOKS_AT_CONTENT
from tests.linearizability.worker import Overtaken, make_places, read_record

PATIENCE_S = 60.0
KILL_S = 5.0


class Member:
    """One process, `worker.py`."""

    def __init__(self, host: Host, number: int, directory: Path, control: Path, seed: int) -> None:
        self.host = host
        self.name = f"{host.name}-{number}"
        self._record = control / f"record-{number}"
        self._pause = control / f"pause-{number}"
        command = (sys.executable, "-m", "tests.linearizability.worker")
        self._process: Popen[bytes] = host.start(
            *command, directory, control, str(number), str(seed), stderr=PIPE, cwd=CHECKOUT
        )

    @property
    def lines(self) -> int:
        """Of its record: about two for each call."""
        return self._record.read_bytes().count(b"\n") if self._record.exists() else 0

    @property
    def waits_for_answer(self) -> bool:
        return self._last() in ("begins", "busy")

    @property
    def paused(self) -> bool:
        return self._last() == "paused"

    def _last(self) -> str:
        """The kind of the last line that is whole."""
        lines = self._record.read_bytes().splitlines()
        return str(json.loads(lines[-1])[0]) if lines else ""

    @property
    def doubts(self) -> int:
        return self._record.read_bytes().count(b'["doubt"')

    @property
    def reopenings(self) -> int:
        """How often it was about to open again the files that everybody had left alone."""
        return self._record.read_bytes().count(b'["reopens"')

    def tail(self) -> str:
        """The end of its record, for people."""
        last = self._record.read_text().splitlines()[-4:]
        return f"{self.name}: {last}"

    def pause(self) -> None:
        """It pauses after the call under way."""
        self._pause.touch()

    def resume(self) -> None:
        self._pause.unlink()

    def check_alive(self) -> None:
        assert self._process.poll() is None, self._ended()

    def _ended(self) -> str:
        assert self._process.stderr is not None
        return f"{self.name} ended with {self._process.returncode}:\n{self._process.stderr.read().decode()}"

    def finish(self, overtaken: list[Overtaken]) -> list[Operation]:
        """What it did; `AssertionError` if something surprised it. `overtaken`: see `read_record`."""
        with self._process:
            self._process.wait(PATIENCE_S)
            assert self._process.returncode == 0, self._ended()
        return read_record(self.name, self._record, overtaken)

    def kill(self) -> None:
        """It has ended on return, unless it waits for a mount that does not answer."""
        self._process.kill()
        with suppress(TimeoutExpired):
            self._process.wait(KILL_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


class Crew:
    """All of them, at work while the context lasts."""

    def __init__(self, hosts: tuple[Host, Host], members: int, control: Path, seed: int) -> None:
        """`control` is a new directory; one of the same name is made in the mirrored filesystem."""
        self._hosts, self._control = hosts, control
        self._members_count, self._seed = members, seed
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        self._control.mkdir()
        name = self._control.name
        (self._hosts[0].mountpoint / name).mkdir()
        self._made = make_places(self._hosts[0].mountpoint / name)
        for number in range(1, self._members_count + 1):
            host = self._hosts[number % 2]
            self.members.append(
                Member(host, number, host.mountpoint / name, self._control, self._seed + number)
            )
        wait_until(lambda: all(member.lines for member in self.members), PATIENCE_S, "the first calls")
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members:
            member.kill()

    def on(self, host: Host) -> list[Member]:
        return [member for member in self.members if member.host is host]

    def wait_calls(self, calls: int, *hosts: Host) -> None:
        """Return once the processes of these hosts, or all, have done that many more."""
        members = [member for host in hosts or self._hosts for member in self.on(host)]
        wanted = sum(member.lines for member in members) + 2 * calls

        def reached() -> bool:
            for member in self.members:
                member.check_alive()
            return sum(member.lines for member in members) >= wanted

        wait_until(reached, PATIENCE_S, f"{calls} calls")

    def wait_reopened(self) -> None:
        """Return once each process is opening again what everybody left alone for a while."""
        before = {member: member.reopenings for member in self.members}
        wait_until(
            lambda: all(member.reopenings > count for member, count in before.items()),
            PATIENCE_S,
            "files opened again",
        )

    def wait_blocked(self, host: Host) -> None:
        """Return once every process of the host waits for an answer."""
        members = self.on(host)
        try:
            wait_until(lambda: all(each.waits_for_answer for each in members), PATIENCE_S, "blocked calls")
        except TimeoutError:
            print(*(member.tail() for member in members), sep="\n")
            raise

    @contextmanager
    def paused(self, host: Host) -> Iterator[None]:
        """None of the host's processes has a call under way inside; all begin one on return."""
        members = self.on(host)
        for member in members:
            member.pause()
        wait_until(lambda: all(member.paused for member in members), PATIENCE_S, "a pause")
        try:
            yield
        finally:
            for member in members:
                member.resume()

    def wait_doubt(self, host: Host) -> None:
        """Return once a call of each process of the host has ended in doubt."""
        before = {member: member.doubts for member in self.on(host)}
        wait_until(
            lambda: all(member.doubts > doubts for member, doubts in before.items()), PATIENCE_S, "doubt"
        )

    def finish(self) -> list[Operation]:
        """End the work. The history, in the order of invocation."""
        (self._control / "stop").touch()
        history = [self._made, *self._operations()]
        return sorted(history, key=lambda operation: operation.invoked)

    def _operations(self) -> Iterator[Operation]:
        for host in self._hosts:
            overtaken: list[Overtaken] = []
            operations = [each for member in self.on(host) for each in member.finish(overtaken)]
            # The writer's host shows such a write, and the other does not while it is alone (fusemirror(7),
            # EXCLUSIVE ACCESS): no one order has both.
            yield from (each for each in operations if not _looks_at_one(each, overtaken))


def _looks_at_one(look: Operation, overtaken: list[Overtaken]) -> bool:
    return look.call in LOOKS_AT_CONTENT and any(
        look.arguments[0] == inode and look.invoked < until and (look.returned or until) > since
        for inode, since, until in overtaken
    )
