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
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
import trio

from fusemirror import limits
from fusemirror.background import Background
from fusemirror.channel.admission import Admission, Place
from fusemirror.channel.session import Session, open_session
from fusemirror.channel.transport import Listener, Network, Transport
from fusemirror.errors import (
    AddressMissing,
    ChannelError,
    ConnectionLost,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
    ReplacedByPeer,
    SameRole,
)
from fusemirror.protocol.connection import DIALED_BY
from fusemirror.protocol.messages import Hello
from fusemirror.settings import parse_address

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

    async def run(self, links: "trio.MemorySendChannel[Link]") -> None:
        """Send the link up, serve both sessions until one ends, and end the other.

        A link that ends before it was taken is not sent. Cancellation closes the link.
        """
        try:
            async with trio.open_nursery() as nursery:
                for session in (self.mirror, self.forward):
                    nursery.start_soon(self._serve, session, nursery.cancel_scope)
                await links.send(self)
        finally:
            self.close("closed on this host")

    async def _serve(self, session: Session, link_scope: trio.CancelScope) -> None:
        await session.run()
        self.close(session.close_reason or "")
        link_scope.cancel()


class Linker:
    """Meets the peer, again and again, and hands up each link to it.

    `make_hello(path)` is asked for each connection, because the history changes. Strangers are refused
    with one line in the log, and disturb no link. `last_error` says why there is no link now.
    """

    def __init__(
        self,
        network: Network,
        listen_address: str,
        peer_address: str,
        make_hello: Callable[[str], Hello],
        peer_timeout: float,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.last_error: str | None = None
        self.last_refusal: str | None = None
        """Why the peer's newest connection was refused here, while there is no link."""
        self._logged_at = -math.inf  # the last line about a peer that is away
        self.met_same_role: Callable[[Hello], bool] = lambda _: False
        """Told of a peer that has the role of this host; it makes no link. Whether the two are to talk."""
        self.was_replaced: Callable[[], None] = lambda: None
        """Told where the peer says that it has another host in this one's place."""
        self.talk: Callable[[Session], Awaitable[None]] = _hang_up
        """Talks over a session with such a peer, until it is lost."""
        self.peer_timeout = peer_timeout
        # What takes longer than `peer_timeout` would not last: no heartbeat would be answered in time.
        self._patience_s = min(max(peer_timeout, limits.PARTNER_TIMEOUT_MIN_S), limits.HANDSHAKE_TIMEOUT_S)
        self._network = network
        self._listen_address = parse_address(listen_address)
        self._peer_address = parse_address(peer_address)
        self._make_hello = make_hello
        self._link: Link | None = None
        self._dialed: Session | None = None  # ours, while it waits for its partner
        self._pause_s = limits.RECONNECT_FIRST_S
        self._rest_s = 0.0  # after the next link that ends at once
        self._refused_rest_s = 0.0  # after the last one that ended by a bad message
        self._beginnings = 0  # how often our role has changed
        self._accepted: Session | None = None  # the peer's newest, while it waits for its partner
        self._arrival = trio.Event()  # set when there is a newer one
        self._talks: set[Session] = set()
        self._held: trio.Event | None = None  # set when links may be made again
        self._call = b""  # what our dial says; its partner says the same
        self._calls = itertools.count(1)
        self._admission = Admission(random_bytes)
        self._retired = False

    def retire(self) -> None:
        """Meet the peer no more; the link that there is now goes on until it ends.

        For a host about to say goodbye: a peer that is told so dials again at once.
        """
        self._retired = True

    def hold(self) -> None:
        """Make no new link, until `go_on` or `meet_anew`: the role of this host is about to change. What the
        peer dials meanwhile is kept. The link that there is goes on until it ends."""
        if self._held is None:
            self._held = trio.Event()

    def go_on(self) -> None:
        """Make links again, where `hold` had ended that."""
        if self._held is not None:
            self._held.set()
            self._held = None

    def meet_anew(self, reason: str) -> None:
        """What this host says of itself has changed: sessions for which it said something else end, and the
        peer is met again at once. One that is of its new role stays."""
        if self._link is not None and (self._is_over(self._link.mirror) or self._is_over(self._link.forward)):
            self._link.close(reason)
        if self._accepted is not None and self._is_over(self._accepted):
            self._discard_accepted(reason)
        self._end_talks(reason)
        if self._dialed is not None and self._is_over(self._dialed):
            self._dialed.close(reason)
        self._beginnings += 1
        self._pause_s = limits.RECONNECT_FIRST_S
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

    def meet_at(self, peer_address: str) -> None:
        """Dial there from now on."""
        self._peer_address = parse_address(peer_address)

    async def run(
        self,
        links: trio.MemorySendChannel[Link],
        background: Background,
        *,
        task_status: trio.TaskStatus[Listener | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, and make links until retired. Started when it listens; `ListenFailed` if it cannot.

        A host that is being started may lack its address, or nobody may know its name yet: then this has
        started, and `background` says that, and tries again. Cancellation closes the link and everything that
        waits to become one.
        """
        listener = await self._listen_at_first()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._admission.refusals.sum_up)
                nursery.start_soon(self._listen, listener, background, nursery)
                task_status.started(listener)
                while not self._retired:
                    link = await self._meet()
                    met_at, beginning = trio.current_time(), self._beginnings
                    await self._serve(link, links)
                    lasted_s = trio.current_time() - met_at
                    if link.refused:
                        await self._rest_refused(lasted_s)
                    elif beginning == self._beginnings:
                        await self._rest(lasted_s)
        finally:
            if listener is not None:
                listener.close()
            self._discard_accepted("closed on this host")

    async def _serve(self, link: Link, links: trio.MemorySendChannel[Link]) -> None:
        self._link, self.last_error, self.last_refusal = link, None, None
        self._logged_at = -math.inf
        log.info("connected to the peer at %s", self._peer_name)
        try:
            await link.run(links)
        finally:
            self._link = None
        self.last_error = str(ConnectionLost(self._peer_name, link.close_reason))
        log.info("%s", self.last_error)

    async def _rest(self, lasted_s: float) -> None:
        """Let links that end as soon as they are made follow each other ever more slowly: what ends them,
        a full disk on either host, would else be met thousands of times a second."""
        if lasted_s >= limits.RECONNECT_MAX_S:
            self._rest_s = 0.0
            return
        self._arrival = trio.Event()
        with trio.move_on_after(self._rest_s):
            await self._arrival.wait()  # the peer has rested, or our role has changed
        self._rest_s = min(max(2 * self._rest_s, limits.RECONNECT_FIRST_S), limits.RECONNECT_MAX_S)

    async def _rest_refused(self, lasted_s: float) -> None:
        """Let links that end by a bad message follow each other ever more slowly, whatever the peer does
        meanwhile: each costs both hosts a resync, and the log a line."""
        calm = lasted_s > 2 * limits.REFUSED_REST_MAX_S
        self._refused_rest_s = (
            limits.RECONNECT_MAX_S
            if calm
            else min(max(2 * self._refused_rest_s, limits.RECONNECT_MAX_S), limits.REFUSED_REST_MAX_S)
        )
        log.info("the peer at %s is met again in %g s", self._peer_name, self._refused_rest_s)
        await trio.sleep(self._refused_rest_s)

    # --- dialing ----------------------------------------------------------------------------------

    async def _meet(self) -> Link:
        """Dial until both paths lead to the same process of the peer."""
        self._pause_s = limits.RECONNECT_FIRST_S
        while True:
            if self._retired:
                await trio.sleep_forever()
            while self._held is not None:
                await self._held.wait()
            self._arrival = trio.Event()
            self._call = self._next_call()
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
            with trio.move_on_after(self._pause_s):
                await self._arrival.wait()
            while self._talks:  # the peer has dialed: nothing else is to be met until that is lost
                self._arrival = trio.Event()
                await self._arrival.wait()
            self._pause_s = min(2 * self._pause_s, limits.RECONNECT_MAX_S)

    def _next_call(self) -> bytes:
        """A new name at the primary; at the backup the name of the call that waits for an answer, if any."""
        hello = self._make_hello("mirror")
        if hello.role != DIALED_BY["mirror"]:
            return self._accepted.peer.call if self._accepted is not None else b""
        self._discard_accepted("it is called anew")
        return hello.instance + next(self._calls).to_bytes(8, "big")

    async def _dial(self) -> Session | None:
        """A new session of our path, or None, and `last_error` says why not."""
        patience_s = limits.CONNECT_TIMEOUT_S
        try:
            with trio.fail_after(patience_s):
                transport = await self._network.connect(*self._peer_address)
            self._admission.know(transport.peer_host)
            patience_s = self._patience_s
            with trio.fail_after(patience_s):
                return await self._open(transport, dialer=True)
        except trio.TooSlowError:
            self._report(PeerUnreachable(self._peer_name, f"no answer for {patience_s:g} s"))
        except SameRole as error:
            await self._meet_same_role(error)
        except ReplacedByPeer as error:
            self._report(error)
            self.was_replaced()
        except (PeerUnreachable, ChannelError) as error:
            self._report(error)
        return None

    async def _meet_same_role(self, error: SameRole) -> None:
        """Return when the session of the error is closed. Cancellation closes it."""
        self.last_error = str(error)
        session = error.session
        assert isinstance(session, Session)
        # Which of the two acts is not ours to say; whoever waits for an answer of the old role need not.
        if self._dialed is not None:
            self._dialed.close("both hosts have the same role")
            self._arrival.set()
        if any(talk.peer.instance != session.peer.instance for talk in self._talks):
            self._end_talks("the peer restarted")
        if self.met_same_role(session.peer) and not self._retired:
            await self.run_over(session)
        else:
            session.close("both hosts have the same role")

    async def run_over(self, session: Session) -> None:
        """Talk over a session that makes no link, until it is lost. Cancellation closes it."""
        self._talks.add(session)
        self._pause_s = limits.RECONNECT_FIRST_S
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                await self.talk(session)
                session.close("nobody talks any more")
        finally:
            self._talks.discard(session)
            session.close("closed on this host")
            self._arrival.set()

    def _end_talks(self, reason: str) -> None:
        for session in list(self._talks):
            session.close(reason)

    async def run_pairing(self, dialed: Session) -> Link | None:
        """A link with the session that the peer dialed; None, and `dialed` is closed, if there comes none.

        Cancellation closes `dialed`.
        """
        link = None
        self._dialed = dialed
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, dialed)
                with trio.move_on_after(self._patience_s):
                    while not self._is_met(dialed) and not dialed.closed:
                        self._arrival = trio.Event()
                        await self._arrival.wait()
                nursery.cancel_scope.cancel()
            if not dialed.closed:
                self._pause_s = limits.RECONNECT_FIRST_S
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
        return accepted.peer.call == dialed.call or accepted.peer.instance != dialed.peer.instance

    def _report(self, error: PeerUnreachable | ChannelError) -> None:
        """Log why there is no link, unless it is the same as before, and once a minute at most. A peer that
        is away is no warning: that the mirror was lost is one, where it was."""
        text, now = str(error), trio.current_time()
        if text != self.last_error and now - self._logged_at >= limits.AWAY_LOG_INTERVAL_S:
            away = isinstance(error, PeerUnreachable | ConnectionLost)
            log.log(logging.INFO if away else logging.WARNING, "%s", text)
            self._logged_at = now
        self.last_error = text

    # --- listening --------------------------------------------------------------------------------

    async def _listen_at_first(self) -> Listener | None:
        """None where the address is not there, or whoever knows it does not answer. `ListenFailed`."""
        with trio.move_on_after(limits.CONNECT_TIMEOUT_S), suppress(AddressMissing):
            return await self._network.listen(*self._listen_address)
        return None

    async def _listen(self, listener: Listener | None, background: Background, nursery: trio.Nursery) -> None:
        if listener is None:
            listen = partial(self._network.listen, *self._listen_address)
            listener = await background.until_done("listening", listen)
        try:
            await self._accept(listener, nursery)
        finally:
            listener.close()

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        listener.spare(self._admission.known)
        while True:
            nursery.start_soon(self._greet, await listener.accept(self._admits))

    def _admits(self, host: str) -> bool:
        return not self._retired and self._admission.admits(host)

    async def _greet(self, transport: Transport) -> None:
        """Shake hands with whoever dialed; a refusal is told to the log."""
        same_role: SameRole | None = None
        refuse = partial(self._admission.refusals.note, transport.peer_host)
        with self._admission.handshake(transport.peer_host) as place:
            try:
                with place.scope:
                    self._welcome(await self._open(transport, dialer=False))
                    self._admission.know(transport.peer_host)
                if place.scope.cancelled_caught:
                    refuse(str(PeerRefused(transport.peer_name, _too_slow(place))))
            except SameRole as error:
                self._admission.know(transport.peer_host)
                same_role = error
            except PeerRefused as error:
                if self._admission.is_known(transport.peer_host):
                    self.last_refusal = str(error)
                refuse(str(error))
            except ConnectionLost as error:  # it said nothing, as those do that only look for an open port
                refuse(str(error), logging.INFO)
            except ChannelError as error:
                refuse(str(error))
        if same_role is not None:
            await self._meet_same_role(same_role)

    def _welcome(self, session: Session) -> None:
        """The newest connection of the peer ends what there was before, unless it answers an older call."""
        if session.path == "forward" and session.peer.call not in (b"", self._call):
            session.close("it answers a call that is over")
            return
        if session.ours.peer != self._make_hello("mirror").peer:
            session.close("this host has another peer now")
            return
        if self._link is not None:
            restarted = session.peer.instance != self._link.peer.instance
            self._link.close("the peer restarted" if restarted else "the peer connected again")
        self._discard_accepted("the peer connected again")
        self._end_talks("the peer has another role")
        self._accepted = session
        self._arrival.set()

    def _discard_accepted(self, reason: str) -> None:
        if self._accepted is not None:
            self._accepted.close(reason)
            self._accepted = None

    # --- both -------------------------------------------------------------------------------------

    async def _open(self, transport: Transport, *, dialer: bool) -> Session:
        # Which path we dial follows from the role that we have now.
        ours = self._make_hello("mirror")
        if (ours.role == DIALED_BY["mirror"]) != dialer:
            ours = self._make_hello("forward")
        if dialer:
            ours = msgspec.structs.replace(ours, call=self._call)
        return await open_session(transport, ours, dialer=dialer, peer_timeout=self.peer_timeout)

    @property
    def _peer_name(self) -> str:
        return str(self._peer_address)


def _too_slow(place: Place) -> str:
    if place.given_away:
        return "it had not said Hello when others wanted its place"
    return f"it did not say Hello within {limits.HANDSHAKE_TIMEOUT_S:g} s"


async def _hang_up(_: Session) -> None:
    """Nothing is to be said."""


def _match(dialed: Session, accepted: Session) -> bool:
    """Whether the two make a link: one process of the peer, one session of each path, and one call."""
    same_process = dialed.peer.instance == accepted.peer.instance
    return same_process and dialed.path != accepted.path and accepted.peer.call == dialed.call
