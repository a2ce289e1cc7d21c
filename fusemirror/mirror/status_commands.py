"""Commands to the backup to take an exclusive status, whose answers somebody at the primary waits for."""

from fusemirror.identifiers import ChangeNumber
from fusemirror.promise import Promise
from fusemirror.protocol.messages import StatusTaken


class StatusCommands:
    """By the change that each was sent ahead of, in the order of changes."""

    def __init__(self) -> None:
        self.awaited: dict[ChangeNumber, Promise[bool]] = {}
        """The answers that have not come yet."""

    def sent(self, number: ChangeNumber) -> None:
        """The command for a change is on its way, and somebody may wait for its answer."""
        assert not self.awaited or next(reversed(self.awaited)) < number, "changes have an order"
        self.awaited[number] = Promise()

    async def taken(self, number: ChangeNumber) -> bool:
        """Return when the backup has taken the status for a change, or has applied it. False: it was not told
        to, or the link was lost."""
        answer = self.awaited.get(number)
        return answer is not None and await answer.wait()

    def answered(self, message: StatusTaken) -> None:
        answer = self.awaited.pop(message.number, None)
        if answer is not None:
            answer.resolve(True)

    def applied(self, number: ChangeNumber) -> None:
        """All changes up to this one are applied, and whoever applied them had the status."""
        while self.awaited and (first := next(iter(self.awaited))) <= number:
            self.awaited.pop(first).resolve(True)

    def end(self) -> None:
        """The link was lost: nothing is answered any more."""
        answers, self.awaited = self.awaited, {}
        for answer in answers.values():
            answer.resolve(False)
