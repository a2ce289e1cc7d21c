"""One link's mirror path as the primary uses it: messages in order, and questions with their replies."""

import itertools
from collections.abc import Callable

from fusemirror.channel.session import Session
from fusemirror.promise import Promise
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Fetched, Reply

Question = Callable[[int], AnyMessage]
"""Makes a message out of the token that its reply will carry."""


class Stream:
    """Lives as long as its session. Questions are answered in any order, by their token."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._tokens = itertools.count(1)
        self._questions: dict[int, Promise[Reply]] = {}
        self._fetching: dict[int, Promise[Fetched]] = {}

    def send(self, message: AnyMessage, data: Buffer = b"") -> None:
        self.session.send(message, data)

    def send_encoded(self, encoded: bytes, data: Buffer = b"") -> None:
        self.session.send_encoded(encoded, data)

    def ask(self, question: Question) -> Promise[Reply]:
        """Send a question at this place of the stream. The promise is rejected when the link is lost."""
        token = next(self._tokens)
        promise: Promise[Reply] = Promise()
        self._questions[token] = promise
        self.session.send(question(token))
        return promise

    def answered(self, reply: Reply) -> None:
        promise = self._questions.pop(reply.token, None)
        if promise is not None:
            promise.resolve(reply)

    def fetch(self, question: Question) -> Promise[Fetched]:
        """The same for a question that is answered with content."""
        token = next(self._tokens)
        promise = self._fetching[token] = Promise[Fetched]()
        self.session.send(question(token))
        return promise

    def fetched(self, answer: Fetched) -> None:
        promise = self._fetching.pop(answer.token, None)
        if promise is not None:
            promise.resolve(answer)

    def end(self, error: Exception) -> None:
        """Every question under way fails with `error`."""
        questions, self._questions = self._questions, {}
        for promise in questions.values():
            promise.reject(error)
        fetching, self._fetching = self._fetching, {}
        for fetch in fetching.values():
            fetch.reject(error)

    async def wait_room(self, bytes_max: int | None = None) -> None:
        """As `Session.wait_room`."""
        await self.session.wait_room(bytes_max)
