"""Names that kernels keep are given up before a program changes them."""

from fusemirror.control.host_state import HostState
from fusemirror.control.names import make_way
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, RemoveDirectory
from fusemirror.volume.volume import Volume
from tests.volume.conftest import directory, volume

__all__ = ["directory", "volume"]

CREATE = Create(ROOT_INODE, b"name", 0o100644, 0, 0)


async def test_who_is_in_the_way_is_waited_for_and_only_then(volume: Volume) -> None:
    host, freed = HostState(volume, b"instance"), list[tuple[InodeNumber, bool]]()

    async def free(directory: InodeNumber, *, of_change: bool) -> None:
        freed.append((directory, of_change))
        host.leases.theirs.discard(directory)

    assert not await make_way(host, CREATE, free)
    host.leases.theirs.add(InodeNumber(99))  # where nothing is changed
    assert not await make_way(host, CREATE, free)
    assert not freed
    host.leases.theirs.add(ROOT_INODE)
    assert await make_way(host, CREATE, free)
    assert freed == [(ROOT_INODE, True)]


async def test_a_directory_that_must_be_empty_is_looked_into(volume: Volume) -> None:
    host, freed = HostState(volume, b"instance"), list[tuple[InodeNumber, bool]]()
    emptied = InodeNumber(7)

    async def free(directory: InodeNumber, *, of_change: bool) -> None:
        freed.append((directory, of_change))
        host.leases.theirs.discard(directory)

    operation = RemoveDirectory(ROOT_INODE, b"gone", emptied)
    host.leases.theirs.add(emptied)
    waited = await make_way(host, operation, free)
    expected = operation.must_be_empty(volume.catalog)
    assert (waited, freed) == ((True, [(emptied, False)]) if expected == emptied else (False, []))
