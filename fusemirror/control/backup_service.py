"""What a backup does over a link, and who hears that it is lost."""

import trio

from fusemirror.channel.link import Link
from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.control.arrivals import Arrivals
from fusemirror.control.forwarding import Forwarding
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.control.meeting import PeerMeeting
from fusemirror.control.patience import Patience
from fusemirror.mirror.applying import Applier


class BackupService:
    """Of one link after the other."""

    def __init__(
        self,
        host: HostState,
        meeting: PeerMeeting,
        applier: Applier,
        patience: Patience,
        forwarding: Forwarding,
        arrivals: Arrivals,
        landing: Landing,
        lease_requests: LeaseRequests,
        asking: Asking,
    ) -> None:
        self._host = host
        self._meeting = meeting
        self._applier = applier
        self._patience = patience
        self._forwarding = forwarding
        self._arrivals = arrivals
        self._landing = landing
        self._lease_requests = lease_requests
        self._asking = asking

    async def run(self, link: Link) -> None:
        """Apply what the link brings and take its answers, until it is lost."""
        self._patience.begin_link()
        if not await self._meeting.begin(link):
            self._patience.look()
            return
        await self._host.leases.run_out()  # the primary knows nothing of what this host's kernel keeps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._arrivals.run, link)
            nursery.start_soon(self._forwarding.run_forwarding, link)
            nursery.start_soon(self._forwarding.run_telling, link)
            nursery.start_soon(self._host.news.run, link)
            nursery.start_soon(self._forwarding.run_locks, link)
            reason = await self._applier.serve(link.mirror)
            link.close(reason)
            nursery.cancel_scope.cancel()
        self._host.end_link(link)
        self._patience.look()
        self._lease_requests.link_lost()
        self._asking.link_lost()
        self._arrivals.link_lost()
        self._landing.link_lost()
        self._forwarding.link_lost(link)

    def retire(self) -> None:
        """The role ends, and its link with it; whoever waits for an answer is told so."""
        self._landing.link_lost()
        self._host.retire_link()
        self._forwarding.retire()
