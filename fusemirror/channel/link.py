"""Links: both paths to one process of the peer, and the Linker that keeps making them.

Each host dials the path on which it makes requests, and accepts the other: the primary dials the
mirror path, the backup the forward path. When either session ends, the link is over, and the Linker
starts again. The newest connection wins: a peer that dials again has given up what it had before.

Both must make their links of the same two sessions, or each would go on pairing what it dialed last
with what the other dials next. So the primary *calls*: it names each of its dials, and the backup
answers by dialing with the same name. A backup that was not called dials too, to wake the primary.

A session that waits for its partner is watched: where the peer gives it up, both dial again at once, and
neither waits for what cannot come. A session counts for the role, and the term, that this host said in its
Hello: when the role changes, what was made under the old one ends, and what the peer has made already for
the new one goes on. While a host gives its role away it makes no link (`hold`): the next one is of its new
role, and is made of the call of the new primary.

Two hosts of the same role make no link. Where only a person can help them, they talk over what was
dialed, and dial no more until that is lost.
"""

import itertools
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from fusemirror import limits
from fusemirror.background import Background
from fusemirror.channel.absence import Absence
from fusemirror.channel.admission import HandshakeAdmission
from fusemirror.channel.dialing import Dialing
from fusemirror.channel.lines import Line
from fusemirror.channel.mover import Mover
from fusemirror.channel.pauses import Pauses
from fusemirror.channel.reception import Reception
from fusemirror.channel.session import Session, begin_session, shake_hands
from fusemirror.channel.transport import Listener, Network, Transport
from fusemirror.errors import (
    ChannelError,
    ConnectionLost,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
    ReplacedByPeer,
    SameRole,
)
from fusemirror.protocol.connection import DIALED_BY, Connection
from fusemirror.protocol.messages import Hello
from fusemirror.settings import Address

log = logging.getLogger(__name__)


class Link:
    """Both paths to one process of the peer. It lives as long as both sessions do."""

    def __init__(self, *, dialed: Session, accepted: Session) -> None:
        assert {dialed.path, accepted.path} == set(DIALED_BY), "one session of each path"
        self.mirror, self.forward = (dialed, accepted) if dialed.path == "mirror" else (accepted, dialed)
        self.peer: Hello = self.forward.peer
        """As the peer said last: either host says its Hello of the forward path, which answers the call of
        the mirror path, after it ended what there was before. Until then what it holds may have grown."""

    @property
    def close_reason(self) -> str | None:
        return self.mirror.close_reason or self.forward.close_reason

    @property
    def closed(self) -> bool:
        return self.close_reason is not None

    @property
    def refused(self) -> bool:
        """It ended because the peer sent what it may not."""
        return self.mirror.refused or self.forward.refused

    def close(self, reason: str) -> None:
        """End both sessions at once."""
        self.mirror.close(reason)
        self.forward.close(reason)

    def end(self, session: Session, error: ChannelError) -> None:
        """End both sessions because of what one of them met."""
        if isinstance(error, RemoteProtocolError):
            session.refuse(error)
        self.close(error.why)

    async def run(self, links: "trio.MemorySendChannel[Link]", mover: Mover | None = None) -> None:
        """Send the link up, serve both sessions until one ends, and end the other. `mover` is of the one that
        was dialed.

        A link that ends before it was taken is not sent. Cancellation closes the link.
        """
        try:
            async with trio.open_nursery() as nursery:
                for session in (self.mirror, self.forward):
                    nursery.start_soon(self._serve, session, nursery.cancel_scope)
                if mover is not None:
                    nursery.start_soon(mover.run)
                await links.send(self)
        finally:
            self.close("closed on this host")

    async def _serve(self, session: Session, link_scope: trio.CancelScope) -> None:
        await session.run()
        self.close(session.close_reason or "")
        link_scope.cancel()


class Encounters:
    """What to do where two hosts meet and make no link. By itself it does nothing."""

    def met_same_role(self, peer: Hello) -> bool:
        """The peer has the role of this host. Whether the two are to talk."""
        return False

    async def talk(self, session: Session) -> None:
        """Talk over a session with such a peer, until it is lost."""

    def was_replaced(self) -> None:
        """The peer says that it has another host in this one's place."""


class Talks:
    """Sessions with a peer of the same role, which make no link. Where only a person can help, the two hosts
    talk over them, and dial no more until they are lost."""

    def __init__(self) -> None:
        self.encounters = Encounters()
        self._sessions: list[Session] = []  # the newest last

    def begin(self, encounters: Encounters) -> None:
        """From now on this one is told."""
        self.encounters = encounters

    def __bool__(self) -> bool:
        return bool(self._sessions)

    def met(self, session: Session) -> bool:
        """Whether the two are to talk over a new session with such a peer."""
        if any(talk.peer.instance != session.peer.instance for talk in self._sessions):
            self.end("the peer restarted")
        return self.encounters.met_same_role(session.peer)

    async def run_over(self, session: Session) -> None:
        """Talk over a session until it is lost. Cancellation closes it."""
        self._sessions.append(session)
        for each in self._sessions[: -limits.TALKS_MAX]:
            each.close("the peer was met again, and again")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                await self.encounters.talk(session)
                session.close("nobody talks any more")
        finally:
            self._sessions.remove(session)
            session.close("closed on this host")

    def end(self, reason: str) -> None:
        """End them all."""
        for session in list(self._sessions):
            session.close(reason)


class _Timeouts(NamedTuple):
    peer_s: float
    path_s: float
    partner_s: float  # for a whole handshake, and for the session that is to match it


class _Calls:
    """The names of calls and of sessions. `current` is what our dial says; its partner says the same."""

    def __init__(self) -> None:
        self.current = b""
        self._count = itertools.count(1)

    def name(self, instance: bytes) -> bytes:
        """Another each time, for as long as the process lives."""
        return instance + next(self._count).to_bytes(8, "big")

    def call(self, instance: bytes) -> None:
        """Our next dial calls the peer anew."""
        self.current = self.name(instance)

    def answer(self, call: bytes) -> None:
        """Our next dial answers this call, or wakes a primary that has made none."""
        self.current = call


class Linker:
    """Meets the peer, again and again, and hands up each link to it.

    `make_hello(path)` is asked for each connection, because the history changes.
    """

    def __init__(
        self,
        network: Network,
        listen_addresses: tuple[Address, ...],
        peer_addresses: tuple[Address, ...],
        make_hello: Callable[[str], Hello],
        peer_timeout: float,
        path_timeout: float = limits.PATH_TIMEOUT_S,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.absence = Absence()
        self._timeouts = _Timeouts(
            peer_timeout,
            # Before the peer counts as away another address has had its turn.
            min(path_timeout, peer_timeout / 2),
            # What takes longer than `peer_timeout` would not last: no heartbeat would be answered in time.
            min(max(peer_timeout, limits.PARTNER_TIMEOUT_MIN_S), limits.HANDSHAKE_TIMEOUT_S),
        )
        admission = HandshakeAdmission(random_bytes)
        self.dialing = Dialing(network, admission, peer_addresses)
        self.reception = Reception(
            network,
            listen_addresses,
            admission,
            self._open_guest,
            self._welcome,
            self._keep_line,
            self._meet_same_role,
        )
        self._make_hello = make_hello
        self._link: Link | None = None
        self._dialed: Session | None = None  # ours, while it waits for its partner
        self._pauses = Pauses()
        self._beginnings = 0  # how often our role has changed
        self._accepted: Session | None = None  # the peer's newest, while it waits for its partner
        self._arrival = trio.Event()  # set when there is a newer one
        self._talks = Talks()
        self._calls = _Calls()
        self._retired = False

    @property
    def last_error(self) -> str | None:
        """Why there is no link now; None while there is one."""
        return self.absence.reason

    def retire(self) -> None:
        """Meet the peer no more; the link that there is now goes on until it ends.

        For a host about to say goodbye: a peer that is told so dials again at once.
        """
        self._retired = True
        self.reception.end()

    def hold(self) -> None:
        """Make no new link, until `go_on` or `meet_anew`: the role of this host is about to change. What the
        peer dials meanwhile is kept. The link that there is goes on until it ends."""
        if self._pauses.held is None:
            self._pauses.held = trio.Event()

    def go_on(self) -> None:
        """Make links again, where `hold` had ended that."""
        if self._pauses.held is not None:
            self._pauses.held.set()
            self._pauses.held = None

    def meet_anew(self, reason: str) -> None:
        """What this host says of itself has changed: sessions for which it said something else end, and the
        peer is met again at once. One that is of its new role stays."""
        if self._link is not None and (self._is_over(self._link.mirror) or self._is_over(self._link.forward)):
            self._link.close(reason)
        if self._accepted is not None and self._is_over(self._accepted):
            self._discard_accepted(reason)
        self._talks.end(reason)
        if self._dialed is not None and self._is_over(self._dialed):
            self._dialed.close(reason)
        self._beginnings += 1
        self._pauses.dial_soon()
        self._arrival.set()
        self.go_on()

    def _is_over(self, session: Session) -> bool:
        """This host says something else of itself, or of its peer, than it did for the session."""
        ours = self._make_hello("mirror")
        said = session.ours
        return any(
            getattr(said, each) != getattr(ours, each)
            for each in ("role", "term", "peer", "witness_identity")
        )

    async def run(
        self,
        links: trio.MemorySendChannel[Link],
        background: Background,
        encounters: "Encounters | None" = None,
        *,
        task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, and make links until retired. Started when it listens (`Reception.listen`); `ListenFailed`
        if it cannot. `encounters` says what to do where no link is to be made.

        Cancellation closes the link and everything that waits to become one.
        """
        self._talks.begin(encounters or Encounters())
        listeners = await self.reception.listen()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.reception.run, background)
                task_status.started(listeners)
                while not self._retired:
                    link = await self._meet()
                    met_at, beginning = trio.current_time(), self._beginnings
                    await self._serve(link, links)
                    lasted_s = trio.current_time() - met_at
                    if link.refused:
                        await self._rest_refused(lasted_s)
                    elif beginning == self._beginnings:
                        self._arrival = trio.Event()
                        with trio.move_on_after(self._pauses.after_link(lasted_s)):
                            await self._arrival.wait()  # the peer has rested, or our role has changed
        finally:
            self.reception.close()
            self._discard_accepted("closed on this host")

    async def _serve(self, link: Link, links: trio.MemorySendChannel[Link]) -> None:
        self._link, self.reception.last_refusal = link, None
        self.absence.over()
        name = self._peer_name
        log.info("connected to the peer at %s", name)
        try:
            await link.run(links, self._mover(link))
        finally:
            self._link = None
            self.dialing.table.left(trio.current_time())
        self.absence.note(ConnectionLost(name, link.close_reason))
        log.info("%s", self.last_error)

    async def _rest_refused(self, lasted_s: float) -> None:
        """After a link that ended by a bad message, whatever the peer does meanwhile."""
        pause_s = self._pauses.after_refused_link(lasted_s)
        log.info("the peer at %s is met again in %g s", self._peer_name, pause_s)
        await trio.sleep(pause_s)

    # --- dialing ----------------------------------------------------------------------------------

    async def _meet(self) -> Link:
        """Dial until both paths lead to the same process of the peer."""
        self._pauses.dial_soon()
        while True:
            if self._retired:
                await trio.sleep_forever()
            while self._pauses.held is not None:
                await self._pauses.held.wait()
            self._arrival = trio.Event()
            self._begin_call()
            beginning = self._beginnings
            dialed = await self._dial()
            if dialed is not None and beginning != self._beginnings:
                dialed.close("the roles changed")
                continue
            if dialed is not None:
                link = await self.run_pairing(dialed)
                if link is not None:
                    return link
            # A peer that dials us is there: no reason to wait longer.
            with trio.move_on_after(self._pauses.dial_s):
                await self._arrival.wait()
            while self._talks:  # the peer has dialed: nothing else is to be met until that is lost
                self._arrival = trio.Event()
                await self._arrival.wait()
            self._pauses.dialed_in_vain()

    def _begin_call(self) -> None:
        """The primary calls; the backup answers the call that waits for an answer, if any."""
        hello = self._make_hello("mirror")
        if hello.role != DIALED_BY["mirror"]:
            self._calls.answer(self._accepted.peer.call if self._accepted is not None else b"")
        else:
            self._discard_accepted("it is called anew")
            self._calls.call(hello.instance)

    async def _dial(self) -> Session | None:
        """A new session of our path, or None, and `last_error` says why not."""
        now = trio.current_time
        try:
            address, transport = await self.dialing.connect()
        except PeerUnreachable as error:
            self._report(error)
            return None
        try:
            with trio.fail_after(self._timeouts.partner_s):
                ours = self._hello(dialer=True)
                name = self._calls.name(ours.instance)
                ours = msgspec.structs.replace(ours, call=self._calls.current, session=name)
                connection = await shake_hands(transport, ours, dialer=True)
                session = await self._begin(transport, connection)
        except trio.TooSlowError:
            slow = PeerUnreachable(str(address), f"no answer for {self._timeouts.partner_s:g} s")
            self.dialing.table.failed(address, slow.args[1], now())
            self._report(slow)
        except SameRole as error:
            self.dialing.table.reached(address, now())
            await self._meet_same_role(error)
        except ChannelError as error:
            self.dialing.table.failed(address, error.why, now())
            self._report(error)
            if isinstance(error, ReplacedByPeer):
                self._talks.encounters.was_replaced()
        else:
            self.dialing.table.taken(address, now())
            return session
        return None

    async def _meet_same_role(self, error: SameRole) -> None:
        """Return when the session of the error is closed. Cancellation closes it."""
        self.absence.note(error)
        session = error.session
        assert isinstance(session, Session)
        # Which of the two acts is not ours to say; whoever waits for an answer of the old role need not.
        if self._dialed is not None:
            self._dialed.close("both hosts have the same role")
            self._arrival.set()
        if self._talks.met(session) and not self._retired:
            self._pauses.dial_soon()
            try:
                await self._talks.run_over(session)
            finally:
                self._arrival.set()
        else:
            session.close("both hosts have the same role")

    async def run_pairing(self, dialed: Session) -> Link | None:
        """A link with the session that the peer dialed; None, and `dialed` is closed, if there comes none.

        Cancellation closes `dialed`.
        """
        link = None
        self._dialed = dialed
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, dialed)
                with trio.move_on_after(self._timeouts.partner_s):
                    while not self._is_met(dialed) and not dialed.closed:
                        self._arrival = trio.Event()
                        await self._arrival.wait()
                nursery.cancel_scope.cancel()
            if not dialed.closed:
                self._pauses.dial_soon()
            elif self._accepted is None:
                self._arrival = trio.Event()  # the peer gave it up, and may do so again: that is no arrival
            if dialed.closed:
                pass
            elif not self._is_met(dialed):
                self._report(PeerUnreachable(self._peer_name, "it answers, but does not connect here"))
            elif self._accepted is not None and _match(dialed, self._accepted):
                link = Link(dialed=dialed, accepted=self._accepted)
                self._accepted = None
            # Else the peer has called meanwhile, and is answered by dialing again; or one session is of a
            # process, or of a role, that is no more: dialing again tells of ours, and the peer of its.
        finally:
            self._dialed = None
            if link is None:
                dialed.close("no session of the peer came to match it")
                self.dialing.table.left(trio.current_time())
        return link

    async def _watch(self, dialed: Session) -> None:
        """Tell when the peer has given the session up: it will not dial us for this one any more."""
        await dialed.read_ahead()
        self._arrival.set()

    def _is_met(self, dialed: Session) -> bool:
        """Whether the peer has dialed; if we called, whether that answers, or it is another process now."""
        accepted = self._accepted
        if accepted is None or dialed.path == "forward":
            return accepted is not None
        return accepted.peer.call == dialed.ours.call or accepted.peer.instance != dialed.peer.instance

    def _report(self, error: PeerUnreachable | ChannelError) -> None:
        self.absence.report(error, trio.current_time())

    # --- being dialed -----------------------------------------------------------------------------

    def _welcome(self, session: Session) -> None:
        """The newest connection of the peer ends what there was before, unless it answers an older call."""
        if session.path == "forward" and session.peer.call not in (b"", self._calls.current):
            session.close("it answers a call that is over")
            return
        if session.ours.peer != self._make_hello("mirror").peer:
            session.close("this host has another peer now")
            return
        if self._link is not None:
            restarted = session.peer.instance != self._link.peer.instance
            self._link.close("the peer restarted" if restarted else "the peer connected again")
        self._discard_accepted("the peer connected again")
        self._talks.end("the peer has another role")
        self._accepted = session
        self._arrival.set()

    def _discard_accepted(self, reason: str) -> None:
        if self._accepted is not None:
            self._accepted.close(reason)
            self._accepted = None

    # --- both -------------------------------------------------------------------------------------

    def _hello(self, *, dialer: bool) -> Hello:
        """What this host says of itself on the path that it dials, or that it accepts."""
        # Which path we dial follows from the role that we have now.
        ours = self._make_hello("mirror")
        return ours if (ours.role == DIALED_BY["mirror"]) == dialer else self._make_hello("forward")

    async def _begin(self, transport: Transport, connection: Connection) -> Session:
        return await begin_session(
            transport, connection, peer_timeout=self._timeouts.peer_s, path_timeout=self._timeouts.path_s
        )

    async def _open_guest(self, transport: Transport) -> Session | Line:
        """What somebody dialed."""
        connection = await shake_hands(transport, self._hello(dialer=False), dialer=False)
        peer = connection.peer
        if peer is not None and peer.line and peer.role != connection.ours.role:
            return Line(transport, connection)
        return await self._begin(transport, connection)

    # --- spare connections ------------------------------------------------------------------------

    def _mover(self, link: Link) -> Mover | None:
        """Of the session that this host dialed; None where the peer lets none move."""
        dialed = link.mirror if link.mirror.lines is None else link.forward
        address = self.dialing.table.in_use
        if dialed.moving is None or address is None:
            return None
        return Mover(dialed, address, self.dialing, self._open_line, self._timeouts.path_s)

    async def _open_line(self, address: Address, session: Session) -> Line:
        transport = await self.dialing.connect_to(address)
        ours = msgspec.structs.replace(self._hello(dialer=True), line=session.ours.session)
        connection = await shake_hands(transport, ours, dialer=True)
        if connection.peer is None or connection.peer.role == ours.role:
            transport.close()
            raise PeerRefused(transport.peer_name, f"both hosts are {ours.role}")
        return Line(transport, connection)

    async def _keep_line(self, line: Line) -> None:
        """Keep a line of the peer's for the session that it names, as long as both last."""
        link = self._link
        for session in (self._accepted, *(() if link is None else (link.mirror, link.forward))):
            if session is None or session.lines is None or session.closed:
                continue
            if (session.peer.session, session.peer.instance) == (line.peer.line, line.peer.instance):
                await session.lines.run(line, partial(_lose_line, session))
                return
        try:
            await line.refuse("that session is over")
        except ChannelError:
            pass  # who dialed it knows already
        finally:
            line.close()

    @property
    def _peer_name(self) -> str:
        used = self.dialing.table.in_use
        return self.dialing.names if used is None else str(used)


def _match(dialed: Session, accepted: Session) -> bool:
    """Whether the two make a link: one process of the peer, one session of each path, and one call."""
    same_process = dialed.peer.instance == accepted.peer.instance
    return same_process and dialed.path != accepted.path and accepted.peer.call == dialed.ours.call


def _lose_line(session: Session, error: ChannelError) -> None:
    """A line of the session was lost; that is its dialer's to replace."""
    if isinstance(error, RemoteProtocolError):
        session.refuse(error)
