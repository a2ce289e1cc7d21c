"""Bytes on each path, over links that end and links that begin."""

from fusemirror.change import WriteChange
from fusemirror.channel.link import Link
from fusemirror.control.traffic import Traffic
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.protocol.calls import Flush
from fusemirror.protocol.messages import Request
from tests.control.conftest import make_links

FIELDS = ["sent_bytes", "received_bytes", "sent_data_bytes", "received_data_bytes"]


async def exchange(primary: Link, backup: Link, data_bytes: int) -> None:
    """A write travels down, a request travels up."""
    change = WriteChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), 0, data_bytes)
    primary.mirror.send(change, bytes(data_bytes))
    assert await backup.mirror.receive()
    backup.forward.send(Request(RequestId(b"1" * 16), Flush(InodeNumber(2))))
    assert await primary.forward.receive()


async def test_without_a_link_everything_is_zero(autojump_clock: object) -> None:
    assert Traffic().of_paths(None) == {path: dict.fromkeys(FIELDS, 0) for path in ("mirror", "forward")}


async def test_a_living_link_counts_each_path_by_itself(autojump_clock: object) -> None:
    primary, backup = await make_links()
    await exchange(primary, backup, 1000)
    ours, theirs = Traffic().of_paths(primary), Traffic().of_paths(backup)
    assert ours["mirror"]["sent_data_bytes"] == theirs["mirror"]["received_data_bytes"] == 1000
    assert ours["mirror"]["sent_bytes"] > 1000
    assert ours["forward"]["received_bytes"] > 0
    assert ours["forward"]["sent_data_bytes"] == ours["forward"]["received_data_bytes"] == 0
    assert theirs["mirror"]["sent_data_bytes"] == 0
    primary.close("over")
    backup.close("over")


async def test_a_link_that_ended_stays_counted_beside_the_next(autojump_clock: object) -> None:
    traffic = Traffic()
    first, first_peer = await make_links()
    await exchange(first, first_peer, 1000)
    before = traffic.of_paths(first)
    traffic.end(first)
    first.close("over")
    assert traffic.of_paths(None) == before
    second, second_peer = await make_links()
    await exchange(second, second_peer, 500)
    both = traffic.of_paths(second)
    assert both["mirror"]["sent_data_bytes"] == 1500
    assert both["forward"]["received_bytes"] == 2 * before["forward"]["received_bytes"]
    assert traffic.of_paths(None) == before, "asking counts nothing twice"
    for link in (first_peer, second, second_peer):
        link.close("over")
