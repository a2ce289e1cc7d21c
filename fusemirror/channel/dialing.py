"""Dialing: where the peer is, by the names and addresses of the settings, and a connection to it.

A name may stand for several addresses, of IPv4 and IPv6: each is one of the table (`paths.py`), and is tried
on its own. Names are looked up anew before each dial: what they stand for changes.
"""

import math

import trio

from fusemirror import limits
from fusemirror.channel.admission import HandshakeAdmission
from fusemirror.channel.paths import Addresses
from fusemirror.channel.transport import Network, Transport
from fusemirror.errors import PeerUnreachable
from fusemirror.settings import Address


class Dialing:
    """The addresses of the peer, and how each stands. Whatever is dialed is known to the admission."""

    def __init__(
        self, network: Network, admission: HandshakeAdmission, addresses: tuple[Address, ...]
    ) -> None:
        self.table = Addresses()
        self._network = network
        self._admission = admission
        self._wanted = addresses
        self._found: dict[Address, list[Address]] = {}
        """What each of the wanted stands for, as far as that is known; the last answer counts while there is
        no other."""

    def meet_at(self, addresses: tuple[Address, ...]) -> None:
        """Dial there from now on."""
        if addresses != self._wanted:
            self._wanted = addresses
            self._found = {each: found for each, found in self._found.items() if each in addresses}
            self._tell_table()

    @property
    def names(self) -> str:
        """The addresses as they are set, for people."""
        return ", ".join(map(str, self._wanted))

    async def connect(self) -> tuple[Address, Transport]:
        """A connection to the first address that answers: each is tried a moment after the one before it, or
        when that has failed, in the order of the table. `PeerUnreachable`. Cancelled, none is left."""
        await self.run_look_up()
        return await self.run_race(self.table.order())

    async def run_race(self, order: list[Address]) -> tuple[Address, Transport]:
        """`connect`, with the addresses that are known."""
        connected: list[tuple[Address, Transport]] = []
        errors: list[PeerUnreachable] = []

        async with trio.open_nursery() as nursery:

            async def attempt(address: Address, failed: trio.Event) -> None:
                try:
                    transport = await self.connect_to(address)
                except PeerUnreachable as error:
                    self.table.failed(address, error.args[1], trio.current_time())
                    errors.append(error)
                    failed.set()
                    return
                connected.append((address, transport))
                nursery.cancel_scope.cancel()

            for count, address in enumerate(order, start=1):
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(limits.CONNECT_STAGGER_S if count < len(order) else math.inf):
                    await failed.wait()
        if not connected:
            raise self._unreachable(errors)
        for _, transport in connected[1:]:  # two may answer in the same moment
            transport.close()
        return connected[0]

    def _unreachable(self, errors: list[PeerUnreachable]) -> PeerUnreachable:
        if len(errors) == 1:
            return errors[0]
        reasons = "; ".join(f"{row.address}: {row.reason}" for row in self.table.rows() if row.reason)
        return PeerUnreachable(self.names, reasons or "no address is known for it")

    async def connect_to(self, address: Address) -> Transport:
        """A connection to this address. `PeerUnreachable`. Cancelled, none is left."""
        try:
            with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                transport = await self._network.connect(*address)
        except trio.TooSlowError:
            raise PeerUnreachable(str(address), f"no answer for {limits.CONNECT_TIMEOUT_S:g} s") from None
        self._admission.know(transport.peer_host)
        return transport

    async def run_look_up(self) -> None:
        """On return the table has what the names stand for now, as far as anybody knows. `PeerUnreachable`
        where nothing is known of any."""
        errors: list[PeerUnreachable] = []

        async def look(wanted: Address) -> None:
            try:
                self._found[wanted] = await self._network.look_up(*wanted)
            except PeerUnreachable as error:
                errors.append(error)

        with trio.move_on_after(limits.CONNECT_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for wanted in self._wanted:
                    nursery.start_soon(look, wanted)
        self._tell_table()
        if errors and not self.table.rows():
            raise errors[0]

    def _tell_table(self) -> None:
        found = [address for wanted in self._wanted for address in self._found.get(wanted, ())]
        self.table.know(dict.fromkeys(found[: limits.PEER_ADDRESSES_MAX // 2]), trio.current_time())
        for address in self.table.order():
            self._admission.know(address.host)
