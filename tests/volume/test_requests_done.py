"""Which of the peer's requests took effect, kept beside a journal that was repaired."""

import errno
from pathlib import Path

import msgspec
import pytest

from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import INODE_NUMBER_MAX, REQUESTS_DONE_BYTES_MAX, REQUESTS_DONE_MAX
from fusemirror.volume import requests_done
from fusemirror.volume.requests_done import Done, RequestsDone, load_requests, store_requests
from fusemirror.volume.volume import Volume
from tests.volume.conftest import counting_seams

DONE = RequestsDone(
    {
        RequestId(b"first"): Done(ChangeNumber(3), InodeNumber(7)),
        RequestId(b"second"): Done(ChangeNumber(5), InodeNumber(0), errno.ENOSPC),
    }
)


def test_what_is_stored_is_loaded_in_its_order(tmp_path: Path) -> None:
    assert load_requests(tmp_path) == {}
    store_requests(tmp_path, DONE)
    assert list((load_requests(tmp_path) or {}).items()) == list(DONE.items())
    store_requests(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    store_requests(tmp_path, {})


def test_what_an_earlier_version_stored_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "requests-done").write_bytes(msgspec.msgpack.encode([(b"first", 3, 7)]))
    assert load_requests(tmp_path) == {b"first": Done(ChangeNumber(3), InodeNumber(7))}


@pytest.mark.expects_warnings
@pytest.mark.parametrize("content", [b"", b"\x00", b"\x91\x01"])
def test_of_a_file_that_cannot_be_read_nobody_knows(directory: Path, content: bytes) -> None:
    (directory / "requests-done").write_bytes(content)
    assert load_requests(directory) is None
    volume = Volume.open(directory, counting_seams())
    assert volume.identity.only_peer.forgot_requests
    volume.close()


@pytest.mark.expects_warnings
def test_a_file_that_is_too_long_to_be_read_keeps_no_volume_closed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version wrote them."""
    store_requests(directory, DONE)
    monkeypatch.setattr(requests_done, "REQUESTS_DONE_BYTES_MAX", 9)
    assert load_requests(directory) is None
    volume = Volume.open(directory, counting_seams())
    assert volume.identity.only_peer.forgot_requests
    volume.close()
    with pytest.raises(OSError, match="longer"):
        store_requests(directory, DONE)


def test_as_many_as_are_remembered_are_read_again() -> None:
    longest = Done(ChangeNumber(2**63), InodeNumber(INODE_NUMBER_MAX), 2**16)
    row = msgspec.msgpack.encode((bytes(16), *longest))
    assert len(row) * REQUESTS_DONE_MAX < REQUESTS_DONE_BYTES_MAX


def test_what_is_forgotten_is_kept_no_longer_than_the_mount(directory: Path) -> None:
    store_requests(directory, DONE)
    (first, second) = DONE
    for forgotten, left in ((first, [second]), (second, [])):
        volume = Volume.open(directory, counting_seams())
        volume.journal.restart(ChangeNumber(9))  # no record tells of them
        volume.requests_done.forget(forgotten)
        volume.close()
        assert list(load_requests(directory) or {}) == left


def test_a_refusal_without_a_record_outlasts_the_mount(directory: Path) -> None:
    volume = Volume.open(directory, counting_seams())
    volume.requests_done.refuse(RequestId(b"first"), errno.ENOSPC, volume.number)
    volume.close()
    again = Volume.open(directory, counting_seams())
    assert again.requests_done[RequestId(b"first")].errno == errno.ENOSPC
    again.close()


def test_what_earlier_versions_know_is_stored_as_they_wrote_it(tmp_path: Path) -> None:
    done = {RequestId(b"first"): Done(ChangeNumber(3), InodeNumber(7))}
    store_requests(tmp_path, done)
    assert msgspec.msgpack.decode((tmp_path / "requests-done").read_bytes()) == [[b"first", 3, 7]]
