"""A write that meets an error of main's disk: it is tried once, whichever way it went, and has no effect."""

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.errors import FusemirrorError
from fusemirror.identifiers import ROOT_INODE
from fusemirror.operations import Create, Write
from fusemirror.settings import Acknowledge
from tests.admin.conftest import Pair, network, pair

__all__ = ["network", "pair"]

LONG_S = 500.0


@pytest.fixture
async def write(pair: Pair) -> Write:
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    for _ in range(2):  # the first looks whether the file has flags
        await pair.primary.roles.perform(Write(made.number, 0), b"before")
    return Write(made.number, 0)


def failing(monkeypatch: pytest.MonkeyPatch, pair: Pair, error: int) -> Callable[[], int]:
    """The disk of the primary fails once; how often it was written to."""
    images, written = pair.primary.roles.volume.images, 0
    write = images.write

    def fail_once(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == 1:
            raise OSError(error, "broken")
        write(*arguments)

    monkeypatch.setattr(images, "write", fail_once)
    return lambda: written


@pytest.mark.expects_warnings
@pytest.mark.parametrize("acknowledge", list(Acknowledge))
@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
async def test_at_the_primary_its_program_hears_of_it(
    pair: Pair, write: Write, monkeypatch: pytest.MonkeyPatch, acknowledge: Acknowledge, error: int
) -> None:
    host = pair.primary
    host.succession.configure(msgspec.structs.replace(host.settings, acknowledge=acknowledge))
    before, written = host.roles.volume.number, failing(monkeypatch, pair, error)
    with trio.fail_after(LONG_S), pytest.raises(FusemirrorError) as caught:
        await host.roles.perform(write, b"after!")
    assert caught.value.errno == error
    assert (written(), host.roles.volume.number) == (1, before)
    assert (host.roles.volume.health.failure is None) == (error in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.expects_warnings
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_one_of_the_backup_is_not_made_on_a_disk_that_has_failed(
    pair: Pair,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    error: int,
) -> None:
    main = pair.primary.roles.volume
    before, written = main.number, failing(monkeypatch, pair, error)
    with trio.fail_after(LONG_S), pytest.raises(FusemirrorError) as caught:
        await pair.backup.roles.perform(write, b"after!")
    assert caught.value.errno == error
    assert (written(), main.number) == (1, before)
