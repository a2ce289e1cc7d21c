"""One link's mirror path as the primary uses it: messages in order, and questions with their replies."""

import itertools
from collections.abc import Callable

from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost
from fusemirror.promise import Promise
from fusemirror.protocol.checks import check_fetched, check_reply
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Fetched, Reply

Question = Callable[[int], AnyMessage]
"""Makes a message out of the token that its reply will carry."""


class Stream:
    """Lives as long as its session. Questions are answered in any order, by their token."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._tokens = itertools.count(1)
        self._questions: dict[int, tuple[AnyMessage, Promise[Reply]]] = {}
        self._fetching: dict[int, tuple[AnyMessage, Promise[Fetched]]] = {}

    def send(self, message: AnyMessage, data: Buffer = b"") -> None:
        self.session.send(message, data)

    def send_encoded(self, encoded: bytes, data: Buffer = b"") -> None:
        self.session.send_encoded(encoded, data)

    def ask(self, question: Question) -> Promise[Reply]:
        """Send a question at this place of the stream. The promise is rejected when the link is lost."""
        token = next(self._tokens)
        promise: Promise[Reply] = Promise()
        message = question(token)
        self._questions[token] = message, promise
        self.session.send(message)
        return promise

    def answered(self, reply: Reply) -> None:
        """RemoteProtocolError for an answer to nothing that was asked."""
        question, promise = self._questions.pop(reply.token, (None, None))
        if question is None or promise is None:
            raise refusal(self.session.peer_name, reply, "token: nothing was asked under it")
        try:
            check_reply(question, reply)
        except ValueError as error:
            why = f"to {type(question).__name__}: {error}"
            promise.reject(ConnectionLost(self.session.peer_name, f"its answer was refused, {why}"))
            raise refusal(self.session.peer_name, reply, why) from error
        promise.resolve(reply)

    def fetch(self, question: Question) -> Promise[Fetched]:
        """The same for a question that is answered with content."""
        token = next(self._tokens)
        promise = Promise[Fetched]()
        message = question(token)
        self._fetching[token] = message, promise
        self.session.send(message)
        return promise

    def fetched(self, answer: Fetched) -> None:
        """RemoteProtocolError for content that nobody asked for."""
        question, promise = self._fetching.pop(answer.token, (None, None))
        if question is None or promise is None:
            raise refusal(self.session.peer_name, answer, "token: nothing was asked under it")
        try:
            check_fetched(question, answer)
        except ValueError as error:
            why = f"to {type(question).__name__}: {error}"
            promise.reject(ConnectionLost(self.session.peer_name, f"its answer was refused, {why}"))
            raise refusal(self.session.peer_name, answer, why) from error
        promise.resolve(answer)

    def end(self, error: Exception) -> None:
        """Every question under way fails with `error`."""
        questions, self._questions = self._questions, {}
        for _, promise in questions.values():
            promise.reject(error)
        fetching, self._fetching = self._fetching, {}
        for _, fetch in fetching.values():
            fetch.reject(error)

    async def wait_room(self, bytes_max: int | None = None) -> None:
        """As `Session.wait_room`."""
        await self.session.wait_room(bytes_max)
