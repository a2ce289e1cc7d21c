"""The way of a small write: how many functions of the product it enters, whatever else the machine does.

It stands for what a write costs: Python takes about as long for each. Who makes the way longer raises a bound
here, and says why.
"""

import sys
from pathlib import Path
from types import FrameType

import pytest

import fusemirror
from fusemirror.daemon import Host
from fusemirror.identifiers import ROOT_INODE
from fusemirror.operations import Create, Write
from tests.admin.conftest import Pair, network, pair

__all__ = ["network", "pair"]

PACKAGE = str(Path(fusemirror.__file__).parent)
BLOCK = bytes(4096)
# The shortest of these counts: in another comes something between of the writes before it, as a heartbeat or
# their delayed word. At the backup that is so in nine of ten.
ROUNDS = 400


async def entries(host: Host, operation: Write) -> int:
    """How many functions are entered, or gone on with, at both hosts, for one write at this one."""
    counted = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    await host.unit.wait_normal()
    await host.unit.perform(operation, BLOCK)  # a look at the flags of the file
    found = []
    for _ in range(ROUNDS):
        counted = 0
        sys.setprofile(count)
        try:
            promise = host.unit.begin_write(operation, BLOCK)
            assert promise is not None, "something is in its way"
            await promise.wait()
        finally:
            sys.setprofile(None)
        found.append(counted)
    return min(found)


@pytest.fixture
async def write(pair: Pair) -> Write:
    made = await pair.primary.unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    await pair.primary.unit.perform(Write(made.number, 0), BLOCK)
    return Write(made.number, 0)


async def test_a_write_at_the_primary_enters_few_functions(pair: Pair, write: Write) -> None:
    assert await entries(pair.primary, write) <= 155


async def test_a_write_at_the_backup_enters_few_functions(pair: Pair, write: Write) -> None:
    assert await entries(pair.backup, write) <= 185
