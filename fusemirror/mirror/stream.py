"""One link's mirror path as the primary uses it: messages in order, and questions with their replies."""

import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost
from fusemirror.promise import Promise
from fusemirror.protocol.checks import check_fetched, check_reply
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Fetched, Reply

Question = Callable[[int], AnyMessage]
"""Makes a message out of the token that its reply will carry."""


Answer = TypeVar("Answer", Reply, Fetched)


class _Questions(Generic[Answer]):
    """Those under way that are answered with one kind of message, by their tokens."""

    def __init__(self, session: Session, check: Callable[[AnyMessage, Answer], None]) -> None:
        self._session = session
        self._check: Callable[[AnyMessage, Answer], None] = check
        self._under_way: dict[int, tuple[AnyMessage, Promise[Answer]]] = {}

    def ask(self, token: int, question: Question) -> Promise[Answer]:
        message = question(token)
        promise = Promise[Answer]()
        self._under_way[token] = message, promise
        self._session.send(message)
        return promise

    def answered(self, answer: Answer) -> None:
        question, promise = self._under_way.pop(answer.token, (None, None))
        if question is None or promise is None:
            raise refusal(self._session.peer_name, answer, "token: nothing was asked under it")
        try:
            self._check(question, answer)
        except ValueError as error:
            why = f"to {type(question).__name__}: {error}"
            promise.reject(ConnectionLost(self._session.peer_name, f"its answer was refused, {why}"))
            raise refusal(self._session.peer_name, answer, why) from error
        promise.resolve(answer)

    def end(self, error: Exception) -> None:
        under_way, self._under_way = self._under_way, {}
        for _, promise in under_way.values():
            promise.reject(error)


class Stream:
    """Lives as long as its session. Questions are answered in any order, by their token."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._tokens = itertools.count(1)
        self._questions = _Questions[Reply](session, check_reply)
        self._fetching = _Questions[Fetched](session, check_fetched)

    def send(self, message: AnyMessage, data: Buffer = b"") -> None:
        self.session.send(message, data)

    def send_encoded(self, encoded: bytes, data: Buffer = b"") -> None:
        self.session.send_encoded(encoded, data)

    def ask(self, question: Question) -> Promise[Reply]:
        """Send a question at this place of the stream. The promise is rejected when the link is lost."""
        return self._questions.ask(next(self._tokens), question)

    def answered(self, reply: Reply) -> None:
        """RemoteProtocolError for an answer to nothing that was asked."""
        self._questions.answered(reply)

    def fetch(self, question: Question) -> Promise[Fetched]:
        """The same for a question that is answered with content."""
        return self._fetching.ask(next(self._tokens), question)

    def fetched(self, answer: Fetched) -> None:
        """RemoteProtocolError for content that nobody asked for."""
        self._fetching.answered(answer)

    def end(self, error: Exception) -> None:
        """Every question under way fails with `error`."""
        self._questions.end(error)
        self._fetching.end(error)

    async def wait_room(self, bytes_max: int | None = None) -> None:
        """As `Session.wait_room`."""
        await self.session.wait_room(bytes_max)
