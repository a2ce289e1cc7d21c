"""Meeting the peer: what a link begins with, and what this host does about its role.

Both hosts ask the same of the same two histories (`mirror/histories.py`), so that exactly one of them acts.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import trio

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.mirror.histories import Action, Relation, claim_of, history_of, meet, relation
from fusemirror.protocol.messages import Hello, History
from fusemirror.settings import is_host_name

log = logging.getLogger(__name__)


class PeerMeeting:
    """Of one unit: `show_diverged` makes its mirror state say why nothing is mirrored."""

    def __init__(self, host: HostState, life: RoleLife, show_diverged: Callable[[str], None]) -> None:
        self._host = host
        self._life = life
        self._show_diverged = show_diverged

    async def serve(self, link: Link, run_link: Callable[[Link], Awaitable[None]]) -> None:
        """`run_link`; an error that it does not know what to do about ends the link, and nothing else."""
        if link.closed:  # it may have ended while it waited to be taken
            return
        if not await self._host.background.attempt("link", partial(run_link, link)):
            link.close("it cannot be served; the log says why")
            self._host.end_link(link)

    async def begin(self, link: Link) -> bool:
        """Whether the link mirrors; where it does not, it is over on return.

        Where only a person can help it stays, and carries nothing but what each host tells of its changes,
        until it is lost; else the peer is met anew, once the role has changed.
        """
        self._host.links.begin(link)
        step = meet(claim_of(self._host.volume), link.peer.claim)
        self.learn_name(link.peer)
        self._host.clocks.compare(link.peer)
        if step is Action.LINK:
            return True
        self.meet(link.peer, step)
        if step is Action.DIVERGED:
            await self.run_exchange(link)
        else:
            link.close(f"the roles are to change: {step.name.lower()}")
        self._host.end_link(link)
        return False

    async def run_exchange(self, link: Link) -> None:
        """What each host tells of its changes, over a link that mirrors nothing, until it is lost."""

        async def listen(session: Session) -> None:
            await session.discard()
            link.close("the other path was lost")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, link.forward)
            await self._host.exchange.run_over(link.mirror)
            link.close("the other path was lost")

    def learn_name(self, peer: Hello) -> None:
        """`create` knew the other host by its address only: from now on it has the name it has itself, and
        what it says of its disk counts. OSError.
        """
        volume = self._host.volume
        if 0 <= peer.file_bytes_max <= FILE_BYTES_MAX:
            volume.update_peer(volume.identity.only_peer, file_bytes_max=peer.file_bytes_max)
        if is_host_name(peer.host_name):
            volume.update_peer(volume.identity.only_peer, name=peer.host_name)
        elif peer.host_name:
            log.warning("the name that the other host gives itself is not taken: %s", peer.host_name[:100])

    def meet(self, peer: Hello, step: Action) -> None:
        """The peer was met, and `step` says what this host does about its role."""
        self._host.links.met = peer
        self.learn_name(peer)
        volume = self._host.volume
        term = max(volume.identity.term, peer.term) + 1
        if step in (Action.GIVE_WAY, Action.YIELD):
            known = _known_to(history_of(volume), peer.history)
            reason = "the other host holds the newer copy"
            quarantines = step is Action.YIELD
            self._life.ask(
                RoleChange("backup", reason, term, quarantines=quarantines, known=known, peer=peer.instance)
            )
        elif step is Action.ACCEPT:
            self._life.ask(RoleChange("primary", "the other host handed over the role", peer.term))
        elif step is Action.DIVERGED:
            self._differ(peer)

    def _differ(self, peer: Hello) -> None:
        """No copy is to be made equal to the other."""
        self._host.exchange.begin(peer.history)
        if not (self._host.volume.identity.complete and peer.history.complete):
            self._show_diverged("neither host has a whole copy")
        elif relation(history_of(self._host.volume), peer.history) is not Relation.UNRELATED:
            self._show_diverged("split brain: both volumes were changed apart")
        else:
            self._show_diverged("the volumes have nothing in common")


def _known_to(ours: History, theirs: History) -> ChangeNumber:
    """The last of our changes that they hold, where they went on in a line of their own."""
    if not ours.generations:
        return ChangeNumber(0)
    for newer, older in pairwise(theirs.generations):
        if older.identity == ours.generations[0].identity:
            return ChangeNumber(newer.first_change - 1)
    return ChangeNumber(0)
