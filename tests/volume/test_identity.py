import errno
import json
import os
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import VolumeDamaged, VolumeError, VolumeFormat, VolumeInUse, VolumeMissing
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.identity import FORMAT_VERSION, Identity, KnownPeer, Shutdown, VolumeLock, boot_id
from tests.hosts import run
from tests.release_before import release_before
from tests.volume.conftest import BETA, GAMMA, IDENTITY

OF_A_PAIR = """\
{
  "format": 1,
  "filesystem": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "name": "shared",
  "host": "01",
  "host_name": "alpha",
  "peer": "02",
  "peer_name": "bêta",
  "role": "backup",
  "complete": false,
  "compare_all": true,
  "consistent": false,
  "resync_paused": true,
  "term": 7,
  "handed_over": true,
  "keep": "02",
  "keep_at": "0b0b0b0b0b0b0b0b",
  "held_below": 4711,
  "lock_epoch": "0c0c0c0c0c0c0c0c",
  "peer_file_bytes_max": 17592186040320,
  "pairing": 3,
  "witness": "cluster",
  "forgot_requests": true,
  "communication_directory": "/mnt/fast/shared",
  "replaced": true
}
"""
"""As it was written when an identity could name one peer only."""
OF_THREE = """\
{
  "format": 2,
  "filesystem": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "name": "shared",
  "host": "01",
  "host_name": "alpha",
  "peers": [{"peer": "02", "peer_name": "beta"}, {"peer": "03", "peer_name": "gamma", "held_below": 9}],
  "role": "primary",
  "complete": true,
  "compare_all": false
}
"""
PEERS = st.lists(st.from_type(KnownPeer), min_size=1, max_size=3, unique_by=lambda peer: peer.host)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For any number of identities, one after the other."""
    return tmp_path_factory.mktemp("identity")


def test_an_identity_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    IDENTITY.store(tmp_path)
    assert Identity.load(tmp_path) == IDENTITY
    assert os.listdir(tmp_path) == ["identity.json"]


@given(identity=st.builds(Identity, peers=PEERS.map(tuple)))
def test_any_identity_comes_back_with_all_its_peers(place: Path, identity: Identity) -> None:
    identity.store(place)
    assert Identity.load(place) == identity
    assert json.loads((place / "identity.json").read_bytes())["format"] == min(len(identity.peers), 2)


def test_with_one_peer_it_is_as_every_version_writes_it(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(OF_A_PAIR)
    identity = Identity.load(tmp_path)
    assert (identity.term, identity.pairing, identity.communication_directory) == (7, 3, "/mnt/fast/shared")
    more = {"forgot_requests": True, "has_replaced_us": True}
    held_below, epoch, size = InodeNumber(4711), "0c" * 8, 2**44 - 4096
    assert identity.only_peer == KnownPeer("02", "bêta", held_below, epoch, size, **more)
    identity.store(tmp_path)
    assert (tmp_path / "identity.json").read_text() == OF_A_PAIR


def test_with_two_each_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(OF_THREE)
    gamma = msgspec.structs.replace(GAMMA, held_below=InodeNumber(9))
    assert Identity.load(tmp_path) == msgspec.structs.replace(IDENTITY, peers=(BETA, gamma))


def test_the_release_before_reads_what_has_one_peer_and_refuses_more(tmp_path: Path) -> None:
    before = release_before(tmp_path / "before")
    load = "import pathlib, sys; from fusemirror.volume import identity"
    load += "; print(identity.Identity.load(pathlib.Path(sys.argv[1])).peer_name)"
    for peers, expected in ((BETA,), "beta\n"), ((BETA, GAMMA), "format 2, and this program knows format 1"):
        msgspec.structs.replace(IDENTITY, peers=peers).store(tmp_path)
        told = run(sys.executable, "-P", "-c", load, tmp_path, expect=None, env={"PYTHONPATH": str(before)})
        assert expected in told.stdout + told.stderr


@pytest.mark.parametrize(
    "peers",
    ["[]", "{}", "[1]", '[{"peer": "2"}]', '[{"peer": "", "peer_name": ""}, {"peer": "", "peer_name": "b"}]'],
)
def test_peers_that_cannot_be_are_damage(tmp_path: Path, peers: str) -> None:
    first, last = OF_THREE.index('[{"peer"'), OF_THREE.index(',\n  "role"')
    (tmp_path / "identity.json").write_text(OF_THREE[:first] + peers + OF_THREE[last:])
    with pytest.raises(VolumeDamaged, match="peers"):
        Identity.load(tmp_path)


def test_a_directory_without_an_identity_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing, match=r"identity\.json"):
        Identity.load(tmp_path)


def test_a_later_format_is_refused_even_with_fields_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps({"format": FORMAT_VERSION + 1, "other": []}))
    with pytest.raises(VolumeFormat, match=str(FORMAT_VERSION + 1)):
        Identity.load(tmp_path)


@given(
    content=st.binary()
    | st.text().map(str.encode)
    | st.sampled_from([b"{}", b"[1]", b'{"format": 1}', b'{"format": 2}'])
)
def test_what_is_no_identity_is_damage(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("identity")
    (directory / "identity.json").write_bytes(content)
    with pytest.raises(VolumeError):
        Identity.load(directory)


def test_an_unknown_role_is_damage(tmp_path: Path) -> None:
    IDENTITY.store(tmp_path)
    path = tmp_path / "identity.json"
    path.write_text(path.read_text().replace("primary", "both"))
    with pytest.raises(VolumeDamaged, match="role"):
        Identity.load(tmp_path)


def test_a_state_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    state = Shutdown(clean=True, boot_id=boot_id())
    state.store(tmp_path)
    assert Shutdown.load(tmp_path) == state


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b'{"clean": 1}'])
def test_a_state_that_cannot_be_read_counts_as_a_power_cut(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    state = Shutdown.load(tmp_path)
    assert not state.clean
    assert state.boot_id != boot_id()


def test_a_second_lock_names_the_process_that_holds_the_first(tmp_path: Path) -> None:
    lock = VolumeLock(tmp_path)
    with pytest.raises(VolumeInUse, match=str(os.getpid())):
        VolumeLock(tmp_path)
    lock.release()
    VolumeLock(tmp_path).release()


def test_a_lock_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(VolumeMissing):
        VolumeLock(tmp_path / "none")


@pytest.mark.parametrize("clean", [True, False])
def test_on_a_disk_without_an_inode_left_the_state_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    Shutdown(clean=not clean, boot_id=boot_id()).store(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fusemirror.volume.identity.replace_file", full)
    Shutdown(clean=clean, boot_id=boot_id()).store(tmp_path)
    assert Shutdown.load(tmp_path) == Shutdown(clean=clean, boot_id=boot_id())
