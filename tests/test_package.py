"""What bin/install and bin/package make is installed, used and removed in a root of its own."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hosts import CHECKOUT, run, what_is_missing
from tests.release_before import release_before

BUILD_TIMEOUT_S = 600.0
HELD = ("CHANGELOG.md", "fusemirror.7", "fusemirror.8", "fusemirror.toml.5", "fusemirror@.service")

UNSHARE = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--cgroup"),
    *("--propagation", "private"),
)
CLEAN_ROOT = """
ip link set lo up
mkdir "$1/out" "$1/root" && mount -t tmpfs tmpfs "$1/root" && cd "$1/root" && mkdir upper work root &&
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root || exit 77
mount --rbind /dev root/dev && mount -t proc proc root/proc || exit 77
mount -t sysfs sysfs root/sys || mount --rbind /sys root/sys || exit 77
for directory in run tmp root home usr/sbin "${2#/}"; do
    mkdir -p "root/$directory"
    mount -t tmpfs tmpfs "root/$directory"
done
cp -a /usr/sbin/. root/usr/sbin/ # a copy: tests beside this one make our links there
rm -f root/usr/sbin/*.fusemirror root/usr/local/bin/fusemirror
mkdir root/root/out && mount --bind "$1/out" root/root/out || exit 77
cp "$3" root/root/fusemirror.deb && cp "$4" root/root/before.deb || exit 77
cp "$2"/tests/in_*.sh root/root/ || exit 77
environment="env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root"
"""
"""This machine's root, seen through an overlay in memory: without the checkout, and gone afterwards."""

BY_HAND = (
    "exec chroot root /usr/bin/$environment /root/in_clean_root.sh /root/before.deb /root/fusemirror.deb"
)
BY_SYSTEMD = """
mount -t cgroup2 cgroup2 root/sys/fs/cgroup || exit 77
cat > root/etc/systemd/system/trial.service <<EOF
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/root/in_systemd.sh >/root/out/said 2>&1'
ExecStopPost=/bin/systemctl --force --force poweroff
EOF
printf '[Unit]\\nRequires=trial.service\\n' > root/etc/systemd/system/trial.target
exec chroot root /usr/bin/$environment container=trial /lib/systemd/systemd --unit=trial.target
"""


class Built(NamedTuple):
    root: Path
    """What bin/install put below its DESTDIR."""
    dist: Path
    """What bin/package made."""
    before: Path
    """The package of the release before."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Everything is built once."""
    if missing := what_is_missing():
        pytest.skip(missing)
    if shutil.which("dpkg-deb") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("no dpkg-deb, or no Python of Debian")
    made = Built(*(tmp_path_factory.mktemp(name) for name in ("root", "dist", "before")))
    places = {"DESTDIR": str(made.root), "DIST": str(made.dist)}
    install = CHECKOUT / "bin" / "install"
    run(install, "--prefix", "/usr", env=os.environ | places, timeout_s=BUILD_TIMEOUT_S)
    stage = tmp_path_factory.mktemp("stage")
    shutil.copytree(made.root, stage, symlinks=True, dirs_exist_ok=True)
    pack(CHECKOUT, stage, made.dist)
    # The release before has the same environment, and its own code and papers.
    older, stage = release_before(tmp_path_factory.mktemp("older")), tmp_path_factory.mktemp("stage")
    shutil.copytree(made.root, stage, symlinks=True, dirs_exist_ok=True)
    (packages,) = stage.glob("usr/lib/fusemirror/lib/python3*/site-packages")
    shutil.rmtree(packages / "fusemirror")
    shutil.copytree(older / "fusemirror", packages / "fusemirror")
    run(sys.executable, "-m", "compileall", "-q", "-s", stage, packages / "fusemirror")
    pack(older, stage, made.before)
    return made


def pack(checkout: Path, stage: Path, dist: Path) -> None:
    """A .deb of what stands in `stage`, which is used up."""
    package = checkout / "bin" / "package"
    run(package, dist, env=os.environ | {"STAGE": str(stage)}, timeout_s=BUILD_TIMEOUT_S)


def test_the_wheel_and_the_source_hold_manual_units_and_changelog(built: Built) -> None:
    (wheel,), (source,) = built.dist.glob("*.whl"), built.dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {Path(name).name for name in archive.namelist() if ".data/data/" in name}
    with tarfile.open(source) as archive_of_source:
        in_source = {Path(name).name for name in archive_of_source.getnames()}
    assert {*HELD} <= in_wheel
    assert {*HELD} <= in_source


def test_all_that_is_made_holds_every_module(built: Built) -> None:
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "fusemirror").rglob("*.py")}
    (wheel,), (source,) = built.dist.glob("*.whl"), built.dist.glob("*.tar.gz")
    (package,) = built.dist.glob("*.deb")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {*archive.namelist()}
    with tarfile.open(source) as archive_of_source:
        in_source = {name.partition("/")[2] for name in archive_of_source.getnames()}
    listed = run("dpkg-deb", "--contents", package).stdout.split()
    in_package = {name.partition("/site-packages/")[2] for name in listed}
    for held in (in_wheel, in_source, in_package):
        assert not modules - held


def check_in_clean_root(how: str, directory: Path, built: Built) -> None:
    """The script that `how` starts has come to its end."""
    packages = [*built.dist.glob("*.deb"), *built.before.glob("*.deb")]
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", CLEAN_ROOT + how, "sh", directory, CHECKOUT, *packages],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"no root of its own here: {done.stderr.strip()}")
    said = directory / "out" / "said"
    told = said.read_text() if said.exists() else done.stdout
    print(told)
    assert told.splitlines()[-1:] == ["== done"], done.stderr


@pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="no systemd")
def test_systemd_keeps_the_mount(built: Built, tmp_path: Path) -> None:
    check_in_clean_root(BY_SYSTEMD, tmp_path, built)


def test_the_life_of_a_pair_in_a_clean_root(built: Built, tmp_path: Path) -> None:
    check_in_clean_root(BY_HAND, tmp_path, built)


def test_what_is_installed_needs_no_compiler_and_no_tools_of_tests(built: Built) -> None:
    names = {path.name.partition("-")[0] for path in built.root.rglob("*.dist-info")}
    assert {"fusemirror", "pyfuse3", "trio", "httpx"} <= names
    assert not names & {"pip", "setuptools", "pytest", "mypy", "ruff", "hypothesis"}


@pytest.mark.skipif(shutil.which("man") is None, reason="no man")
def test_man_finds_the_pages_where_they_are_put(built: Built) -> None:
    for page in (CHECKOUT / "man").iterdir():
        name, _, number = page.name.rpartition(".")
        found = run("man", "-M", built.root / "usr" / "share" / "man", "-w", number, name).stdout
        assert page.name in found


def test_uninstalling_leaves_nothing(built: Built) -> None:
    install = CHECKOUT / "bin" / "install"
    places = os.environ | {"DESTDIR": str(built.root)}
    (built.root / "opt").mkdir()
    run(install, "--prefix", "/usr", "--uninstall", env=places)
    assert os.listdir(built.root) == ["opt"]  # what was there before stays
    assert os.listdir(built.root / "opt") == []
    assert run(install, "--prefix", "/usr", "--uninstall", env=places, expect=3).stderr.count("\n") == 1


def test_a_removal_that_was_killed_anywhere_can_be_done_again(tmp_path: Path) -> None:
    root, tools, files = (
        tmp_path / "root",
        tmp_path / "tools",
        ("sbin/mount.fusemirror", "usr/bin/fusemirror"),
    )
    listed = ["/usr/", "/usr/lib/", "/sbin/", "/sbin/mount.fusemirror", "/usr/bin/", "/usr/bin/fusemirror"]
    tools.mkdir()
    for tool in ("rm", "rmdir"):  # the one whose turn it is kills who called it
        (tools / tool).write_text(
            f"#!/bin/sh\necho >> {tmp_path}/calls\n"
            f'[ "$(wc -l < {tmp_path}/calls)" -ne "$TURN" ] || kill -9 "$PPID"\n'
            f'exec {shutil.which(tool)} "$@"\n'
        )
        (tools / tool).chmod(0o755)
    command = [str(CHECKOUT / "bin" / "install"), "--prefix", "/usr", "--uninstall"]
    environment = os.environ | {"DESTDIR": str(root), "PATH": f"{tools}:{os.environ['PATH']}"}
    for turn in range(1, 100):
        home = root / "usr" / "lib" / "fusemirror"
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").touch()
        (home / "installed").write_text("\n".join(listed) + "\n")
        for file in files:
            (root / file).parent.mkdir()
            (root / file).touch()
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            command, env=environment | {"TURN": str(turn)}, capture_output=True, check=False
        )
        if done.returncode != 0 and (home / "installed").exists():
            run(*command, env=environment | {"TURN": "0"})
        assert not [path for path in root.rglob("*") if not path.is_dir()], f"killed at turn {turn}"
        if done.returncode == 0:
            break
        shutil.rmtree(root)
    assert turn > 4


@pytest.mark.parametrize("arguments", [("--colour",), ("--prefix",), ("--prefix", "here")])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    done = run(CHECKOUT / "bin" / "install", *arguments, expect=2)
    assert done.stderr.startswith("fusemirror: ")
    assert done.stderr.count("\n") == 1
