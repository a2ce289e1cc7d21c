"""What each host tells of itself: all of it, over every link, as long as that lasts."""

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.channel.renewal import Renewal
from fusemirror.control.peer_news import PeerNews
from fusemirror.errors import ConnectionLost
from fusemirror.limits import SPACE_LOOK_INTERVAL_S
from fusemirror.protocol.messages import DiskSpace, Modes
from fusemirror.settings import Communication, Fence
from fusemirror.volume.volume import Volume
from tests.volume.conftest import directory, volume

__all__ = ["directory", "volume"]

MODES = Modes(Fence.NEVER, Communication.LMDB)


async def test_a_peer_hears_all_of_it_and_it_ends_with_the_link(
    volume: Volume, autojump_clock: MockClock
) -> None:
    news, sent = PeerNews(volume, Renewal()), list[Any]()
    news.modes.set(MODES)
    is_lost = False

    def send(message: Any) -> None:
        if is_lost:
            raise ConnectionLost("beta", "cut")
        sent.append(message)

    peer = SimpleNamespace(takes_modes=True, takes_disk_space=True, takes_keys=True)
    link: Any = SimpleNamespace(peer=peer, mirror=SimpleNamespace(send=send))
    with trio.fail_after(10 * SPACE_LOOK_INTERVAL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(news.run, link)
            await wait_all_tasks_blocked()
            assert {type(message) for message in sent} == {Modes, DiskSpace}
            is_lost = True
            volume.space.short = True  # so there is something to tell
            news.modes.set(MODES)
    assert len(sent) == 2
