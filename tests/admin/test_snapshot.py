"""The status of a mount: the fields that scripts rely on, with their types, on both hosts."""

import json
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.identifiers import ROOT_INODE
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.operations import Create, Write
from tests.admin.conftest import Pair
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork

PATIENCE_S = 60
MIB = 1 << 20
TEXT, NUMBER, COUNT, YES_OR_NO = (str,), (int, float), (int,), (bool,)
MAYBE_TEXT, MAYBE_NUMBER = (str, type(None)), (int, float, type(None))
MODES = dict.fromkeys(("access", "acknowledge", "communication", "fence"), TEXT)
PATH = dict.fromkeys(("sent_bytes", "received_bytes", "sent_data_bytes"), COUNT)

FIELDS: dict[str, Any] = {
    "name": TEXT,
    "host": TEXT,
    "role": TEXT,
    "mirror_state": TEXT,
    "reason": MAYBE_TEXT,
    "peer": {
        "address": TEXT,
        "connected": YES_OR_NO,
        "since": MAYBE_NUMBER,
        "round_trip_seconds": MAYBE_NUMBER,
        "encrypted": YES_OR_NO,
    },
    "settings": MODES,
    "effective": MODES,
    "generation": MAYBE_TEXT,
    "reservations": (list,),
    "background": (list,),
    "conflicts": (dict, type(None)),
    "exclusive": dict.fromkeys(("held", "standing_by", "stood_by_total", "given_up_total"), COUNT),
    "change": COUNT,
    "peer_change": COUNT,
    "communication": {
        "pending_requests": COUNT,
        "pending_bytes": COUNT,
        "oldest_seconds": NUMBER,
        "capacity_bytes": COUNT,
    },
    "out_of_sync": {"images": COUNT, "bytes": COUNT},
    "resync": (dict, type(None)),
    "paths": {"mirror": PATH, "forward": PATH},
    "disk": {"full": YES_OR_NO, "failure": MAYBE_TEXT},
    "nameless": {"inodes": COUNT, "bytes": COUNT},
    "reads": {"local": COUNT, "routed": COUNT},
    "mountpoint": TEXT,
    "volume": TEXT,
    "pid": COUNT,
    "version": TEXT,
}
"""Of `fusemirror status --json`: fields may be added, never changed (conventions.md)."""

RESYNC = {"done_bytes": COUNT, "total_bytes": COUNT, "bytes_per_second": NUMBER, "seconds_left": MAYBE_NUMBER}


def check_fields(value: dict[str, Any], fields: dict[str, Any], where: str = "status") -> None:
    assert set(fields) <= set(value), where
    for name, expected in fields.items():
        if isinstance(expected, dict):
            check_fields(value[name], expected, f"{where}.{name}")
        else:
            assert type(value[name]) in expected, f"{where}.{name}: {value[name]!r}"


@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_every_field_is_there_with_its_type_and_as_json(pair: Pair, role: str) -> None:
    status = pair.status(getattr(pair, role))
    check_fields(status, FIELDS)
    assert json.loads(json.dumps(status)) == status


async def test_a_normal_pair_tells_the_same_story_from_both_sides(pair: Pair) -> None:
    ours, theirs = pair.status(pair.primary), pair.status(pair.backup)
    assert (ours["role"], theirs["role"]) == ("primary", "backup")
    assert (ours["host"], theirs["host"]) == ("alpha", "beta")
    assert (ours["peer"]["address"], theirs["peer"]["address"]) == ("beta:7000", "alpha:7000")
    for status in (ours, theirs):
        assert (status["mirror_state"], status["reason"], status["resync"]) == ("normal", None, None)
        assert status["peer"]["connected"] is True
        assert status["out_of_sync"] == {"images": 0, "bytes": 0}
        assert status["settings"] == status["effective"]
        assert (status["name"], status["mountpoint"], status["pid"]) == ("data", "/mnt/data", 4711)
    assert ours["generation"] == theirs["generation"] is not None
    assert ours["change"] == theirs["change"]
    for path in ("mirror", "forward"):
        assert ours["paths"][path]["sent_bytes"] >= theirs["paths"][path]["received_bytes"] > 0


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are checkpoints all the time, from the start."""
    monkeypatch.setattr("fusemirror.mirror.durability.CHECKPOINT_INTERVAL_S", 0.05)


async def test_each_path_tells_the_addresses_that_it_may_go_by(pair: Pair) -> None:
    for host, peer, dialed in ((pair.primary, "beta", "mirror"), (pair.backup, "alpha", "forward")):
        for path, told in pair.status(host)["paths"].items():
            (address,) = told["addresses"]
            assert (address["in_use"], address["up"], address["reason"]) == (True, True, None)
            assert address["remote"].startswith(peer)
            assert (address["remote"] == f"{peer}:7000") == (path == dialed)


async def test_each_host_tells_which_change_the_other_has_durably(often: None, pair: Pair) -> None:
    for host, name in ((pair.primary, b"here"), (pair.backup, b"there")):
        await host.unit.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    for host, other in ((pair.primary, pair.backup), (pair.backup, pair.primary)):
        with trio.fail_after(PATIENCE_S):
            while pair.status(host)["peer_change"] < other.unit.volume.number:
                assert pair.status(host)["peer_change"] <= other.unit.volume.journal.durable_number
                await trio.sleep(0.01)  # nobody tells


async def test_the_backup_counts_what_may_be_old(pair: Pair, network: MemoryNetwork) -> None:
    file = await pair.primary.unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert file is not None
    network.cut("alpha", "beta")
    for at in range(4):  # alone
        await pair.primary.unit.perform(Write(file.number, at * MIB), b"x" * MIB)
    await pair.primary.unit.change_pace(paused=True)
    network.heal("alpha", "beta")
    await until(lambda: pair.status(pair.backup)["out_of_sync"] == {"images": 1, "bytes": 4 * MIB})
    assert pair.status(pair.backup)["mirror_state"] == "resyncing"
    await pair.primary.unit.change_pace(paused=False)
    await pair.backup.unit.wait_normal()
    assert pair.status(pair.backup)["out_of_sync"] == {"images": 0, "bytes": 0}


async def test_a_write_at_the_backup_crosses_the_network_once(pair: Pair) -> None:
    file = await pair.backup.unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert file is not None
    before = pair.status(pair.backup)["paths"]
    await pair.backup.unit.perform(Write(file.number, 0), bytes(10_000))
    after = pair.status(pair.backup)["paths"]
    assert after["forward"]["sent_data_bytes"] - before["forward"]["sent_data_bytes"] == 10_000
    assert after["mirror"]["received_bytes"] - before["mirror"]["received_bytes"] < 10_000
    assert await pair.primary.roles.read(file.number, 0, 20_000) == bytes(10_000)
    assert pair.status(pair.primary)["change"] == pair.status(pair.backup)["change"]


async def test_reads_are_counted_where_they_were_served(pair: Pair) -> None:
    file = await pair.primary.unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert file is not None
    before = pair.status(pair.backup)["reads"]
    await pair.backup.roles.read(file.number, 0, 10)
    after = pair.status(pair.backup)["reads"]
    assert (after["local"], after["routed"]) == (before["local"] + 1, before["routed"])


async def test_a_lost_peer_has_a_reason_on_both_sides(pair: Pair, network: MemoryNetwork) -> None:
    network.cut("alpha", "beta")
    for host in (pair.primary, pair.backup):
        await host.unit.host.links.ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    for host in (pair.primary, pair.backup):
        status = pair.status(host)
        check_fields(status, FIELDS)
        assert status["mirror_state"] == "degraded"
        assert status["reason"]
        assert status["peer"]["connected"] is False
        assert status["peer"]["since"] is status["peer"]["round_trip_seconds"] is None
        assert status["paths"]["mirror"]["sent_bytes"] > 0, "what was counted stays"


async def test_a_copy_under_way_tells_how_far_it_is() -> None:
    progress = CopyProgress()
    progress.begin(1000)
    check_fields(progress.as_status(Pace()), RESYNC, "resync")
