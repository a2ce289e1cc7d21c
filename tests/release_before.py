"""The release before this one, out of the history of the checkout, for the tests of upgrades."""

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, run


def release_before(directory: Path) -> Path:
    """A checkout of it below `directory`: of the last commit with another version than this one's, or of the
    commit that FUSEMIRROR_RELEASE_BEFORE names. Skips where the history does not go that far back, as in
    an archive of the source or a shallow clone.
    """
    if not (CHECKOUT / ".git").exists():
        pytest.skip("no history, so no release before this one")
    git = ("git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT))
    commit = os.environ.get("FUSEMIRROR_RELEASE_BEFORE")
    if not commit:
        changed = run(*git, "log", "-1", "--format=%H", "-G^__version__", "--", "fusemirror/__init__.py")
        commit = f"{changed.stdout.strip()}^"
    archive = subprocess.run([*git, "archive", commit], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history lacks {commit}, a commit of the release before: fetch all of it")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as packed:
        packed.extractall(directory, filter="data")
    return directory
