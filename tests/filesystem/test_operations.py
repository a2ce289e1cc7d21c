"""pyfuse3's interface: each request comes to the class that answers it, as it was asked."""

import inspect
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from fusemirror.filesystem.operations import Operations

PARTS = ("names", "directories", "attributes", "files")
REQUESTS = [
    name for name in vars(Operations) if name[0] != "_" and callable(getattr(pyfuse3.Operations, name, None))
]


def test_the_kernel_is_told_to_keep_nothing_back() -> None:
    assert Operations.enable_writeback_cache is False
    assert Operations.supports_dot_lookup is True
    assert Operations.enable_acl is True


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_is_handed_on_with_all_that_it_says(operations: Operations, name: str) -> None:
    asked: list[tuple[Any, ...]] = []

    def hear(*arguments: Any) -> str:
        asked.append(arguments)
        return "the answer"

    parts = [part for part in PARTS if hasattr(getattr(operations, part), name)]
    assert len(parts) == 1
    setattr(operations, parts[0], SimpleNamespace(**{name: hear}))
    request = getattr(operations, name)
    arguments = tuple(inspect.signature(request).parameters)
    assert request(*arguments) == (None if name == "forget" else "the answer")
    assert asked == [arguments]
