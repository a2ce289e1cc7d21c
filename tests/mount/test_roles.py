"""Roles through two kernels: exchanged under load, taken over, and after a split brain."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.hosts import FILESYSTEM, Host, TwoHosts, snapshot, wait_until
from tests.mount.conftest import IO_TIMEOUT_S
from tests.mount.test_failures import Writer
from tests.mount.test_locks import hold

PATIENCE_S = 2 * IO_TIMEOUT_S


def role(host: Host) -> str:
    return str(host.status()["role"])


class NamedWriter(Writer):
    """A writer with a directory of its own, so that each host has one."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.directory = host.mountpoint / f"records-of-{host.name}"


@contextmanager
def open_file(host: Host, name: str) -> Iterator[int]:
    descriptor = os.open(host.mountpoint / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(descriptor: int) -> bool:
    """Whether another has the lock of a file; else it is this one's now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def test_a_switch_under_load_keeps_files_open_and_no_request_fails(hosts: TwoHosts) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(NamedWriter(host)) for host in hosts]
        opened = [stack.enter_context(open_file(host, f"open-{host.name}")) for host in hosts]
        for descriptor in opened:
            os.write(descriptor, b"before ")
        for asked in (hosts.primary, hosts.backup, hosts.primary):
            for writer in writers:
                writer.write_more(10)
            before = [role(host) for host in hosts]
            began = time.monotonic()  # noqa: TID251 - the clock of a test, not of the product
            asked.fusemirror("switch", FILESYSTEM)
            for writer in writers:
                writer.write_more(1)
            took = time.monotonic() - began  # noqa: TID251
            print(f"switch asked at {asked.name}: {took:.2f} s, command included, until both wrote again")
            wait_until(lambda b=before: [role(h) for h in hosts] == b[::-1], PATIENCE_S, "roles")  # type: ignore[misc]
            for host in hosts:
                host.wait_for("normal")
        for descriptor in opened:
            os.write(descriptor, b"after")
            os.fsync(descriptor)
    for writer in writers:
        assert writer.error == 0
        for host in hosts:
            writer.assert_kept(host)
    for host in hosts:
        for name in ("alpha", "beta"):
            assert (host.mountpoint / f"open-{name}").read_text() == "before after"


def test_a_switch_is_refused_while_the_backup_is_away(hosts: TwoHosts) -> None:
    hosts.backup.umount()
    refused = hosts.primary.fusemirror("switch", FILESYSTEM, expect=6)
    assert "not normal" in refused.stderr
    assert role(hosts.primary) == "primary"


def test_the_backup_takes_over_from_a_killed_primary_that_then_gives_way(hosts: TwoHosts) -> None:
    primary, backup = hosts
    with NamedWriter(backup) as writer, open_file(backup, "locked") as locked:
        writer.write_more()
        assert not is_locked(locked)
        (primary.mountpoint / "kept").write_bytes(b"k" * 100_000)
        refused = backup.fusemirror("takeover", FILESYSTEM, expect=6)
        assert "connected" in refused.stderr
        with hold(primary, primary.mountpoint / "kept", "flock") as holder:
            primary.kill()
            holder.kill()
        told = backup.fusemirror("takeover", FILESYSTEM, "--dry-run").stdout
        assert "pending request" in told
        assert role(backup) == "backup"
        backup.fusemirror("takeover", FILESYSTEM)
        writer.write_more()
        assert role(backup) == "primary"
        backup.fusemirror("takeover", FILESYSTEM)
        with open_file(backup, "kept") as kept:
            assert not is_locked(kept), "the locks of the lost host have ended"
        (backup.mountpoint / "kept").rename(backup.mountpoint / "renamed")
        primary.mount()
        primary.wait_for("normal")
        assert role(primary) == "backup"
        with open_file(primary, "locked") as wanted:
            assert is_locked(wanted)
            fcntl.flock(locked, fcntl.LOCK_UN)
            assert not is_locked(wanted)
        writer.write_more()
    assert writer.error == 0
    assert (primary.mountpoint / "renamed").read_bytes() == b"k" * 100_000
    (primary.mountpoint / "new").write_text("from the old primary")
    assert (backup.mountpoint / "new").read_text() == "from the old primary"
    writer.assert_kept(primary)


def split(hosts: TwoHosts) -> None:
    """Both hosts change one file and make one each, apart, and have met again."""
    for host in hosts:
        host.expect_warnings("split brain")
        host.expect_warnings("EIO: ")
    (hosts.primary.mountpoint / "both").write_text("common")
    hosts.cut()
    wait_until(lambda: not hosts.backup.status()["peer"]["connected"], PATIENCE_S, "the cut is noticed")
    hosts.backup.fusemirror("takeover", FILESYSTEM)
    for host in hosts:
        (host.mountpoint / "both").write_text(f"of {host.name}")
        (host.mountpoint / f"only-{host.name}").write_text(host.name)
    hosts.heal()
    for host in hosts:
        wait_until(lambda h=host: h.status()["mirror_state"] == "diverged", PATIENCE_S, "split brain")  # type: ignore[misc]


def conflicts(host: Host) -> str:
    """What `fusemirror conflicts` says of both hosts in a split brain, once they have met to talk."""
    wait_until(lambda: host.status()["peer"]["connected"], PATIENCE_S, "the two talk")
    return host.fusemirror("conflicts", FILESYSTEM, expect=7).stdout


def counts(host: Host) -> tuple[int | None, int | None]:
    found = host.status()["conflicts"]
    return (None, None) if found is None else (found["here"], found["there"])


@pytest.mark.parametrize(("told", "keep"), [("primary", "alpha"), ("primary", "beta"), ("backup", "alpha")])
def test_a_split_brain_is_shown_and_ended_by_one_command(hosts: TwoHosts, told: str, keep: str) -> None:
    split(hosts)
    for host in hosts:
        assert "split brain" in host.status()["reason"]
        lines = conflicts(host).splitlines()
        assert any(line.startswith("/both: ") and "alpha: content" in line for line in lines)
        assert any(line.startswith("/both: ") and "beta: content" in line for line in lines)
        assert "/only-alpha: alpha: created, 5 B" in lines
        assert "/only-beta: beta: created, 4 B" in lines
        wait_until(lambda h=host: counts(h) == (2, 2), PATIENCE_S, "counts")  # type: ignore[misc]
        host.fusemirror("switch", FILESYSTEM, expect=7)
    teller: Host = getattr(hosts, told)
    lost = {"alpha": "beta", "beta": "alpha"}[keep]
    loser, keeper = sorted(hosts, key=lambda host: host.name == keep)
    with ExitStack() as stack:
        kept, given_up, wanted = (
            stack.enter_context(open_file(host, "both")) for host in (keeper, loser, loser)
        )
        for host, descriptor in ((keeper, kept), (loser, given_up)):
            assert not is_locked(descriptor), "each lock binds its own host"
            assert host.status()["locks"]["bind"] == "this host"
        loser.expect_warnings("locks on 1 file are lost")
        for _ in range(2):
            teller.fusemirror("resolve", FILESYSTEM, "--keep", keep)
        for host in hosts:
            host.wait_for("normal", timeout_s=PATIENCE_S)
        assert is_locked(wanted)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.write(given_up, b"under a lock that is lost")
    aside = Path(".fusemirror-conflicts") / lost
    wait_until(lambda: not any((loser.volume / "aside").iterdir()), PATIENCE_S, "files set aside")
    for host in hosts:
        assert (host.mountpoint / "both").read_text() == f"of {keep}"
        assert not (host.mountpoint / f"only-{lost}").exists()
        assert (host.mountpoint / aside / "both").read_text() == f"of {lost}"
        assert (host.mountpoint / aside / f"only-{lost}").read_text() == lost
        assert f"/{aside}/both" in host.fusemirror("conflicts", FILESYSTEM).stdout
    (hosts.backup.mountpoint / aside / "both").unlink()
    assert not (hosts.primary.mountpoint / aside / "both").exists()


def test_resolve_waits_for_a_host_that_is_away(hosts: TwoHosts) -> None:
    split(hosts)
    hosts.primary.umount()
    hosts.backup.fusemirror("resolve", FILESYSTEM, "--keep", "beta")
    hosts.backup.umount()
    hosts.backup.mount()
    hosts.primary.mount()
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    assert role(hosts.primary) == "backup"
    assert (hosts.primary.mountpoint / "both").read_text() == "of beta"
    wait_until(lambda: not any((hosts.primary.volume / "aside").iterdir()), PATIENCE_S, "files set aside")
    kept = hosts.backup.mountpoint / ".fusemirror-conflicts" / "alpha" / "both"
    assert kept.read_text() == "of alpha"


def test_what_both_changed_is_listed_and_what_gives_way_is_kept_with_all_that_it_has(hosts: TwoHosts) -> None:
    primary, backup = hosts
    for name in ("gone", "old name", "linked"):
        (primary.mountpoint / name).write_text("common")
    split(hosts)
    at = backup.mountpoint
    (at / "gone").unlink()
    (at / "old name").rename(at / "new name")
    os.chmod(at / "linked", 0o640)
    os.chown(at / "linked", 1234, 2345)
    os.link(at / "linked", at / "second name")
    os.setxattr(at / "linked", "user.label", b"value")
    backup.run("setfacl", "-m", "u:1000:rw", at / "linked")
    (at / "tree").mkdir(mode=0o750)
    (at / "tree" / "symlink").symlink_to("../both")
    large = b"0123456789abcdef" * 65536
    with (at / "tree" / "large").open("wb") as file:
        for _ in range(64):
            file.write(large)
    os.utime(at / "linked", ns=(10**18, 10**18 + 7))
    os.utime(at / "tree", ns=(10**18, 10**18 + 9))
    kept = snapshot(at / "tree")
    linked = snapshot_of(at / "linked")
    expected = {
        "/gone": {"beta": ["deleted"]},
        "/new name": {"beta": ["renamed"]},
        "/tree": {"beta": ["created"]},
        "/only-alpha": {"alpha": ["created"]},
    }
    for host in hosts:
        conflicts(host)
        said = json.loads(host.fusemirror("conflicts", FILESYSTEM, "--json", expect=7).stdout)
        listed = {
            entry["path"]: {name: sorted(change["kinds"]) for name, change in entry["changed_by"].items()}
            for entry in said["changed"]
        }
        assert {path: listed.get(path) for path in expected} == expected
        assert set(listed["/both"]) == {"alpha", "beta"}
        assert "attributes" in listed["/linked"]["beta"]
        assert "created" in listed["/second name"]["beta"]
        assert "what beta deleted comes back" in conflicts(host)
    primary.fusemirror("resolve", FILESYSTEM, "--keep", "alpha")
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
    wait_until(lambda: not any((backup.volume / "aside").iterdir()), PATIENCE_S, "files set aside")
    for host in hosts:
        aside = host.mountpoint / ".fusemirror-conflicts" / "beta"
        assert (host.mountpoint / "gone").read_text() == "common"
        assert (host.mountpoint / "old name").read_text() == "common"
        assert (aside / "new name").read_text() == "common"
        assert snapshot(aside / "tree") == kept
        assert snapshot_of(aside / "linked") == linked
        assert (aside / "linked").samefile(aside / "second name")
        assert counts(host) == (None, None)


def snapshot_of(path: Path) -> object:
    """Everything about one file but its number."""
    found = path.lstat()
    xattrs = {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}
    return (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        found.st_mtime_ns,
        path.read_bytes(),
        xattrs,
    )


def test_conflicts_says_that_the_other_host_is_away(hosts: TwoHosts) -> None:
    split(hosts)
    conflicts(hosts.primary)
    hosts.backup.umount()
    wait_until(lambda: not hosts.primary.status()["peer"]["connected"], PATIENCE_S, "the other is away")
    listed = hosts.primary.fusemirror("conflicts", FILESYSTEM, expect=7).stdout
    assert "what beta changed is not known: it is not connected" in listed
    assert "/only-alpha: alpha: created, 5 B" in listed
    hosts.backup.mount()
    assert "/only-beta: beta: created" in conflicts(hosts.primary)
    hosts.primary.fusemirror("resolve", FILESYSTEM, "--keep", "alpha")
    for host in hosts:
        host.wait_for("normal", timeout_s=PATIENCE_S)
