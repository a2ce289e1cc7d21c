"""The divergence exchange: while their histories differ, two hosts tell each other what they changed.

Each says how many files that is whenever it changes, and gives the list when it is asked. The session may
be of either path, or one of two hosts with the same role, which make no link.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from fusemirror.channel.session import Session
from fusemirror.divergence.listing import DivergentChanges, bytes_of, fork_point
from fusemirror.errors import ChannelError, ConnectionLost, FusemirrorError, RemoteProtocolError
from fusemirror.limits import (
    DIFFERENCES_PER_MESSAGE,
    DIFFERENCES_TOLD_BYTES_MAX,
    DIFFERENCES_TOLD_MAX,
    DIVERGENT_LOOK_INTERVAL_S,
    DIVERGENT_LOOKS_PER_S,
)
from fusemirror.protocol.messages import (
    Apart,
    AskApart,
    CountApart,
    Difference,
    History,
)
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


@dataclass
class Listed:
    """What one host changed: `count` in all, not all listed if they are many. `whole`: it knows all of it."""

    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    whole: bool = True


@dataclass
class _Question:
    token: int
    listed: Listed = field(default_factory=Listed)
    listed_bytes: int = 0
    ended: trio.Event = field(default_factory=trio.Event)
    answered: bool = False


@dataclass(eq=False)
class _Talk:
    """Over one session; and the question of the other host that came by it last."""

    session: Session
    token: int = 0
    asked: trio.Event = field(default_factory=trio.Event)


class DivergenceExchange:
    """Idle until `begin`, and again once `is_diverged` says no."""

    def __init__(self, volume: Volume, is_diverged: Callable[[], bool] = lambda: True) -> None:
        self.here: DivergentChanges | None = None
        self._is_diverged = is_diverged
        self._volume = volume
        self._begun = trio.Event()
        self._here_count: int | None = None
        self._there_count: int | None = None
        self._talks: list[_Talk] = []  # each host may have dialed one; the newest is the last
        self._asking = trio.Lock()
        self._question = _Question(0)

    @property
    def connected(self) -> bool:
        """The other host is there to be asked."""
        return bool(self._talks)

    def status(self) -> dict[str, Any] | None:
        """How many divergent files each host has; None where there is no split brain, or not yet counted."""
        if self.here is None or not self._is_diverged():
            return None
        return {"here": self._here_count, "there": self._there_count}

    def begin(self, theirs: History | None) -> None:
        """The histories of the two hosts diverged. Nothing where that is known."""
        first = fork_point(self._volume, theirs)
        if self.here is None or self.here.first != first:
            self.here = DivergentChanges(self._volume, first)
            self._here_count = None
            self._begun.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Count what is changed here while the histories differ, for ever."""
        task_status.started()
        while True:
            while (here := self.here) is None:
                await self._begun.wait()
            self._begun = trio.Event()
            if not self._is_diverged():
                self.here = None
                continue
            await self._count(here)
            # A host on which programs write would do little else where there is very much to be looked up.
            pause_s = max(DIVERGENT_LOOK_INTERVAL_S, here.looked_up / DIVERGENT_LOOKS_PER_S)
            with trio.move_on_after(pause_s):
                await self._begun.wait()  # another fork point: what was counted is of no use

    async def _count(self, here: DivergentChanges) -> None:
        count = await here.count()
        if count != self._here_count:
            self._here_count = count
            self._tell_count()

    def _tell_count(self) -> None:
        if self._here_count is None:
            return
        for talk in self._talks:  # which of them is the newest to the other host is not known here
            with suppress(ConnectionLost):
                talk.session.send(CountApart(self._here_count))

    # --- lists --------------------------------------------------------------------------------------------

    async def list_here(self) -> Listed:
        """What this host changed."""
        if self.here is None:
            return Listed()
        here = self.here
        found, count = await here.told()
        return Listed(found, count, here.whole)

    async def list_there(self, timeout_s: float) -> Listed | None:
        """What the other host says that it changed; None where it is away, or does not answer in time."""
        async with self._asking:
            if not self._talks:
                return None
            session = self._talks[-1].session
            self._question = question = _Question(self._question.token + 1)
            try:
                session.send(AskApart(question.token))
                with trio.move_on_after(timeout_s):
                    await question.ended.wait()
            except ChannelError as error:
                log.info("the other host was not asked what it changed: %s", error)
            return question.listed if question.answered else None

    # --- the conversation ---------------------------------------------------------------------------------

    async def run_over(self, session: Session) -> None:
        """Talk over a session until it is lost; it is closed on return. Cancellation leaves it as it is."""
        talk = _Talk(session)
        self._talks.append(talk)
        self._there_count = None
        self._tell_count()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer_for_ever, talk)
                await self._listen(talk)
                nursery.cancel_scope.cancel()
        finally:
            self._talks.remove(talk)
            if not self._talks:
                self._there_count = None
            self._question.ended.set()

    async def _listen(self, talk: _Talk) -> None:
        session = talk.session
        try:
            while True:
                for message, _ in await session.receive():
                    if isinstance(message, CountApart):
                        self._there_count = max(0, message.count)
                    elif isinstance(message, AskApart):
                        talk.token = message.token
                        talk.asked.set()
                    elif isinstance(message, Apart):
                        self._take(session, message)
                    else:
                        raise RemoteProtocolError(session.peer_name, f"unexpected {type(message).__name__}")
        except ChannelError as error:
            session.close(error.why)

    def _take(self, session: Session, message: Apart) -> None:
        question = self._question
        if message.token != question.token:
            return  # asked for too long ago
        if len(question.listed.differences) + len(message.differences) > DIFFERENCES_TOLD_MAX:
            raise RemoteProtocolError(session.peer_name, "it lists more than may be listed")
        for difference in message.differences:
            question.listed_bytes += bytes_of(difference)
            if question.listed_bytes <= DIFFERENCES_TOLD_BYTES_MAX:
                question.listed.differences.append(difference)
        if message.last:
            question.listed.count, question.listed.whole = max(0, message.count), message.whole
            question.answered = True
            question.ended.set()

    async def _answer_for_ever(self, talk: _Talk) -> None:
        """One question at a time: who asks again has given the one before up."""
        try:
            while True:
                await talk.asked.wait()
                talk.asked = trio.Event()
                await self._answer(talk.session, talk.token)
        except ChannelError as error:
            talk.session.close(error.why)  # who listens hears of it too

    async def _answer(self, session: Session, token: int) -> None:
        try:
            listed = await self.list_here()
        except (FusemirrorError, OSError) as error:
            log.info("the divergent changes could not be listed: %s", error)
            listed = Listed(whole=False)
        rest = listed.differences
        while len(rest) > DIFFERENCES_PER_MESSAGE:
            batch, rest = tuple(rest[:DIFFERENCES_PER_MESSAGE]), rest[DIFFERENCES_PER_MESSAGE:]
            await session.wait_room()
            session.send(Apart(token, batch))
        session.send(Apart(token, tuple(rest), last=True, count=listed.count, whole=listed.whole))
