"""Reception: listens on every address of this host, and shakes hands with whoever dials there.

Strangers are refused with one line in the log, and disturb nothing. Who came in is handed to the one that
makes links of them (`link.py`).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from fusemirror import limits
from fusemirror.background import Background
from fusemirror.channel.admission import HandshakeAdmission, Slot
from fusemirror.channel.lines import Line
from fusemirror.channel.session import Session
from fusemirror.channel.transport import Listener, Network, Transport
from fusemirror.errors import AddressMissing, ChannelError, ConnectionLost, PeerRefused, SameRole
from fusemirror.settings import Address


class Reception:
    """See the module. `shake_hands` makes a session of a connection, which `welcome` takes, or a spare line
    of a session, which `keep_line` keeps as long as it lasts; `met_same_role` does so with one of the
    role of this host."""

    def __init__(
        self,
        network: Network,
        addresses: Sequence[Address],
        admission: HandshakeAdmission,
        shake_hands: Callable[[Transport], Awaitable[Session | Line]],
        welcome: Callable[[Session], None],
        keep_line: Callable[[Line], Awaitable[None]],
        met_same_role: Callable[[SameRole], Awaitable[None]],
    ) -> None:
        self.last_refusal: str | None = None
        """Why the peer's newest connection was refused here, while there is no link."""
        self._network = network
        self._addresses = addresses
        self._admission = admission
        self._shake_hands = shake_hands
        self._welcome = welcome
        self._keep_line = keep_line
        self._met_same_role = met_same_role
        self._listeners: dict[Address, Listener] = {}
        self._is_over = False

    def end(self) -> None:
        """Let nobody in any more; what is open stays."""
        self._is_over = True

    async def listen(self) -> list[Listener]:
        """The listeners that there are; call it once, before `run`. `ListenFailed` where there cannot be one.

        A host that is being started may lack an address, or nobody may know its name yet: `run` waits for it.
        """
        try:
            for address in self._addresses:
                await self._listen_at_first(address)
        except BaseException:
            self.close()
            raise
        return list(self._listeners.values())

    async def run(self, background: Background) -> None:
        """Let people in, until cancelled. `background` says which addresses are missing, and tries again."""
        try:
            async with trio.open_nursery() as nursery:
                for address in self._addresses:
                    nursery.start_soon(self._accept, address, background, nursery)
                await self._admission.refusals.sum_up()
        finally:
            self.close()

    def close(self) -> None:
        """Listen no more."""
        for listener in self._listeners.values():
            listener.close()

    async def _listen_at_first(self, address: Address) -> None:
        """Nothing where the address is not there, or whoever knows it does not answer. `ListenFailed`."""
        with trio.move_on_after(limits.CONNECT_TIMEOUT_S), suppress(AddressMissing):
            self._listeners[address] = await self._network.listen(*address)

    async def _accept(self, address: Address, background: Background, nursery: trio.Nursery) -> None:
        if address not in self._listeners:
            task = f"listening on {address}" if len(self._addresses) > 1 else "listening"
            listen = partial(self._network.listen, *address)
            self._listeners[address] = await background.until_done(task, listen, limits.LISTEN_RETRY_S)
        listener = self._listeners[address]
        listener.spare(self._admission.known)
        while True:
            nursery.start_soon(self._greet, await listener.accept(self._admits))

    def _admits(self, host: str) -> bool:
        return not self._is_over and self._admission.admits(host)

    async def _greet(self, transport: Transport) -> None:
        """Shake hands with whoever dialed; a refusal is told to the log."""
        same_role: SameRole | None = None
        line: Line | None = None
        refuse = partial(self._admission.refusals.note, transport.peer_host)
        with self._admission.handshake(transport.peer_host) as place:
            try:
                with place.scope:
                    guest = await self._shake_hands(transport)
                    if isinstance(guest, Line):
                        line = guest
                    else:
                        self._welcome(guest)
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
            except ConnectionLost as error:  # who looks for an open port, or has given this connection up
                refuse(str(error), logging.INFO)
            except ChannelError as error:
                refuse(str(error))
        if line is not None:
            await self._keep_line(line)
        if same_role is not None:
            await self._met_same_role(same_role)


def _too_slow(place: Slot) -> str:
    if place.given_away:
        return "it had not said Hello when others wanted its place"
    return f"it did not say Hello within {limits.HANDSHAKE_TIMEOUT_S:g} s"
