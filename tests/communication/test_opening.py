"""Which communication volume is opened: what holds requests is never passed over for what a setting names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fusemirror.communication import opening
from fusemirror.communication.opening import check_staged, open_communication
from fusemirror.communication.place import leave_place
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import RefusedForSafety
from fusemirror.settings import make
from fusemirror.volume.identity import Identity
from fusemirror.volume.volume import Volume
from tests.communication.test_volume import all_ended, request, running
from tests.volume.conftest import IDENTITY, counting_seams


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    directory = tmp_path / "volume"
    Volume.create(directory, IDENTITY)
    opened = Volume.open(directory, counting_seams())
    yield opened
    opened.close()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path / "one", tmp_path / "two"


def opened(volume: Volume, place: Path | None, **more: Any) -> CommunicationVolume:
    chosen = make(
        name=IDENTITY.name,
        volume=str(volume.directory),
        listen="a:1",
        peer="b:1",
        communication_directory="" if place is None else str(place),
        **more,
    )
    return open_communication(chosen, volume, counting_seams())


async def stage_and_close(communication: CommunicationVolume) -> None:
    async with running(communication):
        with trio.fail_after(5):
            await communication.stage(request(1, kept=True), b"data").answer.wait()
    communication.close()


async def end_and_close(communication: CommunicationVolume) -> None:
    async with running(communication):
        (staged,) = communication.pending()
        assert communication.data_of(staged) == b"data"
        communication.retire(staged.request.identity)
        with trio.fail_after(5):
            await all_ended(communication)
    communication.close()


async def test_requests_are_staged_in_the_place_of_the_settings(
    volume: Volume, places: tuple[Path, Path], autojump_clock: MockClock
) -> None:
    communication = opened(volume, places[0])
    assert communication.status()["directory"] == str(places[0])
    await stage_and_close(communication)
    assert (places[0] / "data.mdb").exists()
    assert not (volume.directory / "communication").exists()
    await end_and_close(opened(volume, places[0]))


@pytest.mark.parametrize("before", [True, False], ids=["from a place", "from the volume"])
@pytest.mark.parametrize("after", [True, False], ids=["to a place", "to the volume"])
async def test_another_place_is_used_once_the_one_before_holds_nothing(
    volume: Volume, places: tuple[Path, Path], before: bool, after: bool, autojump_clock: MockClock
) -> None:
    one, two = places[0] if before else None, places[1] if after else None
    await stage_and_close(opened(volume, one))
    communication = opened(volume, two)
    assert communication.status()["directory"] == str(one or volume.directory / "communication")
    await end_and_close(communication)
    communication = opened(volume, two)
    assert communication.status()["directory"] == str(two or volume.directory / "communication")
    communication.close()
    assert volume.identity.communication_directory == ("" if two is None else str(two))
    if one is not None and two is not None:
        assert not list(one.iterdir()), "it is for anybody again"


@pytest.mark.parametrize("kind", ["subvolume", "memory"])
async def test_another_kind_has_no_place_of_its_own_and_waits_for_what_is_there(
    volume: Volume, places: tuple[Path, Path], kind: str, autojump_clock: MockClock
) -> None:
    await stage_and_close(opened(volume, places[0]))
    communication = opened(volume, places[0], communication=kind)
    assert communication.kind == "lmdb"
    await end_and_close(communication)
    communication = opened(volume, places[0], communication=kind)
    assert communication.kind == kind
    communication.close()


@pytest.mark.parametrize("is_there_at_last", [True, False], ids=["mount point", "nothing"])
@pytest.mark.parametrize("now", ["the same", "another", "none"])
async def test_a_disk_that_is_not_mounted_is_not_forgotten_until_a_person_gives_it_up(
    volume: Volume,
    places: tuple[Path, Path],
    now: str,
    is_there_at_last: bool,
    autojump_clock: MockClock,
) -> None:
    one, two = places
    await stage_and_close(opened(volume, one))
    one.rename(one.with_name("elsewhere"))
    wanted = {"the same": one, "another": two, "none": None}[now]
    for is_there in (False, True):
        if is_there:
            one.mkdir(mode=0o700)  # its mount point
        with pytest.raises(RefusedForSafety, match=f"staged in {one}, and its disk is not there"):
            opened(volume, wanted)
    lines: list[str] = []
    assert not check_staged(volume.directory, repair=False, report=lines.append)
    one.rmdir()
    assert not check_staged(volume.directory, repair=False, report=lines.append)
    if is_there_at_last:
        one.mkdir(mode=0o700)
    assert not check_staged(volume.directory, repair=True, report=lines.append)
    assert [f"staged in {one}, and its disk, with" in line for line in lines] == [True] * 3
    assert check_staged(volume.directory, repair=False, report=lines.append)


@pytest.mark.parametrize("after", ["the same", "another", "none"])
@pytest.mark.parametrize("step", ["update_identity", "leave_place"])
async def test_a_mount_that_is_killed_as_it_leaves_a_place_is_followed_by_another(
    volume: Volume,
    places: tuple[Path, Path],
    step: str,
    after: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    one, two = places
    opened(volume, one).close()

    def killed(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        owner: object = Volume if step == "update_identity" else opening
        patched.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            opened(volume, None)
    assert check_staged(volume.directory, repair=False, report=print)
    wanted = {"the same": one, "another": two, "none": None}[after]
    communication = opened(volume, wanted)
    assert communication.directory == str(wanted or volume.directory / "communication")
    communication.close()


async def test_a_place_that_a_version_before_left_without_a_word_is_given_up_by_a_repair(
    volume: Volume, places: tuple[Path, Path], autojump_clock: MockClock
) -> None:
    opened(volume, places[0]).close()
    leave_place(places[0])
    with pytest.raises(RefusedForSafety, match="fsck --repair"):
        opened(volume, None)
    assert not check_staged(volume.directory, repair=True, report=print)
    identity = Identity.load(volume.directory)
    assert identity.communication_directory == ""
