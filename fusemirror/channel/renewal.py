"""Renewal: both hosts get new keys while they are linked, and none of them is ever shut out.

Each host tells the other what it shows, what it is to show, and what it lets in (`KeyNews`), when a link
begins and whenever that changes. Three rules follow from what it hears; a step is durable before it is told:

1. The other is to show a new certificate: prepare an own one, and let the other's in beside the old one.
2. The other lets in what this host is to show: show it from now on.
3. The other shows what it was to show: let in nothing older.

So old and new ones count on a host until it has heard that the other shows the new one, and a host shows
nothing that the other does not let in. A crash, or a link that is lost, costs nothing at any moment: the
rules go on from what stands in both keyrings. The link itself stays as it is, and programs notice nothing.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from fusemirror.channel.keyring import (
    Ring,
    confirm_peer,
    let_in,
    normal,
    prepare_next,
    read_ring,
    replace_peer,
    show_next,
)
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.errors import BadKeys, ConnectionLost
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.messages import KeyNews

log = logging.getLogger(__name__)

Blocking = Callable[..., Awaitable[Any]]


class Renewal:
    """See the module. Without a directory there are no keys, and nothing is told or taken."""

    def __init__(
        self,
        directory: Path | None = None,
        host_name: str = "",
        run_blocking: Blocking = trio.to_thread.run_sync,
        use: Callable[[], None] = lambda: None,
    ) -> None:
        """`use` takes what the directory holds for the next connections. BadKeys."""
        self._directory = directory
        self._host_name = host_name
        self._run_blocking = run_blocking
        self._use = use
        self._ring = None if directory is None else read_ring(directory)
        self._heard: KeyNews | None = None  # and not acted on yet
        self._hearing = trio.Event()
        self._changed = trio.Event()
        # Who changes the keyring has it, until what it holds is read anew: where two prepared a key at once,
        # this host would show one of which the other host has never heard.
        self._changing = trio.Lock()

    @property
    def is_possible(self) -> bool:
        """Whether there are keys at all."""
        return self._ring is not None

    @property
    def is_under_way(self) -> bool:
        """Old and new ones count."""
        return self._ring is not None and self._ring.is_renewing

    async def renew(self) -> None:
        """Return when both hosts show new keys, and let in no old ones. One that is under way goes on.

        Cancelled, it goes on by itself, and ends while the hosts are linked. OSError: nothing was begun.
        """
        async with self._changing:
            if not self.is_under_way:
                assert self._directory is not None, "there are keys"
                await self._run_blocking(prepare_next, self._directory, self._host_name)
                self._reread()
        while self.is_under_way:
            await self._changed.wait()

    async def replace_peer(self, certificate: str) -> None:
        """Durable on return: the other host is the one with this certificate (`keyring.replace_peer`), and
        what the one before it told counts no more. Nothing without keys. OSError, ValueError, BadKeys."""
        if self._directory is not None:
            async with self._changing:  # else what that one was to show might be let in behind this
                self._heard = None
                await self._run_blocking(replace_peer, self._directory, certificate)
                self._reread()

    async def tell(self, link: Link) -> None:
        """Tell the peer of the keys of this host, whenever they have changed, until the link is lost."""
        if self._ring is None or not link.peer.takes_keys:
            return
        with suppress(ConnectionLost):
            while True:
                changed = self._changed
                link.mirror.send(_news(self._ring))
                await changed.wait()

    def take(self, news: KeyNews, session: Session) -> None:
        """What the peer tells. RemoteProtocolError where it cannot be."""
        if self._ring is None:
            raise refusal(session.peer_name, news, "there are no keys here")
        try:
            if news.next:
                normal(news.next)
        except ValueError as error:
            raise refusal(session.peer_name, news, f"next: {error}") from None
        self._heard = news
        self._hearing.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Act on what is heard, for ever. OSError, BadKeys: it acts on the last when it runs again."""
        task_status.started()
        while True:
            while self._heard is not None:
                async with self._changing:
                    news = self._heard
                    if news is not None:  # it may have been forgotten while another changed the keyring
                        await self._act(news)
                if self._heard is news:
                    self._heard = None
            self._hearing = trio.Event()
            await self._hearing.wait()

    async def _act(self, news: KeyNews) -> None:
        ring, directory = self._ring, self._directory
        assert ring is not None
        assert directory is not None
        steps: list[Callable[[], None]] = []
        coming = normal(news.next) if news.next else ""
        if coming and coming not in ring.peers:
            # The own one first: after a crash between the two this host tells of it all the same.
            steps += [
                partial(prepare_next, directory, self._host_name),
                partial(let_in, directory, coming),
            ]
        shown = [each for each in ring.peers[1:] if _digest(each) == news.shows]
        if shown:
            steps.append(partial(confirm_peer, directory, shown[0]))
        if ring.next and _digest(ring.next) == news.knows:
            steps.append(partial(show_next, directory))
        for step in steps:
            try:
                await self._run_blocking(step)
            except ValueError as error:  # somebody else changed a file
                raise BadKeys(directory, str(error)) from error
        if steps:
            self._reread()
            self._say(ring)

    def _reread(self) -> None:
        assert self._directory is not None
        self._ring = read_ring(self._directory)
        self._use()
        self._changed.set()
        self._changed = trio.Event()

    def _say(self, before: Ring) -> None:
        assert self._ring is not None
        if self._ring.shown != before.shown:
            log.info("this host shows its new certificate from now on")
        if self._ring.peers[0] != before.peers[0]:
            log.info("the other host shows its new certificate: the old one is refused from now on")


def _news(ring: Ring) -> KeyNews:
    return KeyNews(shows=_digest(ring.shown), knows=_digest(ring.peers[-1]), next=ring.next)


def _digest(certificate: str) -> bytes:
    return hashlib.sha256(certificate.encode()).digest()
