"""Damage at random: whatever happened to files of a volume, fsck says it in lines, and repairs what it can.

FUSEMIRROR_DAMAGES says how many damages are tried; a few by default. Each runs in a process of its
own, because a damaged LMDB file may end whoever reads it.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusemirror.limits import KIB
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, counting_seams

DAMAGES = int(os.environ.get("FUSEMIRROR_DAMAGES", "12"))
CLEAN, REPAIRED, LEFT, OPERATIONAL_ERROR = 0, 1, 4, 8
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a few of everything, whose process was killed."""
    directory = tmp_path_factory.mktemp("damage") / "volume"
    Volume.create(directory, IDENTITY)
    writer = Writer(Volume.open(directory, counting_seams()))
    parents = [writer.mkdir(b"directory %d" % number) for number in range(5)]
    for number in range(60):
        inode = writer.create(b"file %d" % number, parents[number % 5])
        writer.write(inode, 0, b"%d" % number * 2000)
        writer.set_xattr(inode, b"user.a", b"value")
        if number == 40:
            writer.volume.commit()
    writer.volume.abandon()
    return directory


def damage(volume: Path, chance: random.Random) -> str:
    """Flip, overwrite, cut or remove something in one of the files; what was done."""
    files = sorted(
        path for path in volume.rglob("*") if path.is_file() and path.name not in ("lock", "lock.mdb")
    )
    # Each kind as often as the others, however many files it has.
    kinds = sorted({path.relative_to(volume).parts[0] for path in files})
    kind = chance.choice(kinds)
    path = chance.choice([each for each in files if each.relative_to(volume).parts[0] == kind])
    content = bytearray(path.read_bytes())
    how = chance.choice(["flip", "overwrite", "cut", "remove"])
    place = chance.randrange(len(content) + 1)
    if how == "flip" and content:
        content[place - 1] ^= 1 << chance.randrange(8)
    elif how == "overwrite":
        content[place : place + 4 * KIB] = chance.randbytes(len(content[place : place + 4 * KIB]))
    elif how == "cut":
        del content[place:]
    path.write_bytes(content)
    if how == "remove":
        path.unlink()
    return f"{how} {path.relative_to(volume)} at {place}"


def fsck(volume: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, "-m", "fusemirror", "fsck", str(volume), *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_a_damaged_volume_is_told_so_in_lines_and_mended(whole: Path, tmp_path: Path, seed: int) -> None:
    volume = tmp_path / "volume"
    shutil.copytree(whole, volume)
    done = damage(volume, random.Random(seed))
    print(f"seed {seed}: {done}")
    looked = fsck(volume)
    assert looked.returncode in (CLEAN, LEFT, OPERATIONAL_ERROR), looked
    assert "Traceback" not in looked.stderr, looked.stderr
    if looked.returncode == OPERATIONAL_ERROR:
        assert re.fullmatch(r"fusemirror: [^\n]+\n", looked.stderr)
    repaired = fsck(volume, "--repair")
    assert "Traceback" not in repaired.stderr, repaired.stderr
    if "identity.json" in done:  # nobody else knows whose volume it is
        assert repaired.returncode in (CLEAN, REPAIRED, LEFT, OPERATIONAL_ERROR)
        return
    assert repaired.returncode in (CLEAN, REPAIRED), repaired
    again = fsck(volume)
    assert again.returncode == CLEAN, again
