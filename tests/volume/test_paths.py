"""The name of a directory, found from its inode; the walk over all names is tried where it is used."""

from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.paths import name_of_directory
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer


async def test_a_directory_is_found_among_many(volume: Volume, writer: Writer) -> None:
    above = writer.mkdir(b"above")
    for number in range(600):
        writer.create(b"%04d" % number, above)
    wanted, last = writer.mkdir(b"0500-wanted", above), writer.mkdir(b"last", above)
    assert await name_of_directory(volume, wanted) == (above, b"0500-wanted")
    assert await name_of_directory(volume, last) == (above, b"last")
    assert await name_of_directory(volume, above) == (ROOT_INODE, b"above")


async def test_what_is_no_directory_or_not_there_has_no_such_name(volume: Volume, writer: Writer) -> None:
    assert await name_of_directory(volume, writer.create(b"file")) is None
    assert await name_of_directory(volume, InodeNumber(4711)) is None
