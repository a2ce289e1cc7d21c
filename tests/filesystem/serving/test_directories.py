"""Requests on directories, as bytes."""

from fusemirror.kernel import codec
from fusemirror.kernel.codec import Opcode
from tests.filesystem.serving.conftest import ROOT, Kernel


async def test_a_directory_is_listed_in_as_many_replies_as_it_takes(kernel: Kernel) -> None:
    inodes = {b"%d" % number: (await kernel.create(b"%d" % number))[0] for number in range(20)}
    opened = await kernel.ask(Opcode.OPENDIR, ROOT, codec.OPEN_IN.pack(0, 0))
    handle = codec.OPEN_OUT.read(opened).fh
    listed, offset = [], 0
    while found := await kernel.names(handle, offset=offset, size=700):
        listed += found
        offset = kernel.last_offset
    kinds = {name: kind for name, _, kind in listed}
    assert {name: inode for name, inode, _ in listed[2:]} == inodes
    assert [name for name, _, _ in listed[:2]] == [b".", b".."]
    assert kinds[b"."] == 4  # DT_DIR
    assert kinds[b"7"] == 8  # DT_REG
    await kernel.ask(Opcode.FSYNCDIR, ROOT, codec.FSYNC_IN.pack(handle, 0, 0))
    await kernel.ask(Opcode.RELEASEDIR, ROOT, codec.RELEASE_IN.pack(handle, 0, 0, 0))
