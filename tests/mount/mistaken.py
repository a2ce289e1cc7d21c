"""fusemirror with a mistake in its session with the kernel: it fails at a name with "mistake" in it."""

from collections.abc import Coroutine
from typing import Any

from fusemirror.cli.main import main
from fusemirror.filesystem.server import OperationsServer
from fusemirror.kernel.codec import FuseReply, InHeader

serve = OperationsServer.serve


def mistaken(
    self: OperationsServer, header: InHeader, body: memoryview
) -> Coroutine[Any, Any, FuseReply] | None:
    if b"mistake" in bytes(body):
        raise KeyError("planted by a test")
    return serve(self, header, body)


OperationsServer.serve = mistaken  # type: ignore[method-assign]
main()
