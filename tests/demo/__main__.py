"""bin/demo: the main job for real, in a screenful.

Two hosts in network namespaces mount one filesystem. Each step uses it as people do, on both hosts,
and checks on one what was done on the other; the demo ends well only if every step held.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.hosts import FILESYSTEM, Host, TwoHosts, digest, run, what_is_missing

NOT_ROOT = 4
WIDTH = 98
LEFT_OUT = ("site-packages", "__pycache__", "config-*", "*.so", "*.a")
IMAGE_BYTES = 16 << 20
WRITES = 16
WRITE_BYTES = 64 << 10


class Demo:
    """The steps, in order. Each returns what it did, in a sentence, or raises `AssertionError`."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.hosts = hosts
        self.primary, self.backup = hosts.hosts

    def mounts(self) -> str:
        self.hosts.create_and_join()
        self.hosts.mount()
        return "both hosts mounted; mirror state normal"

    def copies_a_tree(self) -> str:
        library = Path(sysconfig.get_path("stdlib"))
        copy = self.primary.mountpoint / "python"
        left_out = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(library, copy, ignore=left_out, symlinks=True, copy_function=shutil.copyfile)
        files = [path for path in copy.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        return f"alpha: copied Python's library in, {len(files):,} files, {size / (1 << 20):.0f} MiB"

    def changes_it_from_the_other_side(self) -> str:
        tree = self.backup.mountpoint / "python"
        edited = sorted(tree.glob("*.py"))[:50]
        for path in edited:
            with path.open("a") as file:
                file.write("# edited on beta\n")
        renamed = sorted(tree.glob("json/*"))
        (tree / "json").rename(tree / "jason")
        deleted = sorted((tree / "asyncio").rglob("*"))
        shutil.rmtree(tree / "asyncio")
        seen = self.primary.mountpoint / "python"
        assert all(path.read_text().endswith("beta\n") for path in map(seen.joinpath, names(edited, tree)))
        assert sorted(path.name for path in (seen / "jason").iterdir()) == [path.name for path in renamed]
        assert not (seen / "asyncio").exists()
        done = f"edited {len(edited)}, moved {len(renamed)}, deleted {len(deleted)}"
        return f"beta: {done}; alpha sees the same"

    def commits_to_git_in_turn(self) -> str:
        commits = 6
        self._git(self.primary, "init", "--quiet", "--initial-branch=main", ".")
        for number in range(commits):
            host = self.hosts.hosts[number % 2]
            (host.mountpoint / "project" / f"{number}.txt").write_text(f"{host.name}\n" * 1000)
            self._git(host, "add", ".")
            self._git(host, "commit", "--quiet", "--message", f"{number} from {host.name}")
        for host in self.hosts:
            self._git(host, "fsck", "--strict")
            assert not self._git(host, "status", "--porcelain")
        heads = {self._git(host, "rev-parse", "HEAD") for host in self.hosts}
        assert len(heads) == 1, f"the hosts see different commits: {heads}"
        return f"git: {commits} commits from both hosts in turn; `git fsck` clean on both"

    def _git(self, host: Host, *arguments: str) -> str:
        project = host.mountpoint / "project"
        project.mkdir(exist_ok=True)
        identity = ("-c", f"user.name={host.name}", "-c", f"user.email={host.name}@example.org")
        return host.run("git", "-C", project, *identity, *arguments).stdout

    def keeps_a_disk_image(self) -> str:
        image = self.primary.mountpoint / "disk.ext4"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        run("mkfs.ext4", "-q", image)
        inside = self.hosts.directory / "inside"
        inside.mkdir()
        with loop_mounted(image, inside):
            for number in range(100):
                (inside / f"{number}").write_bytes(os.urandom(20_000))
            written = {path.name: digest(path) for path in inside.iterdir() if path.is_file()}
        seen = self.backup.mountpoint / "disk.ext4"
        assert digest(image) == digest(seen), "the image differs between the hosts"
        run("e2fsck", "-fn", seen)
        with loop_mounted(seen, inside, "ro"):
            read = {path.name: digest(path) for path in inside.iterdir() if path.is_file()}
        assert read == written, "files inside the image differ"
        return f"ext4 in a file: made and filled on alpha, {len(read)} files read on beta, all the same"

    def follows_a_write(self) -> str:
        """Prints its own lines: where each request and each byte went."""
        with (self.backup.mountpoint / "followed").open("wb", buffering=0) as file:
            before = [settled(host) for host in self.hosts]
            for _ in range(WRITES):
                file.write(os.urandom(WRITE_BYTES))
            after = [host.status() for host in self.hosts]
        primary, backup = (Difference(old, new) for old, new in zip(before, after, strict=True))
        staged, forwarded = (
            backup["communication", "staged_total"],
            backup["communication", "forwarded_total"],
        )
        answered = backup["communication", "answered_total"]
        places = " to ".join(f"{number:,}" for number in (before[0]["change"] + 1, after[0]["change"]))
        there = backup["paths", "forward", "sent_data_bytes"]
        back = primary["paths", "mirror", "sent_data_bytes"]
        pending = after[1]["communication"]["pending_requests"]
        lines = (
            ("staged in beta's communication volume", f"{staged} requests"),
            ("sent to alpha over the forward path", f"{forwarded} requests, {there:,} bytes of data"),
            ("applied to the main volume", f"{primary['change']} changes, {places}"),
            ("sent back over the mirror path", f"{back:,} bytes of data: beta has it already"),
            ("applied to the subvolume", f"{backup['change']} changes"),
            ("acknowledged to the program", f"{answered} requests, {pending} pending"),
        )
        print(f"\n  {WRITES} writes of {WRITE_BYTES >> 10} KiB at the backup, step by step:")
        for what, numbers in lines:
            print(f"    {what:<46}{numbers}")
        print()
        assert staged == forwarded == answered == WRITES, "the counts differ"
        assert primary["change"] == backup["change"] == WRITES, "the changes differ"
        assert there == WRITES * WRITE_BYTES, "the data did not take the forward path once"
        assert back == pending == 0, "data came back, or requests are pending"
        return "each write went the whole way once, and its data crossed the network once"

    def verifies(self) -> str:
        said = self.backup.fusemirror("verify", FILESYSTEM).stdout.strip().removeprefix(f"{FILESYSTEM}: ")
        return f"verify: {said}"

    def holds_the_same(self) -> str:
        self.hosts.check()
        warnings = self.hosts.unexpected_warnings()
        assert not warnings, "\n".join(warnings)
        return "unmounted; fsck clean on both; both volumes exported: identical"

    @property
    def steps(self) -> tuple[Callable[[], str], ...]:
        return (
            self.mounts,
            self.copies_a_tree,
            self.follows_a_write,  # before anything is unlinked, for purging it takes changes too
            self.changes_it_from_the_other_side,
            self.commits_to_git_in_turn,
            self.keeps_a_disk_image,
            self.verifies,
            self.holds_the_same,
        )


class Difference:
    """What grew between two statuses, by its path of keys."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self._before, self._after = before, after

    def __getitem__(self, keys: str | tuple[str, ...]) -> int:
        old: Any = self._before
        new: Any = self._after
        for key in (keys,) if isinstance(keys, str) else keys:
            old, new = old[key], new[key]
        return int(new) - int(old)


def settled(host: Host) -> dict[str, Any]:
    """The status once nothing is under way, so that differences are of one's own making."""
    host.wait_for("drained")
    return host.status()


def names(paths: list[Path], root: Path) -> list[Path]:
    return [path.relative_to(root) for path in paths]


@contextmanager
def loop_mounted(image: Path, directory: Path, *options: str) -> Iterator[None]:
    """Mount an image through a loop device; the device is gone on return."""
    run("mount", "--options", ",".join(("loop", *options)), image, directory)
    try:
        yield
    finally:
        run("umount", "--detach-loop", directory)


def main() -> int:
    """Run every step; the exit status."""
    if missing := what_is_missing():
        print(f"fusemirror: {missing}", file=sys.stderr)
        return NOT_ROOT
    started = perf_counter()
    print("fusemirror: two hosts, alpha (primary) and beta (backup), each with a copy on its own disk")
    try:
        with TwoHosts() as hosts:
            for step in Demo(hosts).steps:
                show(step)
    except KeyboardInterrupt:
        return 130
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        print(f"  FAILED        {error}")
        return 1
    print(f"All held, in {perf_counter() - started:.0f} s; nothing is left running or mounted.")
    return 0


def show(step: Callable[[], str]) -> None:
    """Run a step and print what it did and how long it took."""
    started = perf_counter()
    said = step()
    print(f"  ok {perf_counter() - started:5.1f} s   {said}"[:WIDTH], flush=True)


if __name__ == "__main__":
    sys.exit(main())
