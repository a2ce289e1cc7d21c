"""A staged request: what may be done twice, and being acknowledged before it is answered."""

from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Operation, Write
from fusemirror.protocol.messages import Request

INODE = InodeNumber(2)


def staged(operation: Operation) -> Staged:
    return Staged(1, Request(RequestId(b"request of 16 by"), operation, True), b"x", 0.0, 0)  # type: ignore[arg-type]


async def test_an_acknowledged_request_is_answered_with_its_inode() -> None:
    request = staged(Write(INODE, 0))
    request.acknowledge()
    assert request.acknowledged
    assert await request.answer.wait() == INODE
