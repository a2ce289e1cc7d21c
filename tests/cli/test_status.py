"""`fusemirror status`: JSON as it came, and a table for people."""

import copy
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fusemirror.cli.main import program
from fusemirror.cli.status import describe, faults_of
from tests.admin.answering import answering, result
from tests.cli.conftest import Run

STATUS: dict[str, Any] = {
    "name": "data",
    "host": "alpha",
    "role": "primary",
    "mirror_state": "normal",
    "reason": None,
    "peer": {
        "address": "beta:7000",
        "connected": True,
        "since": 1.0,
        "round_trip_seconds": 0.00042,
        "encrypted": True,
    },
    "settings": {"access": "routed", "acknowledge": "sync", "communication": "lmdb", "fence": "never"},
    "effective": {"access": "routed", "acknowledge": "sync", "communication": "lmdb", "fence": "never"},
    "generation": "ab" * 8,
    "change": 12,
    "peer_change": 11,
    "communication": {
        "pending_requests": 0,
        "pending_bytes": 0,
        "oldest_seconds": None,
        "capacity_bytes": 1 << 30,
    },
    "out_of_sync": {"images": 0, "bytes": 0},
    "resync": None,
    "paths": {
        "mirror": {"sent_bytes": 2048, "received_bytes": 10, "sent_data_bytes": 1024},
        "forward": {"sent_bytes": 0, "received_bytes": 0, "sent_data_bytes": 0},
    },
    "disk": {"full": False, "failure": None},
    "reads": {"local": 3, "routed": 0},
    "reservations": [],
    "mountpoint": "/mnt",
    "volume": "/srv/data",
    "pid": 77,
    "version": "0.1.0",
}


def text_of(**changes: Any) -> str:
    return click.unstyle(describe({**copy.deepcopy(STATUS), **changes}))


def test_a_background_task_that_fails_has_its_line() -> None:
    failing = [{"task": "purge", "error": "volume /v: the disk is full", "since": 1.0}]
    assert "failing       purge: volume /v: the disk is full\n" in text_of(background=failing)


def test_a_full_disk_of_the_communication_volume_has_its_line_and_is_not_normal() -> None:
    full = {**STATUS["communication"], "full": True, "directory": "/disk"}
    assert "staging       the disk of /disk is full" in text_of(communication=full)
    assert any("/disk is full" in fault for fault in faults_of({**STATUS, "communication": full}))
    failed = {**full, "full": False, "failure": "Input/output error"}
    assert "staging       /disk cannot be used: Input/output error" in text_of(communication=failed)
    assert "staging" not in text_of(communication={**full, "full": False, "failure": None})


def test_all_is_well() -> None:
    assert text_of() == (
        "data on alpha\n"
        "  role          primary\n"
        "  mirror state  normal\n"
        "  peer          beta:7000, connected, 0.42 ms away, encrypted\n"
        "  change        12, of which the peer has 11 safely on disk\n"
        "  pending       0 requests, 0 B\n"
        "  out of sync   nothing\n"
        "  mirror path   sent 2 KiB (1 KiB of data), received 10 B\n"
        "  forward path  sent 0 B (0 B of data), received 0 B\n"
        "  reads         3 here, 0 at the primary\n"
        "  modes         access routed, acknowledge sync, communication lmdb, fence never\n"
        "  mounted on    /mnt\n"
        "  volume        /srv/data\n"
        "  process       77, version 0.1.0"
    )


def test_a_reason_and_a_lost_peer_are_shown() -> None:
    text = text_of(
        mirror_state="degraded",
        reason="the peer is away",
        peer={"address": "beta:7000", "connected": False, "since": None, "round_trip_seconds": None},
        out_of_sync={"images": 2, "bytes": 3 << 20},
    )
    assert "degraded: the peer is away\n" in text
    assert "beta:7000, not connected\n" in text
    assert "out of sync   2 images, 3 MiB\n" in text


def test_the_progress_of_a_resync_is_shown() -> None:
    resync: dict[str, Any] = {
        "done_bytes": 1 << 20,
        "total_bytes": 4 << 20,
        "bytes_per_second": 1 << 19,
        "seconds_left": 6.0,
    }
    assert "resync        1 MiB of 4 MiB (25%), 512 KiB/s, 6 s left\n" in text_of(resync=resync)
    resync = {"done_bytes": 0, "total_bytes": 0, "bytes_per_second": 0, "seconds_left": None}
    assert "resync        0 B of 0 B (0%)\n" in text_of(resync=resync)


def test_the_oldest_request_and_a_mode_not_in_effect_are_shown() -> None:
    pending = {"pending_requests": 2, "pending_bytes": 4096, "oldest_seconds": 1.5, "capacity_bytes": 1 << 30}
    text = text_of(
        communication=pending, role="backup", effective={**STATUS["effective"], "access": "exclusive"}
    )
    assert "2 requests, 4 KiB of 1 GiB, the oldest 1.5 s\n" in text
    assert "access exclusive (set: routed), acknowledge sync" in text


def test_reservations_are_shown_with_their_holders() -> None:
    held = [
        {"inode": None, "path": None, "holder": "alpha", "since": 1_700_000_000.5},
        *({"inode": 7, "path": "a/b", "holder": "beta", "since": 1_700_000_000.5} for _ in range(11)),
    ]
    text = text_of(reservations=held)
    assert "  reserved      everything, by alpha since 20" in text
    assert "  reserved      a/b (inode 7), by beta since 20" in text
    assert "  reserved      and 2 more, see --json\n" in text


def test_deleted_files_that_are_kept_are_counted() -> None:
    assert "nameless" not in text_of(nameless={"inodes": 0, "bytes": 0})
    assert (
        "nameless      3 deleted files, 2 MiB, kept while open on either host, or possibly open\n"
        in text_of(nameless={"inodes": 3, "bytes": 2 << 20})
    )


def test_what_the_witness_says_is_shown() -> None:
    assert "witness" not in text_of()
    away = {"state": "unreachable", "reason": "http://a:2379: no route"}
    assert "witness       unreachable: http://a:2379: no route" in text_of(witness=away)


@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_a_terminal_has_colours_unless_no_color_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    with answering(tmp_path, "data", lambda _request: [result(STATUS)]):
        done = CliRunner().invoke(program, ["--runtime-dir", str(tmp_path), "status", "data"], color=True)
    assert ("\x1b[" in done.stdout) is coloured


def test_json_is_given_as_it_came(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _request: [result(STATUS)]):
        assert json.loads(run("status", "data", "--json").stdout) == STATUS
        assert json.loads(run("status", "--json").stdout) == [STATUS]
        assert run("status").stdout.startswith("data on alpha\n")


def test_without_a_mount_there_is_nothing_to_show(run: Run) -> None:
    assert run("status").stdout == "nothing is mounted\n"
    assert run("status", "--json").stdout == "[]\n"
    assert run("status", "data").exit_code == 3


def test_a_split_brain_has_its_counts() -> None:
    peer = {**STATUS["peer"], "name": "beta"}
    text = text_of(mirror_state="diverged", peer=peer, conflicts={"here": 3, "there": None})
    assert (
        "  split brain   names changed apart: 3 here, unknown at beta; see `fusemirror conflicts data`\n"
        in text
    )


def test_what_users_and_the_peer_chose_is_escaped() -> None:
    held = {"inode": 5, "path": "/\x1b[2J\n", "holder": "be\u202eta", "since": 1.0}
    text = text_of(reason="\x1b]0;x\a", reservations=[held], mountpoint="/mnt/\n", host="a\rb")
    assert all(line.isprintable() for line in text.splitlines())
    assert r"/\x1b[2J\n (inode 5), by be\u202eta" in text


AWAY = {**STATUS["peer"], "name": "beta", "connected": False, "last_contact_seconds": 75.2}


def test_a_peer_that_is_away_is_told_with_the_reasons() -> None:
    peer = {
        **AWAY,
        "error": "the peer at beta:7000 cannot be reached: No route to host",
        "refused": "no TLS 1.3",
    }
    text = text_of(peer=peer, mirror_state="degraded", reason="lost")
    assert (
        "  peer          beta:7000, not connected for 75 s; the peer at beta:7000 cannot be reached: "
        "No route to host; no TLS 1.3\n"
    ) in text
    assert "not connected for 2 min" in text_of(peer={**AWAY, "last_contact_seconds": 130.0})
    assert "not connected for 3 h" in text_of(peer={**AWAY, "last_contact_seconds": 10_000.0})
    assert "beta:7000, not connected\n" in text_of(peer={**AWAY, "last_contact_seconds": None})


def test_the_host_whose_disk_is_full_is_named() -> None:
    peer = {**STATUS["peer"], "name": "beta"}
    for own, theirs, hosts in ((True, False, "alpha"), (False, True, "beta"), (True, True, "alpha and beta")):
        disk = {"full": own, "failure": None, "peer_full": theirs}
        assert f"disk          full on {hosts}: only deleting" in text_of(disk=disk, peer=peer)
    assert "  disk " not in text_of(disk={"full": False, "failure": None, "peer_full": None})


def test_locks_are_told_and_whom_they_bind() -> None:
    none = {"held": 0, "waiting": 0, "lost": 0, "bind": "both hosts"}
    assert "locks" not in text_of(locks=none)
    assert "locks         0 held, 0 waited for; those given now bind this host\n" in text_of(
        locks={**none, "bind": "this host"}
    )
    assert "2 held, 1 waited for, lost by 1 open file\n" in text_of(
        locks={**none, "held": 2, "waiting": 1, "lost": 1}
    )


def test_clocks_that_are_apart_are_told() -> None:
    assert "clocks        that of beta was 3.2 s ahead of this host's" in text_of(
        peer={**STATUS["peer"], "name": "beta", "clock_ahead_seconds": 3.21}
    )
    assert "was 90.0 s behind" in text_of(peer={**STATUS["peer"], "clock_ahead_seconds": -90})
    assert "clocks" not in text_of(peer={**STATUS["peer"], "clock_ahead_seconds": 0.9})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mirror_state": "resyncing"}, "resyncing"),
        ({"mirror_state": "degraded", "reason": "gone"}, "degraded: gone"),
        ({"disk": {"full": False, "failure": None, "peer_full": True}}, "disk: full on the peer: only"),
        ({"disk": {"full": False, "failure": "I/O error"}}, "disk: failed: I/O error"),
        ({"peer": {**STATUS["peer"], "clock_ahead_seconds": 5}}, "clocks: that of the peer was 5.0 s ahead"),
        ({"background": [{"task": "purge", "error": "no", "since": 1.0}]}, "failing: purge: no"),
        ({"witness": {"state": "unreachable", "reason": "gone"}}, "witness unreachable: gone"),
    ],
)
def test_check_says_what_is_not_normal(run: Run, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with answering(tmp_path / "run", "data", lambda _: [result({**STATUS, **changes})]):
        done = run("status", "--check")
    assert done.exit_code == 12
    assert done.stdout.startswith(f"data: {line}")
    assert done.stderr.startswith("fusemirror: not normal: ")


def test_check_of_what_is_normal_says_nothing(run: Run, tmp_path: Path) -> None:
    normal = {**STATUS, "witness": {"state": "free", "reason": None}, "background": []}
    with answering(tmp_path / "run", "data", lambda _: [result(normal)]):
        for done in (run("status", "--check"), run("status", "data", "--check")):
            assert (done.exit_code, done.output) == (0, "")


def test_check_has_the_exit_status_of_a_split_brain_and_of_no_mount(run: Run, tmp_path: Path) -> None:
    assert run("status", "--check").exit_code == 3
    assert run("status", "data", "--check").exit_code == 3
    with answering(tmp_path / "run", "data", lambda _: [result({**STATUS, "mirror_state": "diverged"})]):
        assert run("status", "--check").exit_code == 7
    (tmp_path / "run" / "left.sock").touch()
    done = run("status", "--check")
    assert (done.exit_code, "left: not mounted" in done.stdout) == (12, True)


def test_addresses_are_shown_where_there_are_several_or_one_is_down() -> None:
    counts = {"sent_bytes": 1, "received_bytes": 2, "sent_data_bytes": 0, "received_data_bytes": 0}
    up = {"local": "10.0.0.1:40000", "remote": "10.0.0.2:7000", "in_use": True, "up": True, "since": 0.0}
    up |= {"round_trip_seconds": 0.0005, "reason": None}
    down = {**up, "local": None, "remote": "10.1.0.2:7000", "in_use": False, "up": False}
    down |= {"round_trip_seconds": None, "reason": "no answer for 1 s"}
    text = text_of(paths={"mirror": {**counts, "addresses": [up, down]}})
    assert "10.0.0.2:7000 from 10.0.0.1:40000, in use since " in text
    assert ", 0.5 ms away" in text
    assert "10.1.0.2:7000, down since " in text
    assert ": no answer for 1 s" in text
    assert "10.0.0.2" not in text_of(paths={"mirror": {**counts, "addresses": [up]}})
