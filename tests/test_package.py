"""What bin/install and bin/package make is installed, used and removed in a root of its own."""

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hosts import CHECKOUT, run, what_is_missing

BUILD_TIMEOUT_S = 600.0
HELD = ("CHANGELOG.md", "fusemirror.7", "fusemirror.8", "fusemirror.toml.5", "fusemirror@.service")

UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--propagation", "private")
IN_CLEAN_ROOT = """
ip link set lo up
mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir upper work root &&
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root || exit 77
mount --rbind /dev root/dev && mount -t proc proc root/proc && mount --rbind /sys root/sys || exit 77
for directory in run tmp root home "${2#/}"; do
    mkdir -p "root/$directory"
    mount -t tmpfs tmpfs "root/$directory"
done
rm -f root/usr/sbin/*.fusemirror root/usr/local/bin/fusemirror
cp "$3" root/tmp/fusemirror.deb && cp "$2/tests/in_clean_root.sh" root/tmp/ || exit 77
exec chroot root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root \\
    /tmp/in_clean_root.sh /tmp/fusemirror.deb
"""
"""This machine's root, seen through an overlay in memory: without the checkout, and gone afterwards."""


class Built(NamedTuple):
    root: Path
    """What bin/install put below its DESTDIR."""
    dist: Path
    """What bin/package made."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Everything is built once."""
    if missing := what_is_missing():
        pytest.skip(missing)
    if shutil.which("dpkg-deb") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("no dpkg-deb, or no Python of Debian")
    made = Built(*(tmp_path_factory.mktemp(name) for name in ("root", "dist")))
    places = {"DESTDIR": str(made.root), "DIST": str(made.dist)}
    install = CHECKOUT / "bin" / "install"
    run(install, "--prefix", "/usr", env=os.environ | places, timeout_s=BUILD_TIMEOUT_S)
    stage = tmp_path_factory.mktemp("stage")
    shutil.copytree(made.root, stage, symlinks=True, dirs_exist_ok=True)
    package = CHECKOUT / "bin" / "package"
    run(package, made.dist, env=os.environ | {"STAGE": str(stage)}, timeout_s=BUILD_TIMEOUT_S)
    return made


def test_the_wheel_and_the_source_hold_manual_units_and_changelog(built: Built) -> None:
    (wheel,), (source,) = built.dist.glob("*.whl"), built.dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {Path(name).name for name in archive.namelist() if ".data/data/" in name}
    with tarfile.open(source) as archive_of_source:
        in_source = {Path(name).name for name in archive_of_source.getnames()}
    assert {*HELD} <= in_wheel
    assert {*HELD} <= in_source


def test_the_package_is_installed_used_and_removed_in_a_clean_root(built: Built, tmp_path: Path) -> None:
    (package,) = built.dist.glob("*.deb")
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", IN_CLEAN_ROOT, "sh", tmp_path, CHECKOUT, package],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"no overlay of this root: {done.stderr.strip()}")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["== done"]), done.stdout + done.stderr


def test_what_is_installed_needs_no_compiler_and_no_tools_of_tests(built: Built) -> None:
    names = {path.name.partition("-")[0] for path in built.root.rglob("*.dist-info")}
    assert {"fusemirror", "pyfuse3", "trio", "httpx"} <= names
    assert not names & {"pip", "setuptools", "pytest", "mypy", "ruff", "hypothesis"}


def test_uninstalling_leaves_nothing(built: Built) -> None:
    install = CHECKOUT / "bin" / "install"
    places = os.environ | {"DESTDIR": str(built.root)}
    (built.root / "opt").mkdir()
    run(install, "--prefix", "/usr", "--uninstall", env=places)
    assert os.listdir(built.root) == ["opt"]  # what was there before stays
    assert os.listdir(built.root / "opt") == []
    assert run(install, "--prefix", "/usr", "--uninstall", env=places, expect=3).stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--colour",), ("--prefix",), ("--prefix", "here")])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    done = run(CHECKOUT / "bin" / "install", *arguments, expect=2)
    assert done.stderr.startswith("fusemirror: ")
    assert done.stderr.count("\n") == 1
