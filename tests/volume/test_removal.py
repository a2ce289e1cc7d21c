"""Images on their way out: each goes when the record that says so is durable, and not before."""

import trio

from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer


async def test_an_image_goes_once_the_end_of_its_inode_is_durable(volume: Volume, writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc")
    writer.unlink(b"a")
    writer.purge(inode)
    assert volume.files.removal.oldest == volume.number, "its record is needed still"
    await volume.files.removal.remove()
    assert volume.images.exists(inode)
    volume.journal.sync()
    await volume.files.removal.remove()
    assert not volume.images.exists(inode)
    assert volume.files.removal.oldest is None


async def test_what_is_forgotten_stays(volume: Volume, writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc")
    writer.unlink(b"a")
    writer.purge(inode)
    volume.files.removal.forget()
    volume.journal.sync()
    await volume.files.removal.remove()
    assert volume.images.exists(inode)
    volume.images.remove(inode)  # or the fixture's check finds it


async def test_who_frees_discarded_images_hears_of_each(volume: Volume, writer: Writer) -> None:
    inode = writer.create(b"a")
    writer.write(inode, 0, b"abc")
    volume.images.discard(inode)
    with trio.fail_after(5):
        await volume.files.removal.free_discarded()  # it waits where nothing is discarded
    assert volume.images.discarded.is_empty
    writer.truncate(inode, 0)
