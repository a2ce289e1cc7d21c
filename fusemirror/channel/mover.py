"""Mover: finds another connection for a session that this host dialed, where its own is lost or stands still.

To each address of the peer that the session does not use it keeps a line (`lines.py`). Where there is none it
dials again: soon after a loss, then ever more slowly, down to twice in each `path_timeout`. So it is known
which addresses work before one is needed. Where the connection of the session breaks, or makes no progress
for `path_timeout`, the session goes on over the line of the address that the table names (`paths.py`); a peer
that is merely slow keeps its connection until another one stands. Where its process listens at no address, or
has ended the session, it is over.

Progress is what the peer's system confirms to have, and what arrives: on a slow network a large write may
take longer than `path_timeout`, and moving it would only begin it anew.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from fusemirror import limits
from fusemirror.channel.dialing import Dialing
from fusemirror.channel.lines import Line
from fusemirror.channel.session import LARGE_ONES_LOST, Session
from fusemirror.errors import (
    ChannelError,
    HandshakeRefused,
    NobodyListens,
    PeerUnreachable,
    RemoteProtocolError,
)
from fusemirror.settings import Address

log = logging.getLogger(__name__)

OpenLine = Callable[[Address, Session], Awaitable[Line]]
"""A connection to an address, after its handshake. PeerUnreachable, ChannelError."""


class Mover:
    """See the module. It is of one session, and of the table that says how the peer's addresses stand."""

    def __init__(
        self, session: Session, address: Address, dialing: Dialing, open_line: OpenLine, path_timeout: float
    ) -> None:
        assert session.moving is not None, "both hosts let sessions move"
        self._session = session
        self._moving = session.moving
        self._address = address  # of the connection in use, or of the last one
        self._dialing = dialing
        self._table = dialing.table
        self._open_line = open_line
        self._path_timeout = path_timeout
        self._stands_still = False
        self._is_moving = False
        self._kept: set[Address] = set()  # addresses that have a task
        self._refusing: set[Address] = set()  # nobody listens there, or somebody else

    @property
    def _goes_well(self) -> bool:
        return self._moving.lost_reason is None and not self._stands_still

    async def run(self) -> None:
        """Keep the session going, and end it where that cannot be. Cancelled, its lines are closed."""
        self._moving.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while True:
                for address in self._table.order():
                    if address not in self._kept:
                        self._kept.add(address)
                        nursery.start_soon(self._keep, address)
                await trio.sleep(limits.LOOK_UP_INTERVAL_S)
                with suppress(PeerUnreachable):
                    await self._dialing.run_look_up()

    # --- the connection in use ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice that the connection makes no progress, and that it does again.

        Pings are sent all the time. Where the peer's system confirms none of what is sent, packets get lost
        one way or the other. Where it does, and yet nothing arrives, large ones are lost; but an answer may
        stand behind much that is still on its way there.

        Looks are counted, not seconds: a loop that stood still itself has missed some, and the peer none.
        """
        moving = self._moving
        patience = limits.LOOKS_PER_PATH_TIMEOUT
        confirmed = arrived = there = back = 0  # the last two: looks since there was more of the first two
        turn = -1
        while True:
            await trio.sleep(self._path_timeout / limits.LOOKS_PER_PATH_TIMEOUT)
            if moving.lost_reason is not None or moving.turn != turn:
                turn, there, back = moving.turn, 0, 0
                confirmed, arrived = moving.acknowledged_bytes(), moving.received_bytes
                continue
            goes_there = moving.acknowledged_bytes() != confirmed
            comes_back = moving.received_bytes != arrived
            waits = goes_there and moving.queued_bytes() > limits.QUEUED_BEFORE_ANSWER_BYTES
            confirmed, arrived = moving.acknowledged_bytes(), moving.received_bytes
            there = 0 if goes_there or not confirmed else there + 1
            back = 0 if comes_back or waits or not moving.is_waited_for else back + 1
            if there == back == 0:
                if comes_back:
                    patience = limits.LOOKS_PER_PATH_TIMEOUT
                if self._stands_still:
                    self._stands_still = False
                    self._table.taken(self._address, trio.current_time())
            elif max(there, back) >= patience and not self._stands_still:
                patience = min(2 * patience, limits.LOOKS_PER_PATH_TIMEOUT * limits.MOVES_PATIENCE_MAX)
                self._stands_still = True
                self._fail(self._address, self._silence)
                moving.changed.unpark_all()

    @property
    def _silence(self) -> str:
        return f"no answer for {self._path_timeout:g} s"

    def _fail(self, address: Address, reason: str) -> None:
        self._table.failed(address, reason, trio.current_time())

    def _note_loss(self) -> None:
        """Tell the table of a connection that was lost."""
        if self._moving.lost_reason is not None and self._table.in_use == self._address:
            self._fail(self._address, self._moving.lost_reason)

    # --- the others ---------------------------------------------------------------------------------------

    async def _keep(self, address: Address) -> None:
        """Have a line to the address as long as it is known, and the session does not go by it."""
        pause_s = limits.REDIAL_FIRST_S
        while address in self._table:
            self._note_loss()
            if address == self._address and self._goes_well:
                await self._moving.changed.park()
                pause_s = limits.REDIAL_FIRST_S
                continue
            line = await self._reach(address)
            if line is None:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._path_timeout / limits.DIALS_PER_PATH_TIMEOUT / 2)
                continue
            pause_s = limits.REDIAL_FIRST_S
            try:
                await self._hold(address, line)
            except trio.TooSlowError:
                line.close()
                self._fail(address, self._silence)
            except ChannelError as error:
                line.close()
                self._fail(address, error.why)
            except BaseException:
                line.close()
                raise
        self._kept.discard(address)

    async def _reach(self, address: Address) -> Line | None:
        """A line that works; None, and the table knows why not."""
        line = None
        round_trip_s = self._session.heartbeat.round_trip_seconds or 0.0
        patience_s = max(self._path_timeout / limits.DIALS_PER_PATH_TIMEOUT, 4 * round_trip_s)
        try:
            with trio.fail_after(patience_s):
                line = await self._open_line(address, self._session)
            self._refusing.discard(address)
            with trio.fail_after(self._path_timeout):
                await line.probe()
        except trio.TooSlowError:
            self._fail(address, LARGE_ONES_LOST if line else f"no answer for {patience_s:g} s")
        except PeerUnreachable as error:
            self._fail(address, error.args[1])
            self._refuse(address, gone=isinstance(error, NobodyListens))
        except HandshakeRefused as error:
            self._fail(address, error.why)
            # Only the process of the session knows that it is over; where its connection is lost, too, it has
            # gone. Who refuses before its Hello may be anybody, such as the host of another filesystem at an
            # address that was the peer's once.
            lost_reason = self._moving.lost_reason
            if line is not None and (lost_reason or line.peer.instance == self._session.peer.instance):
                self._session.close(lost_reason or error.why)
            self._refuse(address, gone=True)
        except ChannelError as error:
            self._fail(address, error.why)
        else:
            self._table.reached(address, trio.current_time(), local=line.local_name)
            return line
        finally:
            if line is not None and not line.is_proven:
                line.close()
        return None

    def _refuse(self, address: Address, *, gone: bool) -> None:
        """Not the process of the session listens there, or who knows; where it does nowhere, it is gone."""
        (self._refusing.add if gone else self._refusing.discard)(address)
        if self._moving.lost_reason is not None and self._refusing.issuperset(self._table.order()):
            self._session.close(self._moving.lost_reason)

    async def _hold(self, address: Address, line: Line) -> None:
        """Probe a line from time to time, until the session goes on over it. ChannelError, TooSlowError."""
        while not (address == self._address and self._goes_well):
            self._table.measured(address, line.round_trip_seconds)
            self._note_loss()
            if not self._goes_well and not self._is_moving and self._table.spare() == address:
                await self._move(address, line)
                return
            with trio.move_on_after(self._path_timeout) as pause:
                await self._moving.changed.park()
            if pause.cancelled_caught:
                with trio.fail_after(self._path_timeout):
                    await line.probe()
        line.close()  # the address is in use again, by the connection that it had

    async def _move(self, address: Address, line: Line) -> None:
        reason = self._moving.lost_reason or self._silence
        self._is_moving = True
        try:
            with trio.fail_after(self._path_timeout):
                await line.resume(self._moving, reason)
        except RemoteProtocolError as error:
            self._session.refuse(error)
            raise
        finally:
            self._is_moving = self._stands_still = False
            self._moving.changed.unpark_all()
        self._address = address
        self._table.taken(address, trio.current_time(), local=line.local_name)
        log.info("the %s path goes by %s now: %s", self._session.path, address, reason)
        await self._moving.run_resend()
