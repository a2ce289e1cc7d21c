"""Staged: a change of the backup on its way to the primary, and what is known of it here."""

from fusemirror.communication.outstanding import Outstanding
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation
from fusemirror.protocol.messages import Request

StoredEntry = tuple[int, bytes, bytes]
"""What the store keeps of a request: its serial, the encoded request, and its data."""

StoredRequest = tuple[int, bytes, int]
"""The same without the data: how long that is."""


class Staged(Outstanding[InodeNumber]):
    """A change on its way, and what is known of it here. The answer is the inode concerned, or 0."""

    __slots__ = (
        "acknowledged",
        "awaits_status",
        "destaged",
        "in_doubt",
        "is_safe",
        "operation",
        "stored",
        "time_ns",
    )

    def __init__(
        self,
        serial: int,
        request: Request,
        data: bytes | None,
        since: float,
        time_ns: int,
        data_bytes: int = 0,
        *,
        awaits_status: bool = False,
    ) -> None:
        assert isinstance(request.operation, Operation), "calls are not staged"
        super().__init__(serial, request, data, since, data_bytes)
        self.operation: Operation = request.operation
        self.gathers = request.kept and not awaits_status
        self.time_ns = time_ns
        """When it was asked, as the time stamps of files have it."""
        self.destaged = False
        """The store has it, or is about to, or may have it since it failed."""
        self.stored = data is None
        """The store has it: the data can be read back."""
        self.acknowledged = False
        """Its program was told success; nobody waits for the answer."""
        self.awaits_status = awaits_status
        """A kept one whose program hears of success only once main has granted its exclusive status."""
        self.is_safe = False
        """The communication volume holds a kept one as it keeps it."""
        self.in_doubt = False
        """It may have taken effect already: in main, and with what was copied since in the subvolume."""

    def acknowledge(self) -> None:
        """It is safe here: tell its program success before the primary's answer.

        Not while it awaits a status: then as soon as that is granted.
        """
        self.is_safe = True
        if not self.awaits_status:
            self.acknowledged = True
            self.answer.resolve(self.operation.image)

    def grant_status(self) -> None:
        """Main is exclusive for it: tell its program success, once it is safe here."""
        self.awaits_status = False
        if self.is_safe:
            self.acknowledge()
