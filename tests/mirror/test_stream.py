"""The mirror path as the primary uses it: questions find their replies, whatever the order."""

import pytest
import trio
import trio.testing

from fusemirror.change import WriteChange
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Checkpoint, FlushImage, Normal, PurgeOffer, Reply
from tests.channel.conftest import SessionPair

INODE = InodeNumber(2)


def flush_image(token: int) -> FlushImage:
    return FlushImage(token, INODE)


async def test_messages_questions_and_data_travel_in_the_order_in_which_they_were_sent(
    memory_sessions: SessionPair,
) -> None:
    ours, theirs = memory_sessions
    stream = Stream(ours)
    change = WriteChange(ChangeNumber(1), NO_REQUEST, 5, INODE, 0, 4)
    stream.send(change, b"data")
    stream.ask(flush_image)
    stream.send_encoded(encode(Normal(ChangeNumber(1))))
    received = [(message, bytes(data)) for message, data in await theirs.receive()]
    assert received == [(change, b"data"), (FlushImage(1, INODE), b""), (Normal(ChangeNumber(1)), b"")]


async def test_each_question_gets_the_reply_with_its_token(memory_sessions: SessionPair) -> None:
    ours, theirs = memory_sessions
    stream = Stream(ours)
    promises = [
        stream.ask(flush_image),
        stream.ask(lambda token: PurgeOffer(token, (INODE,))),
        stream.ask(lambda token: Checkpoint(token, ChangeNumber(3))),
    ]
    asked = [message for message, _ in await theirs.receive()]
    tokens = [message.token for message in asked if isinstance(message, FlushImage | PurgeOffer | Checkpoint)]
    assert len(set(tokens)) == 3
    for token in reversed(tokens):
        theirs.send(Reply(token, values=(token,)))
    for reply, _ in await ours.receive():
        assert isinstance(reply, Reply)
        stream.answered(reply)
    assert [(await promise.wait()).values for promise in promises] == [(token,) for token in tokens]


async def test_a_reply_to_nothing_and_a_second_reply_change_nothing(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    stream.answered(Reply(77))
    promise = stream.ask(flush_image)
    stream.answered(Reply(1, errno=5))
    stream.answered(Reply(1, errno=6))
    assert (await promise.wait()).errno == 5


async def test_the_end_fails_what_is_not_answered(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    answered, waiting = stream.ask(flush_image), stream.ask(flush_image)
    stream.answered(Reply(1))
    results: list[str] = []

    async def wait(promise: Promise[Reply]) -> None:
        with pytest.raises(ConnectionLost, match="cut"):
            await promise.wait()
        results.append("lost")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, waiting)
        await trio.testing.wait_all_tasks_blocked()
        stream.end(ConnectionLost("beta", "cut"))
    assert results == ["lost"]
    assert (await answered.wait()).token == 1
    stream.answered(Reply(2))  # too late, and no error


async def test_nothing_can_be_sent_or_asked_once_the_link_is_lost(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    stream.session.close("cut")
    with pytest.raises(ConnectionLost):
        stream.send(Normal(ChangeNumber(1)))
    with pytest.raises(ConnectionLost):
        stream.ask(flush_image)
    with pytest.raises(ConnectionLost):
        await stream.wait_room()
