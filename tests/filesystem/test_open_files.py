"""Open files: which are for the page cache, by how they and others of the same inode are open."""

import os

import pytest
import trio
import trio.testing

from fusemirror.filesystem.handles import FileHandle
from fusemirror.filesystem.open_files import OpenFiles
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REST_S

FILE = InodeNumber(7)


@pytest.mark.parametrize(
    ("flags", "maps_direct_io", "cached"),
    [
        (os.O_RDONLY, True, True),
        (os.O_RDONLY, False, True),
        (os.O_RDONLY | os.O_DIRECT, True, False),
        (os.O_WRONLY, False, False),
        (os.O_RDWR, False, True),
        (os.O_RDWR, True, False),
    ],
)
async def test_how_it_is_opened_decides(flags: int, maps_direct_io: bool, cached: bool) -> None:
    files = OpenFiles()
    files.negotiated(maps_direct_io=maps_direct_io)
    assert files.keeps_content(FILE, flags) is cached


async def test_a_file_that_is_written_here_is_read_past_the_cache_until_it_is_closed() -> None:
    files = OpenFiles()
    writer = FileHandle(FILE, os.O_WRONLY, 0)
    files.opened(writer)
    assert not files.keeps_content(FILE, os.O_RDONLY)
    files.closed(writer)
    assert files.keeps_content(FILE, os.O_RDONLY)
    assert not files.all
    assert not files.writers


async def test_a_file_that_just_changed_is_read_past_the_cache(
    autojump_clock: trio.testing.MockClock,
) -> None:
    files = OpenFiles()
    files.moved.add(FILE)
    seen = [files.keeps_content(FILE, os.O_RDONLY)]
    await trio.sleep(2 * REST_S)
    assert [*seen, files.keeps_content(FILE, os.O_RDONLY)] == [False, True]
