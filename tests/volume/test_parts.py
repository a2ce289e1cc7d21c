"""The directory of a volume: locked while it is open, and what it says of itself."""

from pathlib import Path

import pytest

from fusemirror.errors import VolumeInUse
from fusemirror.volume.identity import Identity
from fusemirror.volume.parts import Home
from fusemirror.volume.volume import Volume
from tests.volume.conftest import BETA, GAMMA


def test_one_process_at_a_time_is_at_home(directory: Path) -> None:
    home = Home(directory)
    with pytest.raises(VolumeInUse):
        Home(directory)
    home.release()
    Home(directory).release()


def test_what_a_volume_says_of_itself_is_durable_when_it_is_said(directory: Path) -> None:
    home = Home(directory)
    home.update_identity({"term": 3})
    assert home.identity.term == 3
    assert Identity.load(directory).term == 3
    (directory / "identity.json").write_bytes(b"only a change is written")
    home.update_identity({"term": 3})
    home.identity.store(directory)
    home.release()


def test_what_is_said_of_one_peer_is_said_of_that_one(volume: Volume) -> None:
    volume.update_identity(peers=(BETA, GAMMA))
    volume.update_peer(BETA, file_bytes_max=2**40)
    volume.update_peer(GAMMA, name="delta", file_bytes_max=2**30)
    beta, delta = Identity.load(volume.directory).peers
    assert (beta.name, beta.file_bytes_max) == ("beta", 2**40)
    assert (delta.host, delta.name, delta.file_bytes_max) == (GAMMA.host, "delta", 2**30)
    assert volume.file_bytes_max == 2**30, "what all disks take"
