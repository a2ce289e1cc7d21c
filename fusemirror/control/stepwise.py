"""Stepwise: what lies in very many places is changed in steps, so that no step takes either host long.

Each step is a change of its own, which others see.
"""

import errno
from collections.abc import Iterable

from fusemirror.errors import OperationFailed
from fusemirror.limits import CUT_SHORT_BYTES
from fusemirror.operations import AnyOperation
from fusemirror.volume.volume import Volume


async def steps_of(operation: AnyOperation, volume: Volume) -> Iterable[AnyOperation]:
    """What is to be made, one after the other: the operation itself where that is short. OperationFailed."""
    before = volume.catalog.inode(operation.image)
    if operation.stepwise is None or before is None or not before.is_regular:
        return (operation,)
    start, end = operation.stepwise
    if min(before.size, end) - start <= CUT_SHORT_BYTES:
        return (operation,)
    try:
        points = await volume.files.step_points(operation.image, start, end)
    except OSError as error:
        raise OperationFailed(error.errno or errno.EIO) from error

    def size_now() -> int:
        now = volume.catalog.inode(operation.image)
        return 0 if now is None else now.size

    return operation.steps(points, size_now) if points else (operation,)
