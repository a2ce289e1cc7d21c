"""The mirror path as the primary uses it: questions find their replies, whatever the order."""

from functools import partial

import pytest
import trio
import trio.testing

from fusemirror.change import Table, WriteChange
from fusemirror.errors import ConnectionLost, RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.mirror.stream import Question, Stream
from fusemirror.promise import Promise
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import (
    Checkpoint,
    Digests,
    Fetched,
    FetchRegion,
    FetchRows,
    FlushImage,
    Hole,
    Normal,
    PurgeOffer,
    Reply,
    RowsDigest,
)
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
        theirs.send(Reply(token, errno=token))
    for reply, _ in await ours.receive():
        assert isinstance(reply, Reply)
        stream.answered(reply)
    assert [(await promise.wait()).errno for promise in promises] == tokens


async def test_a_reply_to_nothing_and_a_second_reply_are_refused(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    promise = stream.ask(flush_image)
    stream.answered(Reply(1, errno=5))
    for token in (77, 1):
        with pytest.raises(RemoteProtocolError, match="Reply: token"):
            stream.answered(Reply(token, errno=6))
        with pytest.raises(RemoteProtocolError, match="Fetched: token"):
            stream.fetched(Fetched(token))
    assert (await promise.wait()).errno == 5


QUESTIONS: list[tuple[Question, tuple[int, ...], tuple[int, ...]]] = [
    (flush_image, (), (0,)),
    (partial(PurgeOffer, inodes=(INODE,)), (2,), (3,)),
    (lambda token: Digests(token, INODE, 9, 5, (1, 2), repair=True), (5, 6), (-1,)),
    (lambda token: Digests(token, INODE, 9, 5, (1, 2), repair=True), (), (7,)),
    (lambda token: Digests(token, INODE, 9, 5, (1, 2), repair=False), (6, -1), (4,)),
    (lambda token: Hole(token, INODE, 9, 5, 1 << 40, repair=True), (1 << 39,), (4,)),
    (lambda token: Hole(token, INODE, 9, 5, 1 << 40, repair=True), (1 << 40,), (9, 9)),
    (lambda token: Hole(token, INODE, 9, 5, 9, repair=False), (7, 6, -1), (7, 8)),
    (lambda token: RowsDigest(token, Table.META, b"", b"x", 0, 0), (5,), (5, 5)),
]


@pytest.mark.parametrize(("question", "good", "bad"), QUESTIONS)
async def test_a_reply_holds_only_what_was_asked_about(
    question: Question, good: tuple[int, ...], bad: tuple[int, ...], memory_sessions: SessionPair
) -> None:
    stream = Stream(memory_sessions[0])
    answered, refused = stream.ask(question), stream.ask(question)
    stream.answered(Reply(1, values=good))
    assert (await answered.wait()).values == good
    with pytest.raises(RemoteProtocolError, match="values"):
        stream.answered(Reply(2, values=bad))
    with pytest.raises(ConnectionLost, match="its answer was refused"):
        await refused.wait()


async def test_what_is_fetched_is_what_was_asked_for(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    row = (Table.XATTRS, bytes(7) + b"\2user.a", b"value")
    for _ in range(2):
        stream.fetch(lambda token: FetchRows(token, Table.XATTRS, bytes(8), b"\xff"))
        stream.fetch(lambda token: FetchRegion(token, INODE, 0, 5))
    stream.fetched(Fetched(1, rows=(row,)))
    stream.fetched(Fetched(2, 100, b"12345"))
    with pytest.raises(RemoteProtocolError, match="more than was asked for"):
        stream.fetched(Fetched(4, 100, b"123456"))
    with pytest.raises(RemoteProtocolError, match="no name that an extended attribute"):
        stream.fetched(Fetched(3, rows=((Table.XATTRS, row[1] + bytes(1), b""),)))


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
    with pytest.raises(RemoteProtocolError, match="nothing was asked"):
        stream.answered(Reply(2))  # too late


async def test_nothing_can_be_sent_or_asked_once_the_link_is_lost(memory_sessions: SessionPair) -> None:
    stream = Stream(memory_sessions[0])
    stream.session.close("cut")
    with pytest.raises(ConnectionLost):
        stream.send(Normal(ChangeNumber(1)))
    with pytest.raises(ConnectionLost):
        stream.ask(flush_image)
    with pytest.raises(ConnectionLost):
        await stream.wait_room()
