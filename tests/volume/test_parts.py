"""The directory of a volume: locked while it is open, and what it says of itself."""

from pathlib import Path

import pytest

from fusemirror.errors import VolumeInUse
from fusemirror.volume.identity import Identity
from fusemirror.volume.parts import Home


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
